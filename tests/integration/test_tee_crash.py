"""Who reads or fills a blob by parts is killed at every change of disk.

Afterwards nobody gets a wrong byte, nothing is fetched again but what was on its way, the fill goes on to a sound blob,
and a collection leaves nothing. What a power cut may cost is held by `test_tee_power`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, Trust
from blobtee.errors import DigestMismatch
from blobtee.seeking import kept
from blobtee.tee import Tee
from blobtee.tee.map import CHUNK, chunks_of
from blobtee.transfer.verifying import verify
from tests.integration.tee_crash_worker import DATA, DESC, LABELS, SHAPES, TARS, WRONG
from tests.unit.tee.support import Origin, desc_of

REPOSITORY = Path(__file__).parents[2]
METADATA = {f"blobtee.db{end}" for end in ("", "-wal", "-shm", "-ballast")}
AT_REST = {"oci-layout", "index.json", ".blobtee.lock", *METADATA}

Said = list[tuple[str, int, int]]


def run(folder: Path, *arguments: str) -> dict[int, Said]:
    """What each of the killed ones said, by its step; the last one came to the end."""
    command = [sys.executable, "-m", "tests.integration.tee_crash_worker", str(folder), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[int, Said] = defaultdict(list)
    for line in done.stdout.splitlines():
        step, *what = json.loads(line)
        said[step].append(tuple(what))
    last = max(said)
    return {step: said[step] for step in range(1, last + 1)}


def whole(store: LocalStore, trust: Trust, origin: Origin) -> bytes:
    """All of it by single chunks, the last first: nothing that is here is asked for to fill a gap."""
    tee = Tee(store)
    try:
        with tee.reader_at(DESC, origin.source, trust) as reader:
            parts = [reader.read_at(at, CHUNK) for at in reversed(range(0, len(DATA), CHUNK))]
            return b"".join(reversed(parts))
    finally:
        tee.close()


def chunks_in(start: int, end: int) -> set[int]:
    return set(range(start // CHUNK, chunks_of(end)))


def on_the_way(said: Said) -> set[int]:
    """Chunks that had not all come, or had come last of what was asked for at once."""
    asked: list[tuple[int, int]] = []
    last: dict[tuple[int, int], tuple[int, int]] = {}
    sent: set[int] = set()
    for what, start, end in said:
        if what == "asked":
            asked.append((start, end))
        elif what == "sent":
            sent |= chunks_in(start, end)
            of = next(request for request in reversed(asked) if request[0] <= start < request[1])
            last[of] = start, end
    return (set(range(chunks_of(len(DATA)))) - sent).union(*(chunks_in(*piece) for piece in last.values()))


def litter(root: Path) -> set[str]:
    files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    folders = {str(path.relative_to(root)) for path in (root / "partial").glob("*/*")}
    return (files | folders) - AT_REST


def check_collected(root: Path) -> None:
    with LocalStore(root) as store:
        assert store.problems == ()
        CacheManager(store).collect(grace=0)
    assert litter(root) == set()


def check(root: Path, shape: str, said: Said, lost: set[int]) -> None:
    """The store as it was left: what is read, what is asked for again, at most the chunks `lost`, and what stays in the
    end."""
    done = {what for what, *_ in said}
    with LocalStore(root) as store:
        assert store.problems == ()
        committed = {info.digest for info in store.walk()}
        if "filled" in done:
            assert committed == {DESC.digest}
            assert store.info(DESC.digest).labels == LABELS
        assert committed <= {DESC.digest}
        origin = Origin(DATA)
        try:
            raw = whole(store, Trust.RAW, origin)
        except DigestMismatch:  # found out while the rest came
            assert shape == "lied_to"
            raw = whole(store, Trust.RAW, origin)
        if shape == "lied_to" and not committed:  # to throw away is nothing that has to survive
            assert all(
                raw[at : at + CHUNK] in (DATA[at : at + CHUNK], WRONG[at : at + CHUNK])
                for at in range(0, len(DATA), CHUNK)
            )
        else:
            assert raw == DATA
        again = set().union(*(chunks_in(*request) for request in origin.requests))
        if shape == "lied_to":
            assert not committed or not again
        else:
            assert again <= lost
        assert whole(store, Trust.BLOB, origin) == DATA
        assert whole(store, Trust.STREAMED, origin) == DATA
        tee = Tee(store)
        tee.fill(DESC, origin.source)
        tee.close()
        assert [info.digest for info in store.walk()] == [DESC.digest]
        assert verify(store).good
        for number, data in enumerate(TARS):
            if ("kept", number, 0) in said and ("forgetting", number, 0) not in said:
                contents = kept.load(store.root, desc_of(data))
                assert contents is not None
                assert len(contents.entries) > 1
    check_collected(root)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_kill_at_any_change_costs_what_was_on_its_way(shape: str, memory_path: Path) -> None:
    runs = run(memory_path, shape, "alone")
    assert len(runs) > {"indexed": 15}.get(shape, 40), "it changes less than it did"
    for step, said in runs.items():
        root = memory_path / str(step)
        shutil.copytree(root, memory_path / "copy")
        check_collected(memory_path / "copy")
        shutil.rmtree(memory_path / "copy")
        check(root, shape, said, on_the_way(said))


@pytest.mark.parametrize("shape", ["filled", "scattered"])
def test_who_shares_a_blob_with_one_that_is_killed_has_all_of_it(shape: str, memory_path: Path) -> None:
    runs = run(memory_path, shape, "together")
    assert len(runs) > {"scattered": 3}.get(shape, 15), "it changes less than it did"
    for step, said in runs.items():
        assert [what for what, *_ in said].count("survived") == 1
        with LocalStore(memory_path / str(step)) as store:
            assert [info.digest for info in store.walk()] == [DESC.digest]
            assert verify(store).good
        check_collected(memory_path / str(step))
