"""Points in gzip streams, and inflating from them: every kind of block and member, and what does not get that far."""

from __future__ import annotations

import gzip
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.core import Inflater, gunzip
from blobtee.core.gzindex import GzipPoint, MarkingInflater, resume
from blobtee.errors import CorruptData, FailedPrecondition, InvalidArgument
from tests.unit.core.support import (
    MASKED,
    collide,
    gzip_header,
    gzip_stream,
    gzip_trailer,
    mixed,
    quick,
    thorough,
)

_DRAW = random.Random(7)
TEXT = b"".join(b"%d is %d and %s\n" % (n, n * n, _DRAW.randbytes(n % 40).hex().encode()) for n in range(30_000))
NOISE = _DRAW.randbytes(700_000)


def packed_by(data: bytes, level: int, strategy: int, flush: int | None = None, each: int = 5000) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, 31, 9, strategy)
    if flush is None:
        return deflater.compress(data) + deflater.flush()
    parts = (deflater.compress(data[at : at + each]) + deflater.flush(flush) for at in range(0, len(data), each))
    return b"".join(parts) + deflater.flush()


class Bits:
    """Bits, the first one lowest in its byte (RFC 1951 section 3.1.1)."""

    def __init__(self) -> None:
        self._value = self._nbits = 0
        self._out = bytearray()

    def put(self, value: int, nbits: int) -> None:
        self._value |= value << self._nbits
        self._nbits += nbits
        while self._nbits >= 8:
            self._out.append(self._value & 255)
            self._value >>= 8
            self._nbits -= 8

    def put_code(self, code: int, nbits: int) -> None:
        """A Huffman code: its highest bit comes first."""
        self.put(int(f"{code:0{nbits}b}"[::-1], 2), nbits)

    def whole(self) -> bytes:
        return bytes(self._out) + (bytes([self._value]) if self._nbits else b"")


def one_block(data: bytes, *, final: bool, bits: Bits, dynamic: bool) -> None:
    """All of `data` as literals, and runs of three or four as a match with the byte before."""
    bits.put(final, 1)
    if dynamic:
        # Codes of 8 bits for 0 to 253, and of 9 for 254, 255, the end and a length of 3; one distance, 1.
        bits.put(2, 2)
        bits.put(258 - 257, 5)
        bits.put(0, 5)
        bits.put(18 - 4, 4)
        lengths = {1: 2, 8: 1, 9: 2}
        for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1):
            bits.put(lengths.get(symbol, 0), 3)
        for nbits, count in ((8, 254), (9, 4), (1, 1)):
            for _ in range(count):
                bits.put_code({8: 0b0, 1: 0b10, 9: 0b11}[nbits], lengths[nbits])
    else:
        bits.put(1, 2)
    at = 0
    while at < len(data):
        if 0 < at < len(data) - 2 and len(set(data[at - 1 : at + 3])) == 1:
            bits.put_code(0b1_1111_1111, 9) if dynamic else bits.put_code(1, 7)
            bits.put(0, 1) if dynamic else bits.put(0, 5)
            at += 3
            continue
        byte = data[at]
        if dynamic:
            bits.put_code(byte, 8) if byte < 254 else bits.put_code(254 * 2 + byte - 254, 9)
        elif byte < 144:
            bits.put_code(0b0011_0000 + byte, 8)
        else:
            bits.put_code(0b1_1001_0000 + byte - 144, 9)
        at += 1
    bits.put_code(254 * 2 + 2, 9) if dynamic else bits.put(0, 7)


def giant(data: bytes, *, dynamic: bool, before: bytes = b"", after: bytes = b"") -> bytes:
    """A member with one block for all of `data`, and small ones before and after it."""
    bits = Bits()
    for part in (before, data, after):
        if part:
            one_block(part, final=part is (after or data), bits=bits, dynamic=dynamic)
    return gzip_header() + bits.whole() + gzip_trailer(before + data + after)


