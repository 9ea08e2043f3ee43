"""The store in memory: for tests, and for work that needs no disk."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from blobtee.content import filters
from blobtee.content.api import Info, ReaderAt, Status, Writer
from blobtee.content.checks import check_commit, check_total, check_truncation, flat
from blobtee.content.database import Database
from blobtee.content.digester import digest_of, digester
from blobtee.content.ingests import encode_ref
from blobtee.content.labels import checked, merged
from blobtee.errors import AlreadyExists, Closed, NotFound, RefLocked, ResourceExhausted, SizeMismatch
from blobtee.oci import Descriptor, Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer


class MemoryStore:
    """`Store` without a disk: everything is gone when it is closed or forgotten. A context manager.

    `metadata` is the database that other rooms keep their tables in, in memory like the rest.
    """

    def __init__(self) -> None:
        self.metadata = Database(None)
        self._lock = threading.Lock()
        self._blobs: dict[Digest, tuple[Info, bytearray]] = {}
        self._ingests: dict[str, _Ingest] = {}
        self._closed = False

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        info, data = self._find(desc.digest)
        if desc.size >= 0 and desc.size != info.size:
            raise SizeMismatch(f"blob {info.digest}", desc.size, info.size)
        return _MemoryReader(data)

    def info(self, digest: str) -> Info:
        return self._find(digest)[0]

    def update(self, digest: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        with self._lock:
            before, data = self._find(digest)
            after = dataclasses.replace(
                before,
                updated_at=max(time.time_ns(), before.updated_at + 1),
                labels=merged({} if replace else before.labels, labels),
            )
            self._blobs[after.digest] = after, data
        return after

    def walk(self, *filters_: str) -> Iterator[Info]:
        """See `Manager`; in the order of their coming, as of the call."""
        self._check_open()
        matches = filters.parse(filters_)
        with self._lock:
            infos = [info for info, _ in self._blobs.values()]
        return (info for info in infos if matches(filters.blob_fields(info.digest, info.labels)))

    def delete(self, digest: str) -> None:
        with self._lock:
            info, _ = self._find(digest)
            del self._blobs[info.digest]

    def discard(self, digest: str) -> bool:
        """As `delete`; False when the blob is not there."""
        try:
            self.delete(digest)
        except NotFound:
            return False
        return True

    def is_locked(self, ref: str) -> bool:
        """Whether the ingest is being written."""
        with self._lock:
            ingest = self._ingests.get(ref)
        return ingest is not None and ingest.locked

    def writer(self, ref: str, *, total: int = 0, expected: str | None = None) -> Writer:
        self._check_open()
        encode_ref(ref)
        with self._lock:
            ingest = self._ingests.get(ref)
            if ingest is not None and ingest.locked:
                raise RefLocked(f"ingest {ref[:200]!r} is being written by somebody else")
            check_total(total)
            digest = Digest(expected) if expected else None
            if digest is not None and digest in self._blobs:
                self._ingests.pop(ref, None)
                raise AlreadyExists(f"blob {digest} is in the store already")
            now = time.time_ns()
            if ingest is None or (total and ingest.status.total and total != ingest.status.total):
                ingest = _Ingest(Status(ref, 0, total, digest, now, now))
            else:
                ingest.status = dataclasses.replace(ingest.status, total=total or ingest.status.total, expected=digest)
            ingest.locked = True
            self._ingests[ref] = ingest
        return _MemoryWriter(self, ingest)

    def status(self, ref: str) -> Status:
        self._check_open()
        with self._lock:
            ingest = self._ingests.get(ref)
        if ingest is None:
            raise NotFound(f"no ingest {ref[:200]!r}")
        return ingest.status

    def statuses(self, *filters_: str) -> list[Status]:
        self._check_open()
        matches = filters.parse(filters_)
        with self._lock:
            found = [ingest.status for ingest in self._ingests.values()]
        return [status for status in found if matches(filters.ingest_fields(status.ref))]

    def abort(self, ref: str) -> None:
        self._check_open()
        with self._lock:
            ingest = self._ingests.get(ref)
            if ingest is not None and ingest.locked:
                raise RefLocked(f"ingest {ref[:200]!r} is being written")
            self._ingests.pop(ref, None)

    def close(self) -> None:
        self._closed = True
        self.metadata.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, digest: str) -> tuple[Info, bytearray]:
        self._check_open()
        try:
            return self._blobs[Digest(digest)]
        except KeyError:
            raise NotFound(f"no blob {digest} in memory") from None

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the store is closed")

    def _commit(self, ingest: _Ingest, digest: Digest, labels: Mapping[str, str]) -> Info:
        with self._lock:
            self._check_open()
            del self._ingests[ingest.status.ref]
            if digest in self._blobs:
                raise AlreadyExists(f"blob {digest} is in the store already")
            now = time.time_ns()
            info = Info(digest, ingest.status.offset, now, now, labels)
            self._blobs[digest] = info, ingest.data
        return info


class _Ingest:
    def __init__(self, status: Status) -> None:
        self.status = status
        self.data = bytearray()
        self.locked = False


class _MemoryReader(ReaderAt):
    def __init__(self, data: bytearray) -> None:
        self.size = len(data)
        self._data: bytearray | None = data

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        data = self._data
        if data is None:
            raise Closed("the reader is closed")
        self._check(offset)
        with memoryview(buffer) as view, view.cast("B") as out, memoryview(data) as source:
            n = min(out.nbytes, self.size - offset)
            out[:n] = source[offset : offset + n]
        return n

    def close(self) -> None:
        self._data = None


class _MemoryWriter(Writer):
    def __init__(self, store: MemoryStore, ingest: _Ingest) -> None:
        self._store = store
        self._ingest = ingest
        expected = ingest.status.expected
        self._algorithm = expected.algorithm if expected is not None else "sha256"
        self._hash = digester(self._algorithm)
        self._hash.update(ingest.data)
        self._open = True

    @property
    def status(self) -> Status:
        return self._ingest.status

    @property
    def digest(self) -> Digest:
        return digest_of(self._algorithm, self._hash)

    def write(self, data: Buffer) -> int:
        self._check_open()
        with flat(data) as view:
            try:
                self._ingest.data += view
            except MemoryError:
                raise ResourceExhausted(f"no memory for {view.nbytes} more bytes of a blob") from None
            self._hash.update(view)
            n = view.nbytes
        if n:
            self._moved()
        return n

    def truncate(self, size: int) -> None:
        self._check_open()
        check_truncation(size, self._ingest.status.offset)
        del self._ingest.data[size:]
        self._hash = digester(self._algorithm)
        self._hash.update(self._ingest.data)
        self._moved()

    def commit(self, size: int = 0, expected: str | None = None, labels: Mapping[str, str] | None = None) -> Info:
        self._check_open()
        try:
            labels = checked(labels)
            digest = check_commit(self._ingest.status, size, expected, self._digest_as)
            return self._store._commit(self._ingest, digest, labels)
        finally:
            self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            # What the opener expects ends with its turn (`spec/content.md` section 2, Write).
            self._ingest.status = dataclasses.replace(self._ingest.status, expected=None)
            self._ingest.locked = False

    def _digest_as(self, algorithm: str) -> Digest:
        if algorithm == self._algorithm:
            return self.digest
        hashed = digester(algorithm)
        hashed.update(self._ingest.data)
        return digest_of(algorithm, hashed)

    def _moved(self) -> None:
        status = self._ingest.status
        self._ingest.status = dataclasses.replace(
            status, offset=len(self._ingest.data), updated_at=max(time.time_ns(), status.updated_at)
        )

    def _check_open(self) -> None:
        if not self._open:
            raise Closed(f"the writer of {self._ingest.status.ref[:200]!r} is closed")
        self._store._check_open()
