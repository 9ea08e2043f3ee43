"""Each call by which the tee changes the disk fails, once or from then on: one of our errors says so, what is there
stays right, and the same works when the disk does again."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, Trust
from blobtee.errors import BlobteeError, StorageError, StorageFull
from blobtee.oci import mediatypes
from blobtee.seeking import kept, whole
from blobtee.tee import Tee, digests, partial
from blobtee.tee.map import chunks_of
from tests.unit.seeking import blobs
from tests.unit.seeking.support import CountingReader
from tests.unit.tee.support import Origin, chunks, desc_of, some_bytes

DATA = some_bytes(chunks(9) + 77)
DESC = desc_of(DATA)
NUMBERS = (errno.ENOSPC, errno.EIO)
CALLS = (
    "open",
    "pwrite",
    "ftruncate",
    "posix_fallocate",
    "fdatasync",
    "fsync",
    "rename",
    "replace",
    "mkdir",
    "unlink",
    "utime",
    "msync",
)


class Disk:
    """Fails at the call number `after`, and at all behind it unless `once`; a write is half done first."""

    def __init__(self, call: str, after: int, number: int, *, once: bool) -> None:
        self.failed = 0
        self._call = call
        self._after = after
        self._number = number
        self._once = once

    def is_failing(self) -> bool:
        self._after -= 1
        failing = self._after == -1 if self._once else self._after < 0
        self.failed += failing
        return failing

    def error(self) -> OSError:
        return OSError(self._number, os.strerror(self._number))

    @contextmanager
    def attached(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patched:
            if self._call == "msync":
                patched.setattr(mmap, "mmap", self._mapping())
            else:
                patched.setattr(os, self._call, self._wrapped(getattr(os, self._call)))
            yield

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Files that are only read are not what this is about.
            changes = self._call != "open" or args[1] & (os.O_WRONLY | os.O_RDWR)
            if changes and self.is_failing():
                if self._call == "pwrite" and self.failed == 1 and len(args[1]) > 1:
                    real(args[0], args[1][: len(args[1]) // 2], args[2])
                raise self.error()
            return real(*args, **kwargs)

        return call

    def _mapping(self) -> type[mmap.mmap]:
        disk = self

        class Mapping(mmap.mmap):
            def flush(self, *where: int) -> None:
                if disk.is_failing():
                    raise disk.error()
                super().flush(*where)

        return Mapping


def use(store: LocalStore, origin: Origin) -> None:
    """Some of it, and then all; every part is tried whatever becomes of the one before it."""
    tee = Tee(store)
    with ExitStack() as closing:
        closing.callback(expecting_failure, tee.close)
        early = tee.reader_at(DESC, origin.source, Trust.RAW)
        expecting_failure(lambda: check_part(early.read_at(chunks(4), 50), 4))
        expecting_failure(early.close)  # which settles what came; otherwise a thread does, if it has the time
        reader = tee.reader_at(DESC, origin.source, Trust.RAW)
        closing.callback(expecting_failure, reader.close)
        expecting_failure(lambda: check_part(reader.read_at(chunks(7), 50), 7))
        expecting_failure(lambda: tee.fill(DESC, origin.source))


def check_part(got: bytes, chunk: int) -> None:
    assert got == DATA[chunks(chunk) :][:50]


def expecting_failure(work: Callable[[], object]) -> None:
    try:
        work()
    except BlobteeError as error:
        assert isinstance(error, (StorageFull, StorageError)), error  # noqa: PT017


def litter(root: Path) -> list[str]:
    return [str(path) for name in ("partial", "digests", "index") for path in (root / name).glob("*/*")]


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_a_disk_that_fails_anywhere(call: str, once: bool, memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "CHECKPOINT_NBYTES", chunks(3))
    monkeypatch.setattr(partial, "CHECKPOINT_PAUSE", 0)
    for after in itertools.count():
        disk = Disk(call, after, NUMBERS[after % 2], once=once)
        with LocalStore(memory_path / str(after)) as store:
            with disk.attached(monkeypatch):
                use(store, Origin(DATA, piece=30_000))
            tee = Tee(store)
            origin = Origin(DATA)
            for trust in (Trust.RAW, Trust.STREAMED, Trust.BLOB):
                with tee.reader_at(DESC, origin.source, trust) as reader:
                    assert reader.read_at(0, len(DATA)) == DATA
            tee.fill(DESC, origin.source)
            tee.close()
            assert [info.digest for info in store.walk()] == [DESC.digest]
            with store.reader_at(DESC) as committed:
                assert committed.read_at(0, len(DATA)) == DATA
            CacheManager(store).collect(grace=0)
            assert not litter(store.root)
            assert not [name for name in os.listdir(store.root) if name.endswith(".new")]
        if not disk.failed:
            break
    assert after > 0, f"nothing calls {call}"


@pytest.mark.parametrize("call", ["open", "pwrite", "ftruncate", "fsync", "replace", "mkdir"])
@pytest.mark.parametrize("what", ["digests", "index"])
def test_a_side_file_that_cannot_be_kept_leaves_the_one_before(
    what: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blobs.tar({"a": b"one" * 1000})
    desc = desc_of(data)
    contents = whole.contents(CountingReader(data), mediatypes.OCI_LAYER, lambda entries: entries)

    def keep() -> None:
        if what == "index":
            kept.keep(tmp_path, desc, contents)
        else:
            digests.keep(tmp_path, desc.digest, len(data), bytes(32 * chunks_of(len(data))))

    def load() -> object:
        return kept.load(tmp_path, desc) or digests.ChunkDigests.load(tmp_path, desc.digest, len(data))

    for before in (False, True):
        if before:
            keep()
        for after in itertools.count():
            disk = Disk(call, after, NUMBERS[after % 2], once=False)
            with disk.attached(monkeypatch), suppress(StorageFull, StorageError):
                keep()
            if before:
                assert load() is not None
            names = [name for _, _, files in os.walk(tmp_path) for name in files]
            assert not [name for name in names if name.endswith(".new")]
            if not disk.failed:
                break
