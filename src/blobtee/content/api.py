"""The store in small protocols, and the base of every reader.

The cut is containerd's (`core/content`): who only reads asks for a `Provider`, who only writes for an `Ingester`.
Offsets and sizes are bytes, ranges are half-open.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from blobtee.content.trust import Trust
from blobtee.errors import Closed, InvalidArgument, OutOfRange
from blobtee.oci import Descriptor, Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer


class ReaderAt(ABC):
    """Random access to one blob. Thread-safe: reads carry their offset, there is no position.

    Implementations give `size`, `readinto_at` and `close`; the rest follows. Reading a closed reader raises `Closed`.
    """

    size: int
    trust: Trust = Trust.BLOB
    """How far the bytes are proven. Readers of stores: whole, when the blob was committed."""

    @abstractmethod
    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        """Fill `buffer` with the bytes from `offset` on; return how many there were.

        Less than the buffer's length means the end of the blob and nothing else: a source that breaks off raises.
        At `size` the answer is 0, past it `OutOfRange`; a negative offset is `InvalidArgument`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what the reader holds. A second call does nothing."""

    def read_at(self, offset: int, n: int) -> bytes:
        """The bytes [offset, offset + n), fewer only at the end of the blob. Errors as for `readinto_at`."""
        if n < 0:
            raise InvalidArgument(f"cannot read {n} bytes")
        buffer = bytearray(max(0, min(n, self.size - offset)) if offset >= 0 else 0)
        filled = self.readinto_at(offset, buffer)
        del buffer[filled:]
        return bytes(buffer)

    def open(self, offset: int = 0) -> io.RawIOBase:
        """A seekable file over the same blob, positioned at `offset`, for what wants a file or reads in order.

        It does not own the reader: close both, the file first. Several may be open; each is for one thread.
        """
        file = ReaderFile(self)
        file.seek(offset)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int) -> None:
        """Refuse the offsets that `readinto_at` documents."""
        if offset < 0:
            raise InvalidArgument(f"negative offset {offset}")
        if offset > self.size:
            raise OutOfRange(f"offset {offset} is past the end of a blob of {self.size} bytes")


class ReaderFile(io.RawIOBase):
    """`ReaderAt` as a raw file. Seeking past the end is allowed, reading there gives nothing, as for any file."""

    def __init__(self, reader: ReaderAt) -> None:
        super().__init__()
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.closed:
            raise Closed("the file is closed")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size}.get(whence)
        if base is None or base + offset < 0:
            raise InvalidArgument(f"cannot seek to {offset} from {whence}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the file is closed")
        if self._position >= self._reader.size:
            return 0
        n = self._reader.readinto_at(self._position, buffer)
        self._position += n
        return n


@dataclass(frozen=True)
class Info:
    """What a store knows of a committed blob. Times are nanoseconds since the epoch."""

    digest: Digest
    size: int
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """An ingest: `offset` bytes of `total` (0 when unknown) are there. Times are nanoseconds since the epoch.

    `expected` is the digest that the opener announced, if any.
    """

    ref: str
    offset: int
    total: int = 0
    expected: Digest | None = None
    started_at: int = 0
    updated_at: int = 0


@runtime_checkable
class Provider(Protocol):
    """Brings bytes of blobs."""

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        """Open a blob for reading; the caller closes it. `NotFound` when it is not to be had here.

        Only `desc.digest` names the blob; a `desc.size` that is known to be wrong is `SizeMismatch`. A negative one
        says that the caller does not know it.
        """
        ...


@runtime_checkable
class PartialProvider(Protocol):
    """A `Provider` that need not have a blob whole to read some of it."""

    def reader_at(self, desc: Descriptor, trust: Trust = Trust.BLOB) -> ReaderAt:
        """As `Provider.reader_at`; the reader's bytes satisfy `trust`, and `ReaderAt.trust` says how far they are
        proven."""
        ...


@runtime_checkable
class InfoProvider(Protocol):
    def info(self, digest: str) -> Info:
        """What is known of a blob, without reading it; `NotFound`."""
        ...


class Writer(ABC):
    """One ingest, open and locked. For one thread at a time. Leaving its `with` block closes it, uncommitted or not."""

    @property
    @abstractmethod
    def status(self) -> Status: ...

    @property
    @abstractmethod
    def digest(self) -> Digest:
        """Digest of what has been written so far."""

    @abstractmethod
    def write(self, data: Buffer) -> int:
        """Append all of `data` and return its length. `StorageFull`, `StorageError`: what was there before stays."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Drop what was written from `size` on. Only 0 is promised by every store."""

    @abstractmethod
    def commit(self, size: int = 0, expected: str | None = None, labels: Mapping[str, str] | None = None) -> Info:
        """Make the bytes a blob, durably, and close.

        `size` (0: unchecked) and `expected` (None: what the opener announced) are compared first: `SizeMismatch` and
        `DigestMismatch` unlock the ref and keep the data, resumable. `AlreadyExists`: the blob is there, the ingest is
        gone, and `labels` are left alone. With `labels`, they are the blob's labels from its first moment on.
        """

    @abstractmethod
    def close(self) -> None:
        """Unlock the ref; the data stays and can be resumed. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Ingester(Protocol):
    def writer(self, ref: str, *, total: int = 0, expected: str | None = None) -> Writer:
        """Open or resume the ingest named `ref`; any text, at most one writer at a time.

        In this order: `RefLocked` when somebody writes it; `InvalidDigest`; `AlreadyExists` when `expected` is in the
        store. A resumed ingest keeps its bytes (see `Writer.status.offset`) unless `total` is non-zero and differs
        from its former one: then it starts at 0.
        """
        ...


class IngestManager(Protocol):
    def status(self, ref: str) -> Status:
        """State of an ingest, locked or not; `NotFound`."""
        ...

    def statuses(self, *filters: str) -> list[Status]:
        """All ingests that match one of `filters` (see `content.filters`). A broken one is left out, never an error."""
        ...

    def abort(self, ref: str) -> None:
        """Remove an ingest. One that is not there is no error; an open writer of it is `RefLocked`."""
        ...


class Manager(InfoProvider, Protocol):
    def update(self, digest: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        """Set `labels` (None or an empty value removes one), or exactly `labels` with `replace`. `NotFound`."""
        ...

    def walk(self, *filters: str) -> Iterator[Info]:
        """Every blob that matches one of `filters`, all without any. No lock is held between two of them."""
        ...

    def delete(self, digest: str) -> None:
        """Remove a blob; `NotFound`. Readers that are open read on to the end."""
        ...


@runtime_checkable
class Store(Provider, Manager, Ingester, IngestManager, Protocol):
    """All of it. Context manager; thread-safe."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def total_size(descriptors: Sequence[Descriptor]) -> int:
    """Bytes of all `descriptors`, each digest counted once."""
    return sum({desc.digest: desc.size for desc in descriptors}.values())
