"""A tar that is not packed: its headers are walked, what lies between them is left where it is."""

from __future__ import annotations

import io
from collections.abc import Iterator

from blobtee.content import ReaderAt, Trust
from blobtee.layers import Entry, entries
from blobtee.seeking.api import Extent, Unpacked
from blobtee.seeking.bounded import BoundedFile

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
        return _Part(reader, start, end - start)


def walk(reader: ReaderAt) -> Iterator[Entry]:
    """The entries of the tar that the blob is, read in pieces of `WALK_NBYTES` around its headers; errors as for
    `layers.entries`, and those of `reader`."""
    return entries(_Walked(reader, 0, reader.size))


class _Part(BoundedFile):
    def __init__(self, reader: ReaderAt, position: int, nbytes: int) -> None:
        super().__init__(nbytes)
        self._reader = reader
        self._position = position

    def _some(self, view: memoryview) -> int:
        n = self._reader.readinto_at(self._position, view)
        self._position += n
        return n


class _Walked(_Part):
    def read(self, n: int = -1) -> bytes:
        return super().read(min(n, WALK_NBYTES) if n >= 0 else WALK_NBYTES) or b""

    def skip(self, n: int) -> int:
        skipped = min(n, self._left)
        self._position += skipped
        self._left -= skipped
        return skipped