MIXED = mixed(400_000)
STREAMS = {
    "text, level 6": (TEXT, gzip.compress(TEXT, 6)),
    "text, level 1": (TEXT, gzip.compress(TEXT, 1)),
    "text, level 9": (TEXT, gzip.compress(TEXT, 9)),
    "fixed codes": (TEXT, packed_by(TEXT, 6, zlib.Z_FIXED)),
    "huffman only": (TEXT, packed_by(TEXT, 6, zlib.Z_HUFFMAN_ONLY)),
    "stored": (NOISE, gzip.compress(NOISE, 0)),
    "noise": (NOISE, gzip.compress(NOISE, 6)),
    "runs": (bytes(3_000_000), gzip.compress(bytes(3_000_000), 9)),
    "partial flushes": (MIXED, packed_by(MIXED, 6, 0, zlib.Z_PARTIAL_FLUSH, 301)),
    "sync flushes": (MIXED, packed_by(MIXED, 6, 0, zlib.Z_SYNC_FLUSH, 777)),
    "full flushes": (MIXED, packed_by(MIXED, 6, 0, zlib.Z_FULL_FLUSH, 5000)),
    "one giant block": (MIXED, giant(MIXED, dynamic=True)),
    "one giant fixed block": (MIXED, giant(MIXED, dynamic=False)),
    "a giant block among others": (
        b"before " * 9 + MIXED + b"after",
        giant(MIXED, dynamic=True, before=b"before " * 9, after=b"after"),
    ),
    "members, some of them empty": (
        TEXT[:300_000] + NOISE,
        gzip.compress(b"") + gzip.compress(TEXT[:300_000]) + gzip.compress(b"") * 2 + gzip.compress(NOISE),
    ),
    "headers with all fields": (
        TEXT[:200_000] * 2,
        gzip_stream(
            TEXT[:200_000], gzip_header(text=True, extra=b"E" * 300, name=b"n" * 3000, comment=b"c", checksum=True)
        )
        * 2,
    ),
    "members of stored blocks, and zeros at the end": (TEXT * 2, gzip.compress(TEXT, 0) * 2 + bytes(1000)),
}


def marked(packed: bytes, spacing: int, piece: int = 1 << 20, room: int = 64 << 10) -> tuple[bytes, list[GzipPoint]]:
    """All that comes out, and the points; checks on the way what each call promises."""
    inflater = MarkingInflater(spacing)
    out = bytearray(room)
    plain = bytearray()
    points: list[GzipPoint] = []
    pending = memoryview(packed)
    while True:
        given = pending[:piece]
        consumed, produced = inflater.inflate_into(given, out)
        plain += out[:produced]
        pending = pending[consumed:]
        if (point := inflater.point()) is not None:
            assert inflater.point() is None
            points.append(point)
            continue
        assert consumed == len(given) or produced == len(out)
        if not pending and inflater.needs_input:
            break
    inflater.finish()
    return bytes(plain), points


def between(packed: bytes, plain: bytes, points: list[GzipPoint]) -> None:
    """From each point to the next one comes what comes there, by just the bytes that lie between them."""
    for point, follower in pairwise([*points, None]):
        assert point is not None
        assert len(point.window) == min(32768, point.member_nbytes)
        end, packed_end = (follower.at, follower.packed_at) if follower else (len(plain), len(packed))
        inflater = resume(point)
        out = bytearray(end - point.at)
        part = memoryview(packed)[point.packed_at : packed_end]
        consumed, produced = inflater.inflate_into(part, out)
        assert inflater.inflate_into(part[consumed:], bytearray()) == (len(part) - consumed, 0)
        if produced < len(out):
            assert follower is not None
            assert follower.header_nbits
            with memoryview(out) as view:
                produced += inflater.inflate_into(follower.ahead, view[produced:])[1]
        assert produced == len(out)
        assert out == plain[point.at : end]
        if follower is not None:
            assert follower.ahead == packed[packed_end : packed_end + len(follower.ahead)]
            assert inflater.member_state == (follower.crc32, follower.member_nbytes)
        else:
            inflater.finish()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(("piece", "room"), [(1 << 20, 64 << 10), (997, 1000), (1 << 20, 1 << 20)])
def test_from_every_point_comes_what_comes_there(name: str, piece: int, room: int) -> None:
    plain, packed = STREAMS[name]
    found, points = marked(packed, 40_000, piece, room)
    assert found == plain
    assert points[0].at == 0
    assert len(points) >= max(len(plain), len(packed)) // 250_000
    for one, other in pairwise(points):
        assert one.at <= other.at
        assert one.packed_at < other.packed_at
    between(packed, plain, points)


def test_a_byte_at_a_time() -> None:
    for name in ("text, level 6", "members, some of them empty", "one giant block", "partial flushes"):
        plain, packed = STREAMS[name]
        one, other = marked(packed, 150_000, 1, 977), marked(packed, 150_000)
        assert one[0] == other[0] == plain
        if name != "one giant block":  # within a block a point may lie anywhere
            assert [point.at for point in one[1]] == [point.at for point in other[1]]
        between(packed, plain, one[1])


