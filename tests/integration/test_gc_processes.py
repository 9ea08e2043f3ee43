"""Collecting while other processes pull, and after it was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.oci import Digest
from blobtee.testing import MemoryRegistry, image

_PULL = """
import sys
from contextlib import suppress
from blobtee.errors import NotFound
from blobtee import transfer
from blobtee.content import LocalStore
with LocalStore(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for round in range(int(sys.argv[2])):
        for name in sys.argv[3:]:
            with transfer.pull(name, store) as image:
                if round % 2:
                    with suppress(NotFound):  # the other one was first
                        store.layout.remove(image.name)
                for layer in image.manifest.layers:
                    with store.reader_at(layer) as reader:
                        assert len(reader.read_at(0, layer.size)) == layer.size
        if round % 2:
            transfer.pull(sys.argv[3], store).close()
    for name in sys.argv[3:]:
        transfer.pull(name, store).close()
    print("done", flush=True)
"""

_OPEN = """
import sys
from blobtee import transfer
from blobtee.content import LocalStore
with LocalStore(sys.argv[1]) as store, transfer.open_image(sys.argv[2], store) as image:
    print("open", flush=True)
    sys.stdin.readline()
"""

_COLLECT = """
import sys
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
with LocalStore(sys.argv[1]) as store:
    discard = store.discard
    def slow(digest):
        done = discard(digest)
        print("one", flush=True)
        sys.stdin.readline()
        return done
    store.discard = slow
    CacheManager(store).collect(grace=0)
"""


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_two_processes_that_pull_lose_nothing_to_one_that_collects(server: MemoryRegistry, tmp_path: Path) -> None:
    root = tmp_path / "store"
    names = [image([{"base": b"b" * 9999}, {"own": b"%d" % n}]).push(server, f"app{n}") for n in range(6)]
    with LocalStore(root) as store:
        manager = CacheManager(store)
        removed = 0
        while not removed:  # on a busy machine no collection need meet anything the first time
            processes = [start(_PULL, root, 4, *names[:4]), start(_PULL, root, 4, *names[2:])]
            try:
                for process in processes:
                    go_on(process)
                deadline = time.monotonic() + 200
                while any(process.poll() is None for process in processes):
                    assert time.monotonic() < deadline
                    removed += len(manager.collect(grace=0).blobs)
                assert [process.communicate()[0] for process in processes] == ["done\n", "done\n"]
            finally:
                for process in processes:
                    end(process)
        assert sorted(store.layout.names()) == sorted(names)
        assert manager.collect(grace=0).problems == ()
        result = transfer.verify(store)
        assert (result.problems, result.lazy) == ((), 0)


def test_what_another_process_has_open_stays_until_that_ends(server: MemoryRegistry, tmp_path: Path) -> None:
    name = image([{"a": b"1"}, {"b": b"2"}]).push(server, "app")
    with LocalStore(tmp_path / "store") as store:
        transfer.pull(name, store).close()
        process = start(_OPEN, store.root, name)
        try:
            store.layout.remove(name)
            # Its documents go, which nobody reads any more; its layers do not.
            result = CacheManager(store).collect(grace=0)
            assert (len(result.blobs), result.records, result.cache.blobs) == (2, (), 2)
        finally:
            end(process)
        assert len(CacheManager(store).collect(grace=0).blobs) == 2


def test_a_collection_that_is_killed_is_finished_by_the_next(server: MemoryRegistry, tmp_path: Path) -> None:
    root = tmp_path / "store"
    kept, other = (image([{name: b"x"}, {"both": b"y"}]).push(server, name) for name in ("kept", "other"))
    with LocalStore(root) as store:
        transfer.pull(kept, store).close()
        needed = {info.digest for info in store.walk()}
        transfer.pull(other, store).close()
        store.layout.remove(other)
        planned = CacheManager(store).collect(grace=0, dry_run=True)
    process = start(_COLLECT, root)
    end(process)
    with LocalStore(root) as store:
        left = {info.digest for info in store.walk()}
        assert left < needed | planned.blobs.keys()
        assert needed <= left
        rest = CacheManager(store).collect(grace=0)
        assert set(rest.blobs) == left - needed
        assert rest.problems == ()
        assert transfer.verify(store).problems == ()
        # What was taken away half way can come again.
        transfer.pull(other, store).close()
        assert transfer.verify(store).problems == ()
        assert all(isinstance(digest, Digest) for digest in planned.blobs)


def test_pulls_of_a_killed_process_leave_nothing_for_ever(server: MemoryRegistry, tmp_path: Path) -> None:
    name = image([{"a": b"1"}]).push(server, "app")
    code = (
        "import sys\nfrom blobtee import transfer\nfrom blobtee.cache import CacheManager\n"
        "from blobtee.content import LocalStore\n"
        "with LocalStore(sys.argv[1]) as store, CacheManager(store).leases.hold():\n"
        "    image = transfer.pull(sys.argv[2], store)\n    store.layout.remove(image.name)\n"
        "    print('held', flush=True)\n    sys.stdin.readline()\n"
    )
    with LocalStore(tmp_path / "store") as store:
        process = start(code, store.root, name)
        try:
            assert CacheManager(store).collect(grace=0).blobs == {}
        finally:
            end(process)
        assert len(CacheManager(store).collect(grace=0).blobs) == 3
        assert CacheManager(store).leases.all() == []
