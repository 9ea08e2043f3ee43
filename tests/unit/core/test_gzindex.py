"""Points in gzip streams, and inflating from them."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from blobtee.core import Inflater
from blobtee.core.gzindex import GzipPoint, MarkingInflater, resume
from blobtee.errors import CorruptData, InvalidArgument

_DRAW = random.Random(7)
TEXT = b"".join(b"%d is %d and %s\n" % (n, n * n, _DRAW.randbytes(n % 40).hex().encode()) for n in range(30_000))
NOISE = _DRAW.randbytes(700_000)


def strategy(data: bytes, level: int, strategy: int) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, 31, 9, strategy)
    return deflater.compress(data) + deflater.flush()


STREAMS = {
    "text, level 6": (TEXT, gzip.compress(TEXT, 6)),
    "text, level 1": (TEXT, gzip.compress(TEXT, 1)),
    "fixed codes, blocks without end": (TEXT, strategy(TEXT, 6, zlib.Z_FIXED)),
    "stored": (NOISE, gzip.compress(NOISE, 0)),
    "noise": (NOISE, gzip.compress(NOISE, 6)),
    "runs": (bytes(3_000_000), gzip.compress(bytes(3_000_000), 9)),
    "members, some of them empty": (
        TEXT[:300_000] + NOISE,
        gzip.compress(b"") + gzip.compress(TEXT[:300_000]) + gzip.compress(b"") * 2 + gzip.compress(NOISE),
    ),
}


def marked(packed: bytes, spacing: int, piece: int) -> tuple[bytes, list[GzipPoint]]:
    inflater = MarkingInflater(spacing)
    out = bytearray(64 << 10)
    plain = bytearray()
    points: list[GzipPoint] = []
    pending = memoryview(packed)
    while True:
        consumed, produced = inflater.inflate_into(pending[:piece], out)
        plain += out[:produced]
        pending = pending[consumed:]
        if (point := inflater.point()) is not None:
            points.append(point)
        elif not pending and not produced:
            break
    inflater.finish()
    return bytes(plain), points


def rest(inflater: Inflater, packed: memoryview, nbytes: int) -> bytes:
    out = bytearray(nbytes)
    filled = 0
    while filled < nbytes:
        with memoryview(out) as view, view[filled:] as room:
            consumed, produced = inflater.inflate_into(packed, room)
        packed = packed[consumed:]
        filled += produced
        if not produced and not consumed:
            break
    return bytes(out[:filled])


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("piece", [1 << 20, 997])
def test_from_every_point_comes_what_comes_there(name: str, piece: int) -> None:
    plain, packed = STREAMS[name]
    found, points = marked(packed, 40_000, piece)
    assert found == plain
    assert len(points) >= len(packed) // 160_000
    assert [point.at for point in points] == sorted(point.at for point in points)
    assert [point.packed_at for point in points] == sorted(point.packed_at for point in points)
    for point in points:
        assert rest(resume(point), memoryview(packed)[point.packed_at :], len(plain) - point.at) == plain[point.at :]


def test_the_end_is_checked_from_a_point_too() -> None:
    plain, packed = STREAMS["text, level 6"]
    _, points = marked(packed, 40_000, 1 << 20)
    broken = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for point in points:
        with pytest.raises(CorruptData):
            rest(resume(point), memoryview(broken)[point.packed_at :], len(plain) - point.at + 1)


def test_points_that_cannot_be_are_refused() -> None:
    for point in (GzipPoint(0, 0, crc32=-1), GzipPoint(0, 0, nbits=8), GzipPoint(0, 0, window=bytes(1 << 16))):
        with pytest.raises(InvalidArgument):
            resume(point)
    with pytest.raises(InvalidArgument):
        MarkingInflater(0)