def test_every_bit_offset_and_points_within_blocks() -> None:
    seen = {point.nbits for name in STREAMS for point in marked(STREAMS[name][1], 1000)[1]}
    assert seen == set(range(8))
    for name in ("one giant block", "one giant fixed block", "a giant block among others"):
        within = [point for point in marked(STREAMS[name][1], 20_000, 4096)[1] if point.header_nbits]
        assert len(within) > 5
        assert len({point.nbits for point in within}) > 2
    assert not any(point.header_nbits for point in marked(STREAMS["text, level 6"][1], 100_000)[1])


def test_a_point_each_spacing_and_not_more() -> None:
    packed = STREAMS["text, level 6"][1]
    _, points = marked(packed, 200_000)
    gaps = [other.at - one.at for one, other in pairwise(points)]
    assert all(200_000 <= gap < 400_000 for gap in gaps)
    _, points = marked(packed, 1 << 40)
    assert [point.at for point in points] == [0]
    # where nothing comes out, what goes in counts
    empty = gzip.compress(b"") * 20_000
    found, points = marked(empty, 100_000)
    assert found == b""
    assert 4 <= len(points) <= 20
    between(empty, b"", points)


def test_windows_have_only_what_is_referred_to() -> None:
    plain, packed = STREAMS["text, level 6"]
    _, points = marked(packed, 40_000)
    kept = sum(len(point.window) - point.window.count(0) for point in points[1:])
    assert 0 < kept < 0.6 * sum(len(point.window) for point in points[1:])
    for point in points:
        before = plain[: point.at][-len(point.window) :] if point.window else b""
        assert all(a in (0, b) for a, b in zip(point.window, before, strict=True))
    _, points = marked(STREAMS["full flushes"][1], 40_000)
    # but a few bytes that look like what marks them
    assert all(len(point.window) - point.window.count(0) < 10 for point in points)


MARKERS = b"".join(
    bytes([part]) + b"".join(bytes([part, greater]) for greater in range(part + 1, 256)) for part in range(256)
)[:32768]
"""What `gzindex.c` puts before a part of the stream, to see what of it comes out."""


def test_no_two_places_of_the_markers_have_the_same_two_bytes() -> None:
    assert len({MARKERS[at : at + 2] for at in range(32767)}) == 32767


@pytest.mark.parametrize("changed", [0, 3, 300, 32768])
@pytest.mark.parametrize("seed", range(4))
def test_what_looks_like_its_markers_is_kept_where_it_is_referred_to(changed: int, seed: int) -> None:
    """Windows that are the markers, but for some bytes, and behind each little else than short pieces of it."""
    source = random.Random(seed)
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31, 9)
    plain, packed = b"", b""
    for _ in range(6):
        window = bytearray(MARKERS)
        for _ in range(changed):
            window[source.randrange(32768)] = source.randrange(256)
        # Matches that begin with the last byte of the window, or the last two, and go on behind it.
        follow = bytearray(source.choice([window[-1:] * 9, (source.randbytes(1) + window[-2:]) * 5]))
        while len(follow) < 32768:
            at = source.randrange(len(follow), 32768)
            follow += window[at : at + source.choice([3, 3, 4, 5, 9, 30])] + source.randbytes(source.randrange(3))
        for part in (bytes(window), bytes(follow[:32768])):
            plain += part
            packed += deflater.compress(part) + deflater.flush(zlib.Z_SYNC_FLUSH)
    packed += deflater.flush()
    found, points = marked(packed, 32768)
    assert found == plain
    assert [point.at for point in points] == list(range(0, len(plain) + 1, 32768))
    between(packed, plain, points)


def test_the_end_is_checked_from_a_point_too() -> None:
    plain, packed = STREAMS["text, level 6"]
    _, points = marked(packed, 40_000)
    for at, match in ((-8, "CRC-32"), (-4, "length")):
        broken = bytearray(packed)
        broken[at] ^= 1
        for point in points:
            inflater, out = resume(point), bytearray(len(plain) + 1)
            with pytest.raises(CorruptData, match=match):
                inflater.inflate_into(memoryview(broken)[point.packed_at :], out)


