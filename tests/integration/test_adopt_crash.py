"""Moving in is killed at every change of disk and database: nothing is lost, and doing it again finishes it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.adopting import adopt
from blobtee.plugin.adopting.taking import CONTENT, METADATA
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from tests.integration.adopt_crash_worker import no_link, store_of
from tests.unit.plugin.boltfile import BoltFile

REPOSITORY = Path(__file__).parents[2]
BLOBS = (b"first" * 20_000, b"", b"third" * 10)
BAD, GARBAGE = b"is not what it should be", b"unknown to containerd"
REF, HALF, WHOLE = "k8s.io/3/layer", b"half" * 50_000, b"half" * 100_000


def make_root(root: Path) -> None:
    """containerd's root: good blobs, a damaged one, one it does not know, and one that is unfinished."""
    blobs = root / CONTENT / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in (*BLOBS, BAD, GARBAGE):
        (blobs / Digest.of(data).hex).write_bytes(data if data != BAD else b"something else")
    ingest = root / CONTENT / "ingest" / hashlib.sha256(REF.encode()).hexdigest()
    ingest.mkdir(parents=True)
    (ingest / "ref").write_text(REF)
    (ingest / "total").write_text(str(len(WHOLE)))
    (ingest / "data").write_bytes(HALF)
    known = {Digest.of(data).encode(): {b"labels": {b"size": b"%d" % len(data)}} for data in (*BLOBS, BAD)}
    (root / METADATA).parent.mkdir()
    (root / METADATA).write_bytes(BoltFile({b"v1": {b"default": {b"content": {b"blob": known}}}}).data)


def check(folder: Path, way: str) -> None:
    root = store_of(folder, way)
    for data in BLOBS:  # by then, as containerd left them or as a store's
        file = folder / "containerd" / CONTENT / "blobs" / "sha256" / Digest.of(data).hex
        assert file.read_bytes() == data
    with LocalStore(root) as store:
        assert store.problems == ()
        for times in range(2):
            done = adopt(folder / "containerd", store, "default")
            assert done.held == len(BLOBS)
            assert done.ingests <= 1 - times or way != "in-place"
        references = References(store.metadata)
        tenant = Tenant("default", store, references)
        Sweeper(store, references).sweep()
        CacheManager(store).collect(grace=0.001)  # none at all takes what is unfinished, too
        assert {info.digest for info in tenant.walk()} == {Digest.of(data) for data in BLOBS}
        for data in BLOBS:
            with tenant.reader_at(Descriptor("", Digest.of(data), len(data))) as reader:
                assert reader.read_at(0, len(data)) == data
            assert tenant.info(Digest.of(data)).labels == {"size": str(len(data))}
        assert [info.digest for info in store.quarantined()] == ([Digest.of(BAD)] if way == "in-place" else [])
        assert [(status.ref, status.offset) for status in tenant.statuses()] == [(REF, len(HALF))]
        assert [status.ref for status in store.statuses()] == [f"tenant/default/{REF}"], "nothing is left over"
        with tenant.writer(REF, total=len(WHOLE)) as writer:
            writer.write(WHOLE[len(HALF) :])
            writer.commit(len(WHOLE), Digest.of(WHOLE))
    assert not [path for path in root.iterdir() if path.name.startswith(".link-")]


@pytest.mark.parametrize("way", ["links", "copies", "in-place"])
def test_moving_in_may_be_killed_anywhere(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_root(tmp_path / "before")
    command = [sys.executable, "-m", "tests.integration.adopt_crash_worker", str(tmp_path), way]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count > 15, "it changes less than it did"
    if way == "copies":
        monkeypatch.setattr(os, "link", no_link)
    for step in range(1, count + 1):
        check(tmp_path / str(step), way)
