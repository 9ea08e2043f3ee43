"""Streams in spans: what is read of the blob for a range, and what is refused."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.content import Trust
from blobtee.errors import Closed, CorruptData, InvalidArgument, OutOfRange, TooLarge
from blobtee.layers import Entry, EntryType, Segment
from blobtee.seeking import MAX_SPAN, Contents, Extent, SpannedStream, SpanTable, joined, spans
from tests.unit.seeking.support import CountingReader


class Deflated(SpannedStream):
    proof = Trust.RAW

    def unpack(self, number: int, packed: memoryview) -> bytes:
        return zlib.decompress(packed)


def made(pieces: list[bytes | int], gap: int = 0) -> tuple[bytes, Deflated, bytes]:
    """A blob of `pieces`, a number being that many zeros without packed bytes; its stream; what it unpacks to."""
    blob = bytearray()
    rows = []
    for piece in pieces:
        if isinstance(piece, int):
            rows.append((piece, 0, 0))
            continue
        blob += bytes(gap)
        packed = zlib.compress(piece)
        rows.append((len(piece), len(blob), len(packed)))
        blob += packed
    whole = b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in pieces)
    return bytes(blob), Deflated(SpanTable(len(blob), rows)), whole


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40) | st.integers(0, 50), max_size=12), st.integers(0, 400), st.integers(0, 400))
def test_any_range_is_what_it_is_in_the_whole_stream(pieces: list[bytes | int], offset: int, n: int) -> None:
    blob, stream, whole = made(pieces)
    reader = CountingReader(blob)
    assert stream.size == len(whole)
    if offset > len(whole):
        with pytest.raises(OutOfRange):
            stream.open(reader, offset, n)
        return
    assert stream.read_at(reader, offset, n) == whole[offset : offset + n]
    assert len(reader.reads) <= 1, "spans that lie together are read at once"
    wanted = stream.extents(offset, n)
    if reader.reads:
        ((start, nbytes),) = reader.reads
        assert wanted[0].start == start
        assert wanted[-1].end == start + nbytes
    else:
        assert wanted == []


def test_spans_that_are_far_apart_are_read_apart_and_near_ones_together() -> None:
    far, stream, whole = made([b"one", b"two"], gap=100_000)
    reader = CountingReader(far)
    assert stream.read_at(reader, 0, 6) == whole
    assert len(reader.reads) == 2
    near, stream, whole = made([b"one", 5, b"two"], gap=10)
    reader = CountingReader(near)
    assert stream.read_at(reader, 1, 9) == whole[1:10]
    assert len(reader.reads) == 1


def test_a_long_range_is_read_in_pieces_that_memory_can_bear() -> None:
    noise = bytes(range(256)) * 4096
    blob = noise * 12

    class Stored(SpannedStream):
        proof = Trust.RAW

        def unpack(self, number: int, packed: memoryview) -> memoryview:
            return packed

    stream = Stored(SpanTable(len(blob), [(len(noise), k * len(noise), len(noise)) for k in range(12)]))
    reader = CountingReader(blob)
    assert stream.read_at(reader, 5, len(blob)) == blob[5:]
    assert [nbytes for _, nbytes in reader.reads] == [4 << 20] * 3


def test_a_file_that_takes_gigabytes_of_the_layer_for_each_byte_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class First(SpannedStream):
        proof = Trust.RAW

        def unpack(self, number: int, packed: memoryview) -> memoryview:
            return packed[:1]

    blob = bytes(10_000)
    stream = First(SpanTable(len(blob), [(1, 0, len(blob))] * 100))
    assert stream.read_at(CountingReader(blob), 0, 100) == bytes(100)
    monkeypatch.setattr(spans, "MAX_IN_VAIN", 50_000)
    assert stream.read_at(CountingReader(blob), 0, 5) == bytes(5)
    reader = CountingReader(blob)
    with pytest.raises(CorruptData, match="many times"):
        stream.read_at(reader, 0, 100)
    assert reader.nbytes <= 60_000


def test_numbers_that_make_no_sense_are_refused() -> None:
    blob, stream, _ = made([b"abc"])
    with CountingReader(blob) as reader:
        for offset, n in ((-1, 1), (0, -1)):
            with pytest.raises(InvalidArgument):
                stream.open(reader, offset, n)
            with pytest.raises(InvalidArgument):
                stream.extents(offset, n)
    for bad in ((-1, 0, 1), (1, -1, 1), (1, 0, -1), (1, 5, 6), (1 << 70, 0, 0)):
        with pytest.raises(CorruptData):
            SpanTable(10, [bad])
    for large in ((MAX_SPAN + 1, 0, 1), (1, 0, MAX_SPAN + 1)):
        with pytest.raises(TooLarge):
            SpanTable(MAX_SPAN * 2, [large])
    table = SpanTable(10, [(1 << 62, 0, 0)])
    with pytest.raises(CorruptData):
        table.append(1 << 62, 0, 0)


def test_a_span_that_holds_another_length_is_an_error_and_a_closed_file_says_so() -> None:
    packed = zlib.compress(b"abcdef")
    for nbytes in (5, 7):
        stream = Deflated(SpanTable(len(packed), [(nbytes, 0, len(packed))]))
        with pytest.raises(CorruptData, match="where the index says"):
            stream.read_at(CountingReader(packed), 0, 3)
    stream = Deflated(SpanTable(len(packed), [(6, 0, len(packed))]))
    with pytest.raises(CorruptData, match="ends within"):
        stream.read_at(CountingReader(packed[:-1]), 0, 3)
    file = stream.open(CountingReader(packed))
    assert file.read(2) == b"ab"
    file.close()
    with pytest.raises(Closed):
        file.readinto(bytearray(1))


def test_contents_are_as_proven_as_the_less_proven_of_list_and_bytes() -> None:
    blob, stream, _ = made([b"abcdef"])
    for told, through, expected in (
        (Trust.ATTESTED, Trust.BLOB, Trust.ATTESTED),
        (Trust.BLOB, Trust.BLOB, Trust.BLOB),
        (Trust.BLOB, Trust.RAW, Trust.RAW),
    ):
        assert Contents([], stream, told).trust(through) is expected
    stream.proof = Trust.ATTESTED
    assert Contents([], stream, Trust.ATTESTED).trust(Trust.RAW) is Trust.ATTESTED
    assert stream.trust(Trust.BLOB) is Trust.BLOB
    hole = Entry("f", EntryType.FILE, 9, 0, 0, 0, 0, "", 1, sparse=(Segment(2, 3), Segment(8, 1)))
    contents = Contents([hole], stream, Trust.BLOB)
    with contents.open(CountingReader(blob), hole) as file:
        assert file.readall() == b"\0\0bcd\0\0\0e"
    assert contents.extents([hole]) == [Extent(0, len(blob))]
    directory = Entry("d", EntryType.DIRECTORY, 0, 0, 0, 0, 0, "", 0)
    assert contents.extents([directory]) == []
    with pytest.raises(InvalidArgument):
        contents.open(CountingReader(blob), directory)


def test_extents_are_joined_in_order() -> None:
    some = [Extent(10, 20), Extent(0, 5), Extent(5, 7), Extent(30, 30), Extent(18, 25), Extent(11, 12)]
    assert joined(some) == [Extent(0, 7), Extent(10, 25)]
    assert joined(some, gap=3) == [Extent(0, 25)]