@thorough
@given(st.data())
def test_any_stream_in_any_pieces(data: st.DataObject) -> None:
    source = random.Random(data.draw(st.integers(0, 2**32)))
    plain, packed = b"", b""
    for _ in range(data.draw(st.integers(1, 4))):
        part = mixed(source.choice([0, 1, 5000, 60_000, 150_000]), seed=source.randrange(1 << 20))
        level, strategy = source.randint(0, 9), source.randint(0, 4)
        flush = source.choice([None, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH])
        plain += part
        packed += packed_by(part, level, strategy, flush, source.choice([1000, 40_000]))
    packed += bytes(source.choice([0, 0, 1, 5000]))
    spacing = data.draw(st.sampled_from([1, 1000, 50_000, 1 << 30]))
    found, points = marked(packed, spacing, source.choice([13, 1000, 1 << 20]), source.choice([100, 1 << 18]))
    assert found == plain
    between(packed, plain, points)


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(STREAMS)))
def test_what_is_damaged_fails_as_it_does_without_points(seed: int, name: str) -> None:
    source = random.Random(seed)
    damaged = bytearray(STREAMS[name][1])
    for _ in range(source.randint(1, 3)):
        damaged[source.randrange(10, len(damaged))] ^= 1 << source.randrange(8)
    if source.random() < 0.3:
        del damaged[source.randrange(len(damaged)) :]
    try:
        expected = gunzip(damaged, max_output=1 << 24)
    except CorruptData as error:
        with pytest.raises(CorruptData) as raised:
            marked(bytes(damaged), 20_000, source.choice([100, 1 << 20]))
        reason = str(error).split(": ", 1)[1].split(" (")[0]
        assert reason in str(raised.value) or "deflate" in str(raised.value)
    else:
        assert marked(bytes(damaged), 20_000)[0] == expected


@quick
@given(st.integers(0, 2**32 - 1))
def test_points_that_lie_do_no_harm(seed: int) -> None:
    source = random.Random(seed)
    plain, packed = STREAMS[source.choice(["text, level 6", "one giant block"])]
    point = source.choice(marked(packed, 40_000)[1])
    nbits = source.randrange(8)
    header_nbits = source.choice([0, point.header_nbits, source.randrange(8 * 296)])
    header = (point.header + source.randbytes(300))[: (header_nbits + 7) // 8]
    liar = GzipPoint(
        point.packed_at,
        point.at,
        source.choice([point.crc32, 5]),
        source.choice([point.member_nbytes, 5]),
        nbits,
        source.randrange(1 << nbits),
        source.choice([point.window, point.window[:100], b"", source.randbytes(32768)]),
        header_nbits,
        header,
    )
    out = bytearray(len(plain))
    try:
        inflater = resume(liar)
        for at in range(point.packed_at + source.randrange(3), len(packed), 50_000):
            inflater.inflate_into(packed[at : at + 50_000], out)
        inflater.finish()
    except (CorruptData, FailedPrecondition):
        pass


def test_points_that_cannot_be_are_refused() -> None:
    for point in (
        GzipPoint(0, 0, crc32=-1),
        GzipPoint(0, 0, member_nbytes=1 << 32),
        GzipPoint(0, 0, nbits=8),
        GzipPoint(0, 0, nbits=3, bits=8),
        GzipPoint(0, 0, window=bytes(32769)),
        GzipPoint(0, 0, header_nbits=9, header=b"x"),
        GzipPoint(0, 0, header_nbits=8 * 297, header=bytes(297)),
    ):
        with pytest.raises(InvalidArgument):
            resume(point)
    for header in (b"\x07", b"\x00", b"\x05"):  # no kind of block, a stored one, one whose codes are missing
        with pytest.raises(CorruptData):
            resume(GzipPoint(0, 0, header_nbits=8, header=header))
    for spacing in (0, -1, (1 << 40) + 1):
        with pytest.raises(InvalidArgument):
            MarkingInflater(spacing)


def test_nothing_is_done_before_a_point_is_taken() -> None:
    inflater, out = MarkingInflater(1000), bytearray(1 << 20)
    stream = gzip_stream(TEXT[:100_000])
    consumed, _ = inflater.inflate_into(stream, out)
    assert not inflater.needs_input
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="waiting"):
            inflater.inflate_into(stream[consumed:], out)
    assert inflater.total_in == consumed
    assert inflater.point() is not None
    assert inflater.inflate_into(stream[consumed:], out) != (0, 0)
    assert Inflater().member_state == (0, 0)


@pytest.mark.skipif(MASKED, reason="has nothing to do with the CPU features that we choose")
def test_one_thread_at_a_time() -> None:
    inflater, out = MarkingInflater(1 << 40), bytearray(1 << 20)
    stream = memoryview(gzip_header() + packed_by(bytes(1 << 26), 9, 0)[10:])
    consumed, _ = inflater.inflate_into(stream[:12], out)
    inflater.point()
    rest = stream[consumed:]

    def work() -> None:
        nonlocal rest
        for _ in range(40):
            rest = rest[inflater.inflate_into(rest, out)[0] :]

    assert collide(work, inflater.point)
