"""The writing process is killed at many points: nothing acknowledged is lost, nothing broken is served, work goes on.

SIGKILL keeps what the kernel has; what a power cut may lose is held by the order of syncs and renames, which
`tests/unit/content/test_durability.py` watches.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.errors import RefLocked
from blobtee.oci import Descriptor
from tests.integration import crash_worker
from tests.integration.crash_worker import blob, digest_of, labels_of, ref_of

REPOSITORY = Path(__file__).parents[2]


def start(mode: str, root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.crash_worker", mode, str(root)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )


def acknowledged(lines: list[bytes]) -> dict[str, set[int]]:
    """Numbers by kind; the last line may be cut."""
    done: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        if line.endswith(b"\n"):
            kind, number = json.loads(line)
            done[kind].add(number)
    return done


def check(store: LocalStore, done: dict[str, set[int]], numbers: range) -> None:
    """What was acknowledged is there, and all that is there is good."""
    assert store.problems == ()
    by_digest = {digest_of(blob(number)): number for number in numbers}
    found = {info.digest: info for info in store.walk()}
    for digest, info in found.items():
        number = by_digest[digest]
        assert info == store.info(digest)
        assert labels_of(number).items() <= info.labels.items()
        with store.reader_at(Descriptor("", digest, info.size)) as reader:
            assert reader.read_at(0, reader.size) == blob(number)
    for number in done["put"] - done["deleting"]:
        assert digest_of(blob(number)) in found
    for number in done["label"] - done["deleting"]:
        assert found[digest_of(blob(number))].labels["more"] == "yes"
    names = store.layout.names()
    for number in done["name"]:
        assert names[f"name:{number}"].digest == digest_of(blob(number))
    refs = {ref_of(number): number for number in numbers}
    statuses = store.statuses()
    assert len(os.listdir(store.root / "ingest")) == len(statuses), "an ingest that never began is left behind"
    for status in statuses:
        data = blob(refs[status.ref])
        with store.writer(status.ref) as writer:
            assert writer.status.offset == status.offset
            assert writer.digest == digest_of(data[: status.offset])


def litter(root: Path) -> set[str]:
    """Files that do not belong to a store at rest."""
    metadata = {f"blobtee.db{end}" for end in ("", "-wal", "-shm", "-ballast")}
    allowed = {"oci-layout", "index.json", ".blobtee.lock", *metadata}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {file for file in files if not file.startswith("blobs/sha256/")} - allowed


@pytest.mark.slow
def test_a_kill_at_any_call_loses_nothing_and_the_work_goes_on(tmp_path: Path) -> None:
    worker = start("steps", tmp_path)
    assert worker.stdout is not None
    with worker.stdout as output:
        lines = output.readlines()
    assert worker.wait() == 0
    runs: list[tuple[int, list[bytes]]] = []
    for line in lines:
        kind, number = json.loads(line)
        if kind == "step":
            runs.append((number, []))
        else:
            runs[-1][1].append(line)
    assert len(runs) > 100, "the work touches the disk far more often than that"
    for k, acknowledgements in runs:
        root = tmp_path / str(k)
        if not root.exists():
            assert not acknowledgements
            continue
        with LocalStore(root) as store:
            check(store, acknowledged(acknowledgements), range(5))
            crash_worker.work(store, iter(range(5)))
        with LocalStore(root) as store:
            check(store, acknowledged([]), range(5))
            assert {info.labels["number"] for info in store.walk()} == {"0", "1", "2", "3"}
            assert store.statuses() == []
        assert litter(root) == set(), f"left behind by the kill at call {k}"
        assert os.listdir(root / "ingest") == []


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_leave_no_growing_litter(tmp_path: Path) -> None:
    done: dict[str, set[int]] = defaultdict(set)
    chance = random.Random(1)
    root = tmp_path / "store"
    for _ in range(12):
        worker = start("loop", root)
        assert worker.stdout is not None
        with worker.stdout as output:
            # A random number of acknowledgements, then at once: the kill falls somewhere in the work that follows.
            lines = [output.readline() for _ in range(chance.randrange(1, 60))]
            os.kill(worker.pid, signal.SIGKILL)
            lines += output.readlines()
        worker.wait()
        fresh = acknowledged(lines)
        done["deleting"] |= fresh["deleting"]
        for kind in ("put", "name", "label"):
            done[kind] |= fresh[kind]
        with LocalStore(root) as store:
            check(store, done, range(40))
            assert len(store.statuses()) <= 1
        assert len(os.listdir(root / "ingest")) <= 1
        assert {file for file in litter(root) if not file.startswith("ingest/")} <= {".index.json.new"}
    assert len(done["put"]) > 20


def test_a_killed_holder_of_a_ref_unlocks_it(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from blobtee.content import LocalStore\n"
        "store = LocalStore(sys.argv[1])\n"
        "writer = store.writer('shared', total=5_000_000)\n"
        "writer.write(b'x' * 1000)\n"
        "print('holding', flush=True)\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout as output, LocalStore(tmp_path) as store:
        assert output.readline() == b"holding\n"
        with pytest.raises(RefLocked):
            store.writer("shared")
        with pytest.raises(RefLocked):
            store.abort("shared")
        assert store.status("shared").offset == 1000
        holder.kill()
        holder.wait()
        with store.writer("shared") as writer:
            assert writer.status.offset == 1000
            assert writer.digest == digest_of(b"x" * 1000)
        store.abort("shared")
        assert store.statuses() == []
