"""Several processes on one store at once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from blobtee.content import LocalStore
from tests.conformance.blobs import digest_of, get

DATA = b"the same bytes" * 100_000

_WRITE = """
import sys
from blobtee.content import LocalStore
from blobtee.errors import AlreadyExists
data = b"the same bytes" * 100_000
with LocalStore(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    with store.writer("ref " + sys.argv[2], total=len(data)) as writer:
        writer.write(data)
        try:
            writer.commit(labels={"by": sys.argv[2]})
            print("committed", flush=True)
        except AlreadyExists:
            print("exists", flush=True)
"""

_COPY = """
import sys
from blobtee.content import LocalStore, MemoryStore, copy
from blobtee.oci import Descriptor
data = b"the same bytes" * 100_000

class Source(MemoryStore):
    def reader_at(self, desc):
        print("asked", flush=True)
        return super().reader_at(desc)

with LocalStore(sys.argv[1]) as store, Source() as source:
    with source.writer("x") as writer:
        writer.write(data)
        info = writer.commit()
    print("ready", flush=True)
    sys.stdin.readline()
    copy(store, source, Descriptor("", info.digest, info.size))
    print("done", flush=True)
"""


def run(code: str, root: Path, count: int) -> list[list[str]]:
    """What each of `count` processes says after all of them were ready."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return said


def test_processes_that_write_one_digest_make_one_blob(tmp_path: Path) -> None:
    said = run(_WRITE, tmp_path, 6)
    assert Counter(word for words in said for word in words) == {"committed": 1, "exists": 5}
    with LocalStore(tmp_path) as store:
        (info,) = store.walk()
        assert info.labels["by"] == str(said.index(["committed"]))
        assert get(store, DATA) == DATA
        assert store.statuses() == []


def test_processes_that_copy_one_blob_fetch_it_once(tmp_path: Path) -> None:
    said = run(_COPY, tmp_path, 4)
    assert Counter(word for words in said for word in words) == {"asked": 1, "done": 4}
    with LocalStore(tmp_path) as store:
        assert store.info(digest_of(DATA)).size == len(DATA)
        assert store.statuses() == []
