"""A tar that is not packed: its headers are walked, what lies between them is left where it is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from blobtee.content import ReaderAt, Trust
from blobtee.errors import Closed, CorruptData
from blobtee.layers import Entry, entries
from blobtee.seeking.api import Extent, Unpacked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WALK_NBYTES = 64 << 10
"""Bytes that are read at a header: small files' headers come many at a time so."""


class Plain(Unpacked):
    """The blob itself."""

    proof = Trust.RAW

    def __init__(self, size: int) -> None:
        self.size = size

    def extents(self, offset: int, n: int) -> list[Extent]:
        start, end = self.clip(offset, n)
        return [Extent(start, end)] if start < end else []

    def open(self, reader: ReaderAt, offset: int = 0, n: int | None = None) -> io.RawIOBase:
        start, end = self.clip(offset, n)
        return _Part(reader, start, end)


def walk(reader: ReaderAt) -> Iterator[Entry]:
    """The entries of the tar that the blob is, read in pieces of `WALK_NBYTES` around its headers; errors as for
    `layers.entries`, and those of `reader`."""
    return entries(_Walked(reader, 0, reader.size))


class _Part(io.RawIOBase):
    def __init__(self, reader: ReaderAt, position: int, end: int) -> None:
        super().__init__()
        self._reader = reader
        self._position = position
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the file is closed")
        with memoryview(buffer) as given, given.cast("B") as view:
            wanted = min(len(view), self._end - self._position)
            if not wanted:
                return 0
            with view[:wanted] as part:
                n = self._reader.readinto_at(self._position, part)
        if n < wanted:
            raise CorruptData(f"the blob ends within [{self._position}, {self._end})")
        self._position += n
        return n


class _Walked(_Part):
    def read(self, n: int = -1) -> bytes:
        return super().read(min(n, WALK_NBYTES) if n >= 0 else WALK_NBYTES) or b""

    def skip(self, n: int) -> int:
        skipped = min(n, self._end - self._position)
        self._position += skipped
        return skipped
