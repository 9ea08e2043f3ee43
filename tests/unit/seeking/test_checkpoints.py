"""Any gzip at random: an index that is made on the way, what it gives, and what it does not take."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.compression import decompress
from blobtee.content import Trust
from blobtee.core import sha256_many
from blobtee.core.gzindex import GzipPoint
from blobtee.errors import BlobteeError, Closed, CorruptData, DigestMismatch, FailedPrecondition, OutOfRange
from blobtee.seeking.checkpoints import Checkpoints, Indexing
from tests.unit.core.support import gzip_header, gzip_stream, mixed
from tests.unit.core.test_gzindex import STREAMS, giant
from tests.unit.seeking.support import CountingReader

TEXT = STREAMS["text, level 6"][0]
BLOB = gzip.compress(TEXT[:700_000], 6) + gzip_stream(
    TEXT[700_000:], gzip_header(extra=b"x" * 999, name=b"name", comment=b"note", checksum=True)
)


class Dribble(io.RawIOBase):
    """Few bytes at a time, never the same number."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self._draw = random.Random(3)

    def read(self, n: int = -1) -> bytes:
        return self._data.read(self._draw.randint(1, 5000))


def indexed(data: bytes, spacing: int = 60_000, source: Callable[[bytes], io.IOBase] = io.BytesIO) -> Checkpoints:
    with Indexing(source(data), spacing) as stream, decompress(io.BytesIO(data)) as reference:
        assert stream.readall() == reference.readall()
        assert stream.read(1) == b""
        found = stream.checkpoints()
    assert found is not None
    return found


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("source", [io.BytesIO, Dribble])
def test_every_kind_of_stream_is_read_from_its_points(name: str, source: Callable[[bytes], io.IOBase]) -> None:
    plain, packed = STREAMS[name]
    stream = indexed(packed, source=source)
    assert (stream.size, stream.proof) == (len(plain), Trust.BLOB)
    reader = CountingReader(packed, Trust.RAW)
    assert stream.read_at(reader, 0, len(plain)) == plain
    for number, point in enumerate(stream.points):
        span = stream.table[number]
        assert sha256_many([packed[span.packed_at : span.packed_at + span.packed_nbytes]]) == [point.digest]
    draw = random.Random(1)
    for _ in range(20):
        offset, n = draw.randrange(len(plain)), draw.choice([1, 100, 70_000, 200_000])
        assert stream.read_at(reader, offset, n) == plain[offset : offset + n]


def test_only_the_spans_that_are_needed_are_read() -> None:
    stream = indexed(BLOB)
    reader = CountingReader(BLOB, Trust.RAW)
    # a file that lies across three spans
    borders = [stream.table[number].at for number in range(5, 9)]
    offset, n = borders[0] + 100, borders[2] + 100 - borders[0]
    assert stream.read_at(reader, offset, n) == TEXT[offset : offset + n]
    (extent,) = stream.extents(offset, n)
    assert reader.reads == [(extent.start, extent.end - extent.start)]
    first, last = stream.table[5], stream.table[7]
    assert (extent.start, extent.end) == (first.packed_at, last.packed_at + last.packed_nbytes)
    assert reader.nbytes < len(BLOB) // 5
    with pytest.raises(OutOfRange):
        stream.open(reader, len(TEXT) + 1)
    assert stream.read_at(reader, len(TEXT), 10) == b""


def test_spans_are_all_of_the_blob_one_after_another() -> None:
    for _, packed in STREAMS.values():
        stream = indexed(packed)
        spans = [stream.table[number] for number in range(len(stream.table))]
        assert spans[0].packed_at == 0
        assert all(one.packed_at + one.packed_nbytes == other.packed_at for one, other in pairwise(spans))
        assert spans[-1].packed_at + spans[-1].packed_nbytes == len(packed)


def test_a_wrong_byte_anywhere_is_told_and_the_rest_is_read() -> None:
    stream = indexed(BLOB)
    draw = random.Random(2)
    for _ in range(30):
        at = draw.randrange(len(BLOB))
        wrong = bytearray(BLOB)
        wrong[at] ^= 1 << draw.randrange(8)
        reader = CountingReader(bytes(wrong), Trust.RAW)
        for number in range(len(stream.points)):
            span = stream.table[number]
            if span.packed_at <= at < span.packed_at + span.packed_nbytes:
                with pytest.raises(DigestMismatch):
                    stream.read_at(reader, span.at, span.nbytes)
            else:
                assert stream.read_at(reader, span.at, span.nbytes) == TEXT[span.at : span.at + span.nbytes]
    with pytest.raises(CorruptData, match="ends within"):
        stream.read_at(CountingReader(BLOB[:-1], Trust.RAW), len(TEXT) - 1, 1)


def changed(stream: Checkpoints, number: int, **values: Any) -> Checkpoints:
    points = list(stream.points)
    own = {name: values.pop(name) for name in ("window", "digest") if name in values}
    points[number] = points[number]._replace(bare=replace(points[number].bare, **values), **own)
    return Checkpoints(points, stream.size, stream.packed_end)


