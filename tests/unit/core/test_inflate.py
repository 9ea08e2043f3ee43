"""Reading gzip: against zlib, by every way of cutting the stream, and what is damaged, missing or too much."""

from __future__ import annotations

import contextlib
import gzip
import io
import mmap
import random
import struct
import zlib
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.core import Inflater, gunzip, gzip_member
from blobtee.errors import CorruptData, FailedPrecondition, InvalidArgument, ResourceExhausted
from tests.unit.core.support import (
    MASKED,
    collide,
    gzip_header,
    gzip_stream,
    gzip_trailer,
    mixed,
    quick,
    raw_deflate,
    thorough,
)


def inflate(stream: bytes, in_step: int = 1 << 20, out_step: int = 1 << 16) -> bytes:
    """Through an Inflater in pieces; checks on the way what each call promises."""
    inflater, out, produced_all = Inflater(), bytearray(out_step), bytearray()
    for at in range(0, len(stream), in_step):
        piece = memoryview(stream)[at : at + in_step]
        while True:
            consumed, produced = inflater.inflate_into(piece, out)
            assert consumed or produced or not piece
            assert 0 <= consumed <= len(piece)
            produced_all += out[:produced]
            piece = piece[consumed:]
            if not piece and inflater.needs_input:
                break
            assert produced == len(out) or (piece and consumed)
    inflater.finish()
    assert inflater.finished
    assert (inflater.total_in, inflater.total_out) == (len(stream), len(produced_all))
    return bytes(produced_all)


def both(stream: bytes) -> bytes:
    """The two ways to read a whole stream; they must agree."""
    answer = inflate(stream)
    assert gunzip(stream, max_output=len(answer)) == answer
    return answer


def assert_corrupt(stream: bytes, match: str | None = None) -> None:
    with pytest.raises(CorruptData, match=match):
        gunzip(stream, max_output=1 << 24)
    with pytest.raises(CorruptData, match=match):
        inflate(stream, in_step=1, out_step=3)


# ---- what must be read


@thorough
@given(st.binary(max_size=5000), st.integers(0, 9), st.integers(1, 600), st.integers(1, 600))
def test_any_data_in_any_pieces(data: bytes, level: int, in_step: int, out_step: int) -> None:
    assert inflate(gzip.compress(data, level), in_step, out_step) == data


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
def test_every_kind_of_block(level: int, strategy: int) -> None:
    data = mixed(300_000)
    stream = gzip_header() + raw_deflate(data, level, strategy) + gzip_trailer(data)
    assert both(stream) == data
    assert inflate(stream, in_step=1013, out_step=77) == data


def test_larger_than_every_buffer_inside() -> None:
    data = mixed(3_000_000)
    stream = gzip.compress(data, 6)
    for in_step, out_step in product((999, 65536, 1 << 22), (4093, 65536, 1 << 22)):
        assert inflate(stream, in_step, out_step) == data


def test_flushes_and_every_bit_offset() -> None:
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    data, stream = b"", b""
    for i in range(300):
        piece = mixed(1 + i, seed=i)
        data += piece
        stream += engine.compress(piece) + engine.flush(
            (zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH)[i % 3]
        )
    stream += engine.flush()
    assert both(stream) == data
    assert inflate(stream, in_step=1, out_step=1) == data


def test_matches_as_far_and_as_long_as_they_get() -> None:
    block = random.Random(5).randbytes(32768)
    data = block + block[:258] * 3 + block + bytes(1_000_000)
    assert both(gzip.compress(data, 9)) == data
    assert inflate(gzip.compress(data, 9), in_step=5, out_step=257) == data


@pytest.mark.parametrize("fields", list(product([False, True], repeat=5)))
def test_every_set_of_header_fields(fields: tuple[bool, ...]) -> None:
    text, extra, name, comment, checksum = fields
    header = gzip_header(
        text=text,
        extra=b"BC\2\0\1\2" if extra else None,
        name=b"layer.tar" if name else None,
        comment="schön".encode("latin-1") if comment else None,
        checksum=checksum,
    )
    stream = gzip_stream(b"hello" * 10, header)
    assert both(stream) == b"hello" * 10
    assert inflate(stream * 2, in_step=1, out_step=1) == b"hello" * 20


