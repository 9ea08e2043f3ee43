"""What the tee does with a blob, killed at each change of disk: the process that `test_tee_crash` looks after.

    tee_crash_worker.py ROOT SHAPE alone       in ROOT/K for each K: die at the K-th change
    tee_crash_worker.py ROOT SHAPE together    beside another process, which has the blob open and goes on

A change is a call that touches the disk, either end of a transaction of the database, or a store into the mapping of a
map. What was asked for, and every piece that came, goes to stdout as lines of JSON: step, what, two offsets.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blobtee.content import Database, LocalStore, Trust
from blobtee.errors import DigestMismatch
from blobtee.oci import mediatypes
from blobtee.seeking import kept, whole
from blobtee.tee import Tee, partial
from tests.unit.seeking import blobs
from tests.unit.seeking.support import CountingReader
from tests.unit.tee.support import Origin, OriginStream, chunks, desc_of, some_bytes

CALLS = (
    "pwrite",
    "write",
    "ftruncate",
    "posix_fallocate",
    "fdatasync",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "link",
    "chmod",
    "utime",
)

DATA = some_bytes(chunks(12) + 777)
DESC = desc_of(DATA)
WRONG = DATA[: chunks(5)] + bytes(10) + DATA[chunks(5) + 10 :]
PIECE = chunks(2)
LABELS = {"label": "is here"}
TARS = [blobs.tar({"a": b"one" * 1000, "b": b"x"}), blobs.tar({"a": b"two" * 1000})]

Say = Callable[[str, int, int], None]

_write = os.write


class Heard(Origin):
    """Says what is asked of it and what it gives."""

    def __init__(self, data: bytes, say: Say) -> None:
        super().__init__(data, piece=PIECE)
        self._say = say

    def stream(self, start: int, end: int) -> OriginStream:
        self._say("asked", start, end)
        stream = super().stream(start, end)
        stream.__class__ = _HeardStream
        return stream


class _HeardStream(OriginStream):
    def readinto(self, view: memoryview) -> int:
        start = self.position
        n = super().readinto(view)
        self._origin._say("sent", start, self.position)  # type: ignore[attr-defined]
        return n


# ---- shapes ---------------------------------------------------------------------------------------------------------


def scattered(store: LocalStore, say: Say) -> None:
    """Reads here and there, by two readers one after the other, and more of it settled each time."""
    for numbers in ((7, 2, 9), (3, 2, 12, 0)):
        tee = Tee(store)
        with tee.reader_at(DESC, Heard(DATA, say).source, Trust.RAW) as reader:
            for number in numbers:
                assert reader.read_at(chunks(number) + 5, 50) == DATA[chunks(number) + 5 :][:50]
        tee.close()


def filled(store: LocalStore, say: Say) -> None:
    """Filled in order, and some of it was there before."""
    tee = Tee(store)
    origin = Heard(DATA, say)
    with tee.reader_at(DESC, origin.source, Trust.RAW, labels=LABELS) as reader:
        reader.read_at(chunks(4), 10)
        tee.fill(DESC, origin.source, LABELS)
        say("filled", 0, 0)
    tee.close()


def lied_to(store: LocalStore, say: Say) -> None:
    """Wrong bytes, which are thrown away, and then the right ones."""
    tee = Tee(store)
    with suppress(DigestMismatch):
        tee.fill(DESC, Heard(WRONG, say).source)
    say("thrown away", 0, 0)
    tee.fill(DESC, Heard(DATA, say).source, LABELS)
    say("filled", 0, 0)
    tee.close()


def again(store: LocalStore, say: Say) -> None:
    """Digests are there: single chunks come again, each proven, and in the end all of it."""
    tee = Tee(store)
    origin = Heard(DATA, say)
    with tee.reader_at(DESC, origin.source, Trust.BLOB, labels=LABELS) as reader:
        for number in (8, 1):
            assert reader.read_at(chunks(number), 50) == DATA[chunks(number) :][:50]
    tee.fill(DESC, origin.source, LABELS)
    say("filled", 0, 0)
    tee.close()


def indexed(store: LocalStore, say: Say) -> None:
    """Indexes of two layers, one of them kept twice and forgotten once."""
    for number, data in enumerate(TARS):
        contents = whole.contents(CountingReader(data), mediatypes.OCI_LAYER, lambda entries: entries)
        kept.keep(store.root, desc_of(data), contents)
        say("kept", number, 0)
        kept.keep(store.root, desc_of(data), contents)
    say("forgetting", 1, 0)
    kept.forget(store.root, desc_of(TARS[1]).digest)


SHAPES = {shape.__name__: shape for shape in (scattered, filled, lied_to, again, indexed)}


def prepared(root: Path, shape: str) -> LocalStore:
    """The store as the shape finds it."""
    store = LocalStore(root)
    if shape == "again":
        tee = Tee(store)
        tee.fill(DESC, Origin(DATA).source)
        tee.close()
        store.delete(DESC.digest)
    return store


# ---- dying ----------------------------------------------------------------------------------------------------------


def die_at(k: int) -> None:
    """Let this process be killed before its k-th change; a write is half done then."""
    count = itertools.count(1)

    def tick() -> bool:
        return next(count) == k

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the others run on for as long as the kernel lets them

    def counted(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if tick():
                if name == "pwrite":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                die()
            return call(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name), name))

    class Mapping(mmap.mmap):
        def __setitem__(self, key: Any, value: Any) -> None:
            if tick():
                die()
            super().__setitem__(key, value)

        def flush(self, *where: int) -> None:
            if tick():
                die()
            super().flush(*where)

    mmap.mmap = Mapping  # type: ignore[misc]
    begin = Database.transaction

    @contextmanager
    def transaction(database: Database) -> Iterator[Any]:
        if tick():
            die()
        with begin(database) as connection:
            yield connection
            if tick():
                die()

    setattr(Database, "transaction", transaction)  # noqa: B010


def victim(root: Path, shape: str, k: int, heard: Say | None = None) -> int:
    """A child that does the work of `shape` and dies on the way."""
    child = os.fork()
    if child == 0:
        partial.CHECKPOINT_NBYTES, partial.CHECKPOINT_PAUSE = chunks(3), 0
        with prepared(root, shape) as store:
            die_at(k)
            SHAPES[shape](store, heard or (lambda *what: say(k, *what)))
        os._exit(0)
    return child


def survivor(root: Path, shape: str, k: int, begun: int) -> int:
    """A child that has the blob open, and when `begun` can be read or is at its end, wants all of it."""
    child = os.fork()
    if child == 0:
        with LocalStore(root) as store:
            tee = Tee(store)
            origin = Origin(DATA, piece=PIECE)
            with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
                assert reader.read_at(chunks(11), 10) == DATA[chunks(11) :][:10]
                os.read(begun, 1)
                with tee.reader_at(DESC, origin.source, Trust.STREAMED) as streamed:
                    for at in range(0, len(DATA), 10_000):
                        assert streamed.read_at(at, 10_000) == DATA[at : at + 10_000]
                assert tee.fill(DESC, origin.source).size == len(DATA)
                assert reader.read_at(0, len(DATA)) == DATA
            tee.close()
            say(k, "survived", 0, 0)
        os._exit(0)
    return child


def alone(root: Path, shape: str) -> None:
    for k in itertools.count(1):
        if ended(victim(root / str(k), shape, k)):
            say(k, "finished", 0, 0)
            return


def together(root: Path, shape: str) -> None:
    for k in itertools.count(1):
        folder = root / str(k)
        prepared(folder, shape).close()
        begun, begin = os.pipe()

        def heard(what: str, start: int, end: int, begin: int = begin, k: int = k) -> None:
            if what == "sent" and (shape != "filled" or end - start == PIECE):  # as who fills, and not before
                _write(begin, b"!")
            say(k, what, start, end)

        killed = victim(folder, shape, k, heard)
        os.close(begin)
        other = survivor(folder, shape, k, begun)
        os.close(begun)
        finished = ended(killed)
        _, status = os.waitpid(other, 0)
        assert status == 0, f"who survived step {k} did not finish: {status}"
        if finished:
            say(k, "finished", 0, 0)
            return


def ended(child: int) -> bool:
    """Whether it came to its end; False when it was killed."""
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"it failed by itself: {status}"
    return status == 0


def say(step: int, what: str, start: int, end: int) -> None:
    _write(1, json.dumps([step, what, start, end]).encode() + b"\n")


if __name__ == "__main__":
    {"alone": alone, "together": together}[sys.argv[3]](Path(sys.argv[1]), sys.argv[2])