def test_crc_and_length_hold_even_for_who_has_the_digest() -> None:
    stream = indexed(BLOB)
    last = len(stream.points) - 1
    span = stream.table[last]
    for at in (-8, -4):
        wrong = bytearray(BLOB)
        wrong[at] ^= 1
        (digest,) = sha256_many([memoryview(wrong)[span.packed_at :]])
        lying = changed(stream, last, digest=digest)
        with pytest.raises(CorruptData, match="CRC-32" if at == -8 else "length"):
            lying.read_at(CountingReader(bytes(wrong)), span.at, 1)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_index_that_lies_gives_nothing_that_is_wrong(data: st.DataObject) -> None:
    stream = indexed(BLOB)
    number = data.draw(st.integers(0, len(stream.points) - 1))
    field = data.draw(st.sampled_from([field.name for field in fields(GzipPoint)]))
    value: Any = getattr(stream.points[number] if field == "window" else stream.points[number].bare, field)
    if isinstance(value, int):
        value = data.draw(st.integers(-5, 300) | st.integers(0, 1 << 64) | st.sampled_from([value + 1, value - 1]))
    else:
        value = data.draw(st.binary(max_size=300) | st.sampled_from([b"", stream.points[3].window]))
    reader = CountingReader(BLOB)
    try:
        lying = changed(stream, number, **{field: value})
        for near in (number - 1, number):
            span = lying.table[max(0, near)]
            got = lying.read_at(reader, span.at, span.nbytes)
            if field != "at":
                assert got == TEXT[span.at : span.at + span.nbytes]
    except BlobteeError as error:
        assert isinstance(error, (CorruptData, DigestMismatch)) or "limit" in str(error)  # noqa: PT017


def test_zeros_behind_the_last_member_are_no_part_of_it() -> None:
    for zeros in (1, 100, 1 << 20, 9 << 20):
        stream = indexed(BLOB + bytes(zeros))
        reader = CountingReader(BLOB + bytes(zeros))
        assert stream.read_at(reader, 0, len(TEXT)) == TEXT
        assert len(BLOB) <= stream.packed_end <= len(BLOB) + min(zeros, 2 << 20)
    # zeros within a member are its own, however many
    plain = bytes(5 << 20) + b"end"
    for level in (0, 9):
        stream = indexed(gzip.compress(plain, level))
        assert stream.packed_end == len(gzip.compress(plain, level))
        assert stream.read_at(CountingReader(gzip.compress(plain, level)), 5 << 20, 3) == b"end"


def test_what_fails_for_others_fails_here_and_stays_so() -> None:
    for data, match in (
        (b"", "too early"),
        (BLOB[:-1], "too early"),
        (BLOB + b"x", "garbage"),
        (BLOB + bytes(2 << 20) + b"x", "garbage"),
        (BLOB[:-8] + bytes(4) + BLOB[-4:], "CRC-32"),
        (b"no gzip", "not a gzip"),
    ):
        stream = Indexing(io.BytesIO(data))
        for _ in range(2):
            with pytest.raises(CorruptData, match=match):
                stream.readall()
        with pytest.raises(FailedPrecondition):
            stream.checkpoints()
        stream.close()
        with pytest.raises(Closed):
            stream.read(1)


def test_a_stream_whose_points_are_too_far_apart_has_no_index() -> None:
    name = b"n" * (65 << 20)
    with Indexing(io.BytesIO(gzip_stream(b"data", gzip_header(name=name)))) as stream:
        assert stream.readall() == b"data"
        assert stream.checkpoints() is None


def test_an_interrupted_stream_stays_failed() -> None:
    class Broken(io.BytesIO):
        def read(self, n: int | None = -1, /) -> bytes:
            raise KeyboardInterrupt

    with Indexing(Broken(BLOB)) as stream:
        with pytest.raises(KeyboardInterrupt):
            stream.read(1)
        with pytest.raises(CorruptData, match="broke off"):
            stream.read(1)


def test_points_that_make_no_index() -> None:
    stream = indexed(BLOB)
    points = list(stream.points)
    for wrong in ([], points[1:], [points[1], points[0]], [points[0], *points[:1:-1]]):
        with pytest.raises(CorruptData):
            Checkpoints(wrong, stream.size, stream.packed_end)
    with pytest.raises(CorruptData):
        Checkpoints(points, points[-1].bare.at - 1, stream.packed_end)
    with pytest.raises(CorruptData):
        Checkpoints(points, stream.size, points[-1].bare.packed_at - 1)
    with pytest.raises(CorruptData):
        changed(stream, 0, packed_at=points[1].bare.packed_at + 1)


def test_much_that_gives_nothing_is_indexed_too() -> None:
    blob = gzip.compress(b"") * 30_000 + gzip.compress(b"something") + gzip.compress(b"") * 30_000
    stream = indexed(blob, 100_000)
    assert len(stream.points) > 5
    assert stream.read_at(CountingReader(blob), 0, 100) == b"something"
    assert sum(extent.end - extent.start for extent in stream.extents(0, 9)) < 200_000


def test_digests_of_spans_longer_than_what_is_held() -> None:
    noise = random.Random(4).randbytes(10 << 20)

    blob = gzip_stream(noise, level=0)
    stream = indexed(blob, 1 << 40)
    assert len(stream.points) == 1
    assert sha256_many([blob]) == [stream.points[0].digest]
    assert stream.read_at(CountingReader(blob), 5 << 20, 10) == noise[5 << 20 : (5 << 20) + 10]


def test_a_giant_block_is_read_from_its_middle() -> None:
    plain = mixed(1_500_000)
    blob = giant(plain, dynamic=True)
    stream = indexed(blob)
    reader = CountingReader(blob)
    assert stream.read_at(reader, 1_000_000, 10) == plain[1_000_000:1_000_010]
    assert reader.nbytes < len(blob) // 4