def test_header_fields_at_their_limits() -> None:
    for extra in (b"", b"x", b"y" * 65535):
        header = gzip_header(extra=extra, name=b"", comment=b"c" * 5000, checksum=True)
        for step in (1, 7, 1 << 20):
            assert inflate(gzip_stream(b"data", header), in_step=step) == b"data"


def test_members_and_padding() -> None:
    parts = [b"", b"a", mixed(70_000), b"", b"z" * 100_000]
    stream = b"".join(map(gzip_stream, parts))
    for padding in (0, 1, 511, 100_000):
        padded = stream + bytes(padding)
        assert both(padded) == b"".join(parts)
        assert inflate(padded, in_step=3, out_step=1000) == b"".join(parts)
    inflater = Inflater()
    assert inflater.inflate_into(stream, bytearray(1 << 20)) == (len(stream), sum(map(len, parts)))
    assert (inflater.members, inflater.finished, inflater.needs_input) == (5, True, True)


def test_finished_only_between_members() -> None:
    one, inflater, out = gzip_stream(b"abc"), Inflater(), bytearray(10)
    assert (inflater.finished, inflater.needs_input) == (False, True)
    for _ in range(2):
        for i in range(len(one)):
            inflater.inflate_into(one[i : i + 1], out)
            assert inflater.finished is (i == len(one) - 1)
    inflater.inflate_into(bytes(3), out)
    assert inflater.finished
    inflater.finish()
    inflater.finish()


def test_what_others_write() -> None:
    data = mixed(100_000)
    written = io.BytesIO()
    with gzip.GzipFile("name", "wb", 5, written, mtime=1) as file:
        file.write(data)
    assert both(written.getvalue()) == data
    for level in (0, 1, 6, 12):
        assert both(gzip_member(data, level)) == data


