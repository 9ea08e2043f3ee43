"""Streams in spans: pieces that can be unpacked each by itself, at known places of the blob."""

from __future__ import annotations

import io
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blobtee.content import ReaderAt
from blobtee.errors import CorruptData, TooLarge
from blobtee.seeking.api import Extent, Unpacked, joined
from blobtee.seeking.bounded import BoundedFile
from blobtee.tasks import check

MAX_SPAN = 64 << 20
"""Bytes of one span, packed or not: it is in memory whole while it is read."""

MAX_IN_VAIN = 4 << 30
"""Bytes that are read, or unpacked, for one file beyond four times its own: a table may have each byte of a file in
64 MiB that are all to be unpacked for it."""

_READ_NBYTES = 4 << 20
"""Packed bytes that are asked for at once."""
_GAP = 64 << 10
"""Packed bytes between two spans that are rather read in vain than left out."""


class Span(NamedTuple):
    """`nbytes` bytes of the stream from `at` on, unpacked of the blob's [packed_at, packed_at + packed_nbytes)."""

    at: int
    nbytes: int
    packed_at: int
    packed_nbytes: int


class SpanTable:
    """Where spans are: 32 bytes of memory each. Each begins where the one before ended, the first at 0."""

    def __init__(self, blob_nbytes: int, spans: Iterable[tuple[int, int, int]] = ()) -> None:
        """`spans` are `nbytes`, `packed_at`, `packed_nbytes` of each, in order; errors as for `append`."""
        self._blob_nbytes = blob_nbytes
        self._at = array("q")
        self._nbytes = array("q")
        self._packed_at = array("q")
        self._packed_nbytes = array("q")
        self.size = 0
        for nbytes, packed_at, packed_nbytes in spans:
            self.append(nbytes, packed_at, packed_nbytes)

    def append(self, nbytes: int, packed_at: int, packed_nbytes: int) -> None:
        """The next span. `CorruptData` for one that is not within the blob; `TooLarge` beyond `MAX_SPAN`."""
        if nbytes < 0 or packed_at < 0 or packed_nbytes < 0 or packed_at + packed_nbytes > self._blob_nbytes:
            raise CorruptData(
                f"an index with a span of {nbytes} bytes in [{packed_at}, {packed_at + packed_nbytes}) of a blob of"
                f" {self._blob_nbytes}"
            )
        if (nbytes > MAX_SPAN and packed_nbytes) or packed_nbytes > MAX_SPAN:
            raise TooLarge(f"an index with a span of {max(nbytes, packed_nbytes)} bytes; the limit is {MAX_SPAN}")
        if self.size + nbytes >= 1 << 63:
            raise CorruptData("an index of a stream that is longer than numbers can say")
        self._at.append(self.size)
        self._nbytes.append(nbytes)
        self._packed_at.append(packed_at)
        self._packed_nbytes.append(packed_nbytes)
        self.size += nbytes

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, number: int) -> Span:
        return Span(self._at[number], self._nbytes[number], self._packed_at[number], self._packed_nbytes[number])

    def covering(self, start: int, end: int) -> range:
        """The numbers of the spans that have a byte of [start, end), and of no empty ones at its borders."""
        if start >= end:
            return range(0)
        return range(bisect_right(self._at, start) - 1, bisect_right(self._at, end - 1))


class SpannedStream(Unpacked):
    """An `Unpacked` whose index is a table of spans. A span without packed bytes is zeros."""

    def __init__(self, table: SpanTable) -> None:
        self.table = table
        self.size = table.size

    @abstractmethod
    def unpack(self, number: int, packed: memoryview) -> bytes | bytearray | memoryview:
        """The bytes of span `number` of the table: exactly as many as it says, digests checked if there are any.

        `CorruptData`, `DigestMismatch`. In any thread, several at a time. Not called for spans without packed bytes.
        """

    def extents(self, offset: int, n: int) -> list[Extent]:
        start, end = self.clip(offset, n)
        spans = (self.table[number] for number in self.table.covering(start, end))
        return joined(Extent(span.packed_at, span.packed_at + span.packed_nbytes) for span in spans)

    def open(self, reader: ReaderAt, offset: int = 0, n: int | None = None) -> io.RawIOBase:
        start, end = self.clip(offset, n)
        return _SpanFile(self, reader, start, end)


class _SpanFile(BoundedFile):
    def __init__(self, stream: SpannedStream, reader: ReaderAt, start: int, end: int) -> None:
        super().__init__(end - start)
        self._pieces = _pieces(stream, reader, start, end)
        self._piece = memoryview(b"")

    def _some(self, view: memoryview) -> int:
        if not self._piece:
            self._piece = next(self._pieces, memoryview(b""))
        n = min(len(view), len(self._piece))
        view[:n] = self._piece[:n]
        self._piece = self._piece[n:]
        return n

    def close(self) -> None:
        self._piece = memoryview(b"")
        self._pieces = iter(())
        super().close()


_ZEROS = bytes(1 << 20)


def _pieces(stream: SpannedStream, reader: ReaderAt, start: int, end: int) -> Iterator[memoryview]:
    """The bytes [start, end), a span's worth at a time."""
    allowed = MAX_IN_VAIN + 4 * (end - start)
    for batch in _batches(stream.table, stream.table.covering(start, end)):
        check()
        spans = [(number, stream.table[number]) for number in batch]
        packed = [span for _, span in spans if span.packed_nbytes]
        first = min((span.packed_at for span in packed), default=0)
        last = max((span.packed_at + span.packed_nbytes for span in packed), default=0)
        allowed -= last - first
        if allowed < 0:
            raise CorruptData(f"a file of {end - start} bytes that takes many times as many of the layer")
        data = memoryview(reader.read_at(first, last - first) if packed else b"")
        if len(data) < last - first:
            raise CorruptData(f"the blob ends within [{first}, {last})")
        for number, span in spans:
            check()
            begin, until = max(start - span.at, 0), min(end - span.at, span.nbytes)
            if not span.packed_nbytes:
                while begin < until:
                    zeros = memoryview(_ZEROS)[: until - begin]
                    begin += len(zeros)
                    yield zeros
                continue
            at = span.packed_at - first
            piece = memoryview(stream.unpack(number, data[at : at + span.packed_nbytes]))
            if len(piece) != span.nbytes:
                raise CorruptData(f"a span of {len(piece)} bytes where the index says {span.nbytes}")
            if begin < until:
                yield piece[begin:until]


def _batches(table: SpanTable, numbers: range) -> Iterator[list[int]]:
    """Spans that are read of the blob at once: each begins at or after the end of the one before, but not far."""
    batch: list[int] = []
    first = end = 0
    for number in numbers:
        span = table[number]
        if not span.packed_nbytes:
            batch.append(number)
            continue
        near = end <= span.packed_at <= end + _GAP and span.packed_at + span.packed_nbytes - first <= _READ_NBYTES
        if end and not near:
            yield batch
            batch, end = [], 0
        if not end:
            first = span.packed_at
        batch.append(number)
        end = span.packed_at + span.packed_nbytes
    if batch:
        yield batch
