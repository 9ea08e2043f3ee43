"""Blobs that give no place to begin at: whatever is wanted, they are unpacked from their start."""

from __future__ import annotations

import io

from blobtee.compression import decompress
from blobtee.content import ReaderAt, Trust
from blobtee.errors import CorruptData
from blobtee.seeking.api import Extent, Unpacked
from blobtee.seeking.bounded import BoundedFile
from blobtee.tasks import check

_SKIP = 1 << 20


class Streamed(Unpacked):
    """Any layer that `compression.decompress` knows, as slow as that is."""

    proof = Trust.RAW

    def __init__(self, blob_nbytes: int, size: int, media_type: str) -> None:
        """`size` is what the blob unpacks to, as far as anything is to be read of it."""
        self._blob_nbytes = blob_nbytes
        self._media_type = media_type
        self.size = size

    def extents(self, offset: int, n: int) -> list[Extent]:
        start, end = self.clip(offset, n)
        return [Extent(0, self._blob_nbytes)] if start < end else []

    def open(self, reader: ReaderAt, offset: int = 0, n: int | None = None) -> io.RawIOBase:
        start, end = self.clip(offset, n)
        return _Tail(decompress(reader.open(), self._media_type), start, end - start)


class _Tail(BoundedFile):
    """`nbytes` bytes of `stream`, which are `ahead` bytes away. Closing it closes the stream."""

    def __init__(self, stream: io.RawIOBase, ahead: int, nbytes: int) -> None:
        super().__init__(nbytes)
        self._stream = stream
        self._ahead = ahead

    def _some(self, view: memoryview) -> int:
        self._pass_over()
        return self._stream.readinto(view) or 0

    def _pass_over(self) -> None:
        scratch = memoryview(bytearray(min(self._ahead, _SKIP)))
        while self._ahead:
            check()
            n = self._stream.readinto(scratch[: min(self._ahead, len(scratch))])
            if not n:
                raise CorruptData("the layer ends before the file")
            self._ahead -= n

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
