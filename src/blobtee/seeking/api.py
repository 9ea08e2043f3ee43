"""What a layer's blob unpacks to, at random, and the files in it.

An index holds no reader, so it can be kept while readers come and go: whoever reads brings one.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blobtee.content import ReaderAt, Trust
from blobtee.errors import InvalidArgument, OutOfRange
from blobtee.layers import Entry, EntryType, ExpandedFile


class Extent(NamedTuple):
    """The bytes [start, end) of a blob."""

    start: int
    end: int


class Unpacked(ABC):
    """How to come by any part of what a blob unpacks to, by reading little more of the blob than that part.

    Offsets are those of the tar, for formats that know it. A table of contents does not say where in the tar a file
    lies: then the stream is the files' contents, one after another. Immutable and thread-safe.
    """

    size: int
    """Bytes of the stream."""

    proof: Trust
    """How far the index proves what is read with it, whoever sends the bytes: `ATTESTED` when each has a digest that
    leads to the manifest, `BLOB` when the digests were made here of a checked blob, `RAW` when there are none."""

    @abstractmethod
    def extents(self, offset: int, n: int) -> list[Extent]:
        """What of the blob is read for the bytes [offset, offset + n): ascending, none overlaps another. Nothing is
        read. `InvalidArgument` and `OutOfRange` as for `open`."""

    @abstractmethod
    def open(self, reader: ReaderAt, offset: int = 0, n: int | None = None) -> io.RawIOBase:
        """The bytes [offset, offset + n), fewer only at the end, as a file to be read once and in order.

        Until the end when `n` is None. It reads of `reader` as it is read, in as few and as large pieces as memory
        allows, and does not own it. `InvalidArgument`: a negative number; `OutOfRange`: an offset past `size`. Reading
        raises `CorruptData` and `DigestMismatch` for bytes that are not what the index says, and what `reader` does.
        """

    def read_at(self, reader: ReaderAt, offset: int, n: int) -> bytes:
        """The bytes [offset, offset + n), fewer only at the end. Errors as for `open`."""
        with self.open(reader, offset, n) as stream:
            return stream.readall()

    def trust(self, given: Trust) -> Trust:
        """How far bytes are proven that come through a reader of trust `given`."""
        return max(given, self.proof, key=lambda trust: trust.rank)

    def clip(self, offset: int, n: int | None) -> tuple[int, int]:
        """Begin and end of what is asked for, within the stream; the errors of `open`."""
        if offset < 0 or (n is not None and n < 0):
            raise InvalidArgument(f"cannot read {n} bytes at {offset}")
        if offset > self.size:
            raise OutOfRange(f"offset {offset} is past the end of a stream of {self.size} bytes")
        return offset, self.size if n is None else min(self.size, offset + n)


@dataclass(frozen=True)
class Contents:
    """The files of a layer: `entries` in the order of the tar, their offsets being those of `stream`.

    `told` is how far the entries are proven: `ATTESTED` when a table of contents told them, else the trust of the
    reader that the tar's own headers came through, or `BLOB` for a list that was made here of a checked blob.
    """

    entries: Sequence[Entry]
    stream: Unpacked
    told: Trust

    def trust(self, given: Trust) -> Trust:
        """How far a file's content is proven that is read through a reader of trust `given`."""
        return min(self.told, self.stream.trust(given), key=lambda trust: trust.rank)

    def open(self, reader: ReaderAt, entry: Entry) -> io.RawIOBase:
        """The content of a file of this layer, holes filled, as a file to be read once and in order; see
        `Unpacked.open`. `InvalidArgument` for what is no file."""
        if entry.type is not EntryType.FILE:
            raise InvalidArgument(f"{entry.path[:200]} is a {entry.type.value}, not a file")
        stream = self.stream.open(reader, entry.offset, stored_nbytes(entry))
        return stream if entry.sparse is None else ExpandedFile(stream, entry.sparse, entry.size)

    def extents(self, files: Iterable[Entry], *, gap: int = 0) -> list[Extent]:
        """What of the blob the contents of `files` are made of, ascending; extents that are at most `gap` bytes apart
        are one."""
        wanted = [
            extent
            for entry in files
            if entry.type is EntryType.FILE
            for extent in self.stream.extents(entry.offset, stored_nbytes(entry))
        ]
        return joined(wanted, gap)


def stored_nbytes(entry: Entry) -> int:
    """Bytes of the file's content that the tar has; holes are left out."""
    return entry.size if entry.sparse is None else sum(segment.length for segment in entry.sparse)


def joined(extents: Iterable[Extent], gap: int = 0) -> list[Extent]:
    """The same bytes in as few extents as can be, ascending; those that are at most `gap` bytes apart become one."""
    found: list[Extent] = []
    for extent in sorted(extents):
        if extent.start == extent.end:
            continue
        if found and extent.start - found[-1].end <= gap:
            found[-1] = Extent(found[-1].start, max(found[-1].end, extent.end))
        else:
            found.append(extent)
    return found