@pytest.mark.skipif(MASKED, reason="takes seconds, and has nothing to do with the CPU features that we choose")
def test_length_is_modulo_32_bits() -> None:
    # a member of 4 GiB and 5 bytes of zeros: a first block of 16 MiB, the same next one again and again, a last one
    engine, period = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(16 << 20)
    first, again = (engine.compress(period) + engine.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    last = engine.compress(bytes(5)) + engine.flush()
    repeats = (1 << 32) // len(period)
    crc = 0
    for _ in range(repeats):
        crc = zlib.crc32(period, crc)
    trailer = struct.pack("<II", zlib.crc32(bytes(5), crc), 5)
    inflater, out = Inflater(), bytearray(1 << 20)
    for piece in [gzip_header(), first, *[again] * (repeats - 1), last, trailer]:
        rest = memoryview(piece)
        while rest or not inflater.needs_input:
            rest = rest[inflater.inflate_into(rest, out)[0] :]
    inflater.finish()
    assert inflater.total_out == (1 << 32) + 5


# ---- what must be refused


def test_truncated_at_each_byte() -> None:
    header = gzip_header(extra=b"extra", name=b"name", comment=b"comment", checksum=True)
    stream = gzip_stream(b"first" * 20, header) + gzip_stream(mixed(500))
    whole_members = {len(gzip_stream(b"first" * 20, header)), len(stream)}
    for cut in range(len(stream) + 1):
        if cut in whole_members:
            both(stream[:cut])
        else:
            assert_corrupt(stream[:cut], "too early")


@pytest.mark.parametrize("checksum", [False, True])
def test_one_bit_wrong_anywhere(checksum: bool) -> None:
    data = b"the same words, the same words, and others " + mixed(60)
    stream = gzip_stream(data, gzip_header(name=b"name", checksum=checksum))
    free = set()
    for bit in range(len(stream) * 8):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert gunzip(damaged, max_output=1 << 20) == data
            free.add(bit // 8)
        except CorruptData:
            assert_corrupt(bytes(damaged))
    # Nothing depends on the bits between the end of the deflate data and the next byte. Without a checksum of its own
    # neither does anything on the header's hints: FTEXT, time, XFL, OS and the letters of the name.
    assert free <= {len(stream) - 9} | (set() if checksum else set(range(3, 14)))


def test_each_reason_is_named() -> None:
    good, data = gzip_stream(b"data"), b"data"
    body = gzip_header() + raw_deflate(data)
    crc, isize = zlib.crc32(data), len(data)
    for stream, match in (
        (b"", "too early"),
        (b"\0", "not a gzip"),
        (b"\x1f\x8c", "not a gzip"),
        (b"PK\3\4", "not a gzip"),
        (gzip_stream(data, gzip_header(method=7)), "method"),
        (gzip_stream(data, gzip_header(reserved=0x20)), "flags"),
        (gzip_stream(data, gzip_header(reserved=0x80)), "flags"),
        (gzip_stream(data, gzip_header(checksum=True)[:-1] + b"\xaa"), "header checksum"),
        (body + struct.pack("<II", crc ^ 1, isize), "CRC-32"),
        (body + struct.pack("<II", crc, isize + 1), "length"),
        (gzip_header() + b"\x07" + bytes(20), "deflate"),
        (gzip_header() + b"\x01\x05\x00\x00\x00hello" + gzip_trailer(b"hello"), "deflate"),
        (good + b"x", "garbage"),
        (good + b"\x1f\x00", "garbage"),
        (good + bytes(100) + b"\x1f", "garbage"),
        (good + bytes(3) + good, "garbage"),
    ):
        assert_corrupt(stream, match)


@quick
@given(st.binary(min_size=1, max_size=300))
def test_noise_as_deflate_data(noise: bytes) -> None:
    stream = gzip_header() + noise
    try:
        expected = zlib.decompress(stream, 31)
    except zlib.error:
        assert_corrupt(stream)
    else:
        assert both(stream) == expected


@thorough
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_damaged_where_it_is_dense(seed: int, errors: int) -> None:
    source = random.Random(seed)
    data = mixed(20_000, seed=seed)
    stream = bytearray(gzip_stream(data))
    for _ in range(errors):
        stream[source.randrange(10, len(stream))] ^= 1 << source.randrange(8)
    with contextlib.suppress(CorruptData):
        assert both(bytes(stream)) == data


def test_a_failure_stays() -> None:
    inflater, out = Inflater(), bytearray(100)
    stream = gzip_header() + raw_deflate(b"data") + bytes(8)
    messages = set()
    calls: list[Callable[[], object]] = [
        lambda: inflater.inflate_into(stream, out),
        lambda: inflater.inflate_into(gzip_stream(b"good"), out),
        lambda: inflater.inflate_into(b"", out),
        inflater.finish,
    ]
    for call in calls:
        with pytest.raises(CorruptData, match="CRC-32") as raised:
            call()
        messages.add(str(raised.value).split(": ", 1)[1])
    assert len(messages) == 1
    assert (inflater.finished, inflater.needs_input, inflater.members) == (False, False, 0)
    assert (inflater.total_in, inflater.total_out) == (0, 0)

    short = Inflater()
    short.inflate_into(stream[:12], out)
    for _ in range(2):
        with pytest.raises(CorruptData, match="too early"):
            short.finish()
    with pytest.raises(CorruptData, match="too early"):
        short.inflate_into(stream[12:], out)


# ---- limits


def test_finish_waits_for_the_output_to_be_taken() -> None:
    inflater, stream = Inflater(), gzip_stream(bytes(1000))
    consumed, produced = inflater.inflate_into(stream, bytearray(10))
    assert produced == 10
    with pytest.raises(FailedPrecondition, match="waiting"):
        inflater.finish()
    assert not inflater.needs_input
    assert inflater.inflate_into(stream[consumed:], bytearray(2000))[1] == 990
    inflater.finish()


def test_output_that_fits_exactly() -> None:
    for size in (0, 1, 257, 1000, 65536, 200_000):
        data = mixed(size)
        assert gunzip(gzip_stream(data), max_output=size) == data
        assert gunzip(gzip_stream(data) * 3 + bytes(9), max_output=3 * size) == data * 3
        inflater, out = Inflater(), bytearray(size)
        rest = memoryview(gzip_stream(data))
        consumed, produced = inflater.inflate_into(rest, out)
        assert produced == size
        # the end may not have been seen for want of space, but needs none
        assert inflater.inflate_into(rest[consumed:], bytearray()) == (len(rest) - consumed, 0)
        inflater.finish()


def test_never_writes_past_the_buffer() -> None:
    stream = gzip_stream(mixed(5000))
    for size in (0, 1, 7, 100, 4999, 5000, 5001):
        out = bytearray(b"\xee" * (size + 64))
        _, produced = Inflater().inflate_into(stream, memoryview(out)[:size])
        assert produced == min(size, 5000)
        assert out[size:] == b"\xee" * 64


def test_bombs_are_capped() -> None:
    bomb = gzip_stream(bytes(100 << 20), level=9)
    assert len(bomb) < 110_000
    for cap in (0, 1, 1000, 1 << 20):
        with pytest.raises(ResourceExhausted, match=f"max_output = {cap} "):
            gunzip(bomb, max_output=cap)
        with pytest.raises(ResourceExhausted):
            gunzip(gzip_stream(b"x" * 10) * 1000 + bomb, max_output=cap)
    out = bytearray(4096)
    consumed, produced = Inflater().inflate_into(bomb, out)
    assert produced == 4096
    # no more is read ahead than the window inside holds
    assert consumed < 2000


def test_a_length_that_lies() -> None:
    # the last four bytes are only a hint where to start, and are not even what they seem in the second stream
    data = mixed(100_000)
    for stream in (gzip_stream(data), gzip_stream(data) + gzip_stream(b""), gzip_stream(data) + bytes(4)):
        assert gunzip(stream, max_output=1 << 30) == data
    with pytest.raises(CorruptData):
        gunzip(gzip_stream(data)[:-4] + b"\xff\xff\xff\x7f", max_output=1 << 40)


def test_arguments() -> None:
    inflater: Any = Inflater()
    with pytest.raises(InvalidArgument):
        gunzip(b"", max_output=-1)
    for data, out in (
        (memoryview(b"abcd")[::2], bytearray(9)),
        ("text", bytearray(9)),
        (b"", b"read only"),
        (b"", memoryview(bytearray(9))[::2]),
        (b"", None),
    ):
        with pytest.raises(TypeError):
            inflater.inflate_into(data, out)
    assert inflater.inflate_into(b"", bytearray()) == (0, 0)
    out = bytearray(10)
    inflater.inflate_into(bytearray(gzip_stream(b"abc")), out)
    out += b"more"  # nothing holds on to the buffer
    assert out[:3] == b"abc"


def test_reads_and_writes_mappings() -> None:
    data = mixed(50_000)
    stream = gzip_stream(data)
    with mmap.mmap(-1, len(stream)) as source, mmap.mmap(-1, len(data)) as target:
        source[:] = stream
        assert Inflater().inflate_into(source, target)[1] == len(data)
        assert target[:] == data


@pytest.mark.parametrize("intrude", [lambda inflater: inflater.inflate_into(b"", bytearray(1)), lambda z: z.total_out])
def test_a_second_thread_is_refused(intrude: Callable[[Inflater], object]) -> None:
    stream, out = gzip_stream(bytes(24 << 20), level=1), bytearray(24 << 20)
    inflater = Inflater()

    def work() -> None:
        rest = memoryview(stream)
        while rest:
            with contextlib.suppress(FailedPrecondition):
                rest = rest[inflater.inflate_into(rest, out)[0] :]

    assert collide(work, lambda: intrude(inflater))
    assert inflater.finished
    assert inflater.total_out == inflater.members * len(out)
