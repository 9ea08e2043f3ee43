"""Reading a blob of which not everything is here yet."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from blobtee.content.api import ReaderAt
from blobtee.content.trust import Trust
from blobtee.errors import Closed, InvalidArgument
from blobtee.tee.map import CHUNK, chunks_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from blobtee.tee.blob import Blob

WINDOW_MIN, WINDOW_MAX = 256 << 10, 8 << 20
"""Bytes that are asked for ahead of who reads in order, doubled each time."""


class TeeReader(ReaderAt):
    """Brings what is read, when it is read, and keeps it. Opening asks nothing of anybody.

    With `Trust.BLOB` (and `ATTESTED`, which at this height is the same) the first read has the blob filled and checked
    whole, unless digests of its chunks were kept from an earlier time: then the chunks that are needed come, and each
    is checked. With `STREAMED` the fill is begun, and bytes are given as they come, but for the last chunk. With `RAW`
    the chunks that are needed come, and are given as they are.

    Any read may raise what the source does: `Unauthenticated`, `PermissionDenied`, `LazyUnavailable` when nobody can
    bring it now, `DigestMismatch`, `SizeMismatch`; and `StorageFull`, `StorageError`, `Cancelled`. After any of these
    the reader can be used again, but for `DigestMismatch` of the whole: all that came is gone then, and the reader
    keeps failing.
    """

    def __init__(self, open_blob: Callable[[], Blob], size: int, trust: Trust) -> None:
        self.size = size
        self.trust = trust
        self._open_blob = open_blob
        self._lock = threading.Lock()
        self._blob: Blob | None = None
        self._closed = False
        # What small reads look at, and nothing else: they ask nobody, take no lock and switch no thread.
        self._warm: bytearray | bytes = b""
        self._mapping: mmap.mmap | None = None
        # Who reads in order comes, with the next read that is not small and warm, to a chunk in here.
        self._expected = 1, 0
        self._window = 0

    def read_at(self, offset: int, n: int) -> bytes:
        try:
            warm = self._warm
            end = offset + n
            if 0 < n <= CHUNK and offset >= 0 and end <= self.size and warm[offset >> 16] and warm[(end - 1) >> 16]:
                return self._mapping[offset:end]  # type: ignore[index]
        except (IndexError, TypeError):
            pass  # closed, not open yet, or near the end
        return super().read_at(offset, n)

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        blob = self._opened()
        self._check(offset)
        with memoryview(buffer) as given, given.cast("B") as flat, flat[: self.size - offset] as view:
            if not view.nbytes:
                return 0
            first, last = offset // CHUNK, chunks_of(offset + view.nbytes)
            reader = blob.bring(first, last, self.trust, self._ahead(first, last))
            if reader is not None:
                return reader.readinto_at(offset, view)
            blob.partial.readinto(offset, view)
            if view.nbytes <= CHUNK:
                for chunk in range(first, last):
                    blob.partial.warm_up(chunk)
                self._speed_up(blob)
            return view.nbytes

    def close(self) -> None:
        with self._lock:
            self._closed = True
            blob, self._blob = self._blob, None
            self._warm = b""
            self._mapping = None
        if blob is not None:
            blob.release()

    def _opened(self) -> Blob:
        with self._lock:
            if self._closed:
                raise Closed("the reader is closed")
            if self._blob is None:
                self._blob = self._open_blob()
            return self._blob

    def _speed_up(self, blob: Blob) -> None:
        """Let small reads of warm chunks go by the mapping, where all of them are as proven as this reader wants."""
        if self._warm or not (blob.partial.proven or self.trust is Trust.RAW):
            return
        with self._lock:
            if not self._closed:
                self._mapping = blob.partial.mapping
                self._warm = blob.partial.warm

    def _ahead(self, first: int, last: int) -> int:
        """Bytes to ask for behind the chunks: none for who jumps about, a growing window for who reads in order."""
        begin, end = self._expected
        in_order = begin <= first <= end
        self._window = min(max(2 * self._window, WINDOW_MIN), WINDOW_MAX) if in_order else 0
        self._expected = last - 1, last + self._window // CHUNK
        return self._window


class EmptyReader(ReaderAt):
    """The blob without bytes: nobody has to be asked for it."""

    size = 0

    def __init__(self) -> None:
        self._closed = False

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        if self._closed:
            raise Closed("the reader is closed")
        if offset < 0:
            raise InvalidArgument(f"negative offset {offset}")
        self._check(offset)
        return 0

    def close(self) -> None:
        self._closed = True
