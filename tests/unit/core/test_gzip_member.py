"""Writing gzip members: read back by zlib, the same bytes every time, bounds kept."""

from __future__ import annotations

import gzip
import os
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.core import (
    GZIP_MAX_LEVEL,
    GZIP_MIN_LEVEL,
    SIZED_HEADER_NBYTES,
    gunzip_member_into,
    gzip_member,
    gzip_member_bound,
    gzip_member_into,
    sized_member_nbytes,
)
from blobtee.errors import CorruptData, InvalidArgument
from tests.unit.core.support import mixed, thorough

LEVELS = range(GZIP_MIN_LEVEL, GZIP_MAX_LEVEL + 1)


@thorough
@given(st.binary(max_size=5000), st.sampled_from(LEVELS))
def test_read_back(data: bytes, level: int) -> None:
    for sized in (False, True):
        member = gzip_member(data, level, sized=sized)
        assert gzip.decompress(member) == data
        assert len(member) <= gzip_member_bound(len(data))
        assert gzip_member(bytearray(data), level, sized=sized) == member
        out = bytearray(len(data))
        gunzip_member_into(member, out)
        assert out == data


@pytest.mark.parametrize("level", LEVELS)
def test_header_says_nothing_that_changes(level: int) -> None:
    member = gzip_member(b"data" * 1000, level)
    # no flags, no time, no hint of the level, no operating system
    assert member[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    assert gzip_member(b"data" * 1000, level) == member


@pytest.mark.parametrize("n", [0, 1, 100_000])
@pytest.mark.parametrize("level", [0, 1, 6, 12])
def test_a_sized_member_says_how_long_it_is(n: int, level: int) -> None:
    data = mixed(n)
    member = gzip_member(data, level, sized=True)
    assert member[:16] == b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x08\x00MZ\x04\x00"
    assert sized_member_nbytes(member[:SIZED_HEADER_NBYTES]) == len(member)
    out = bytearray(gzip_member_bound(n))
    assert out[: gzip_member_into(data, out, level, sized=True)] == member
    assert member[SIZED_HEADER_NBYTES:] == gzip_member(data, level)[10:]


def test_other_headers_say_nothing_of_the_length() -> None:
    header = gzip_member(b"data", sized=True)[:SIZED_HEADER_NBYTES]
    for other in (b"", gzip_member(b"data" * 9)[:SIZED_HEADER_NBYTES], header[:-1], b"\x1f" + header[:-1]):
        assert sized_member_nbytes(other) is None
    for i in (0, 1, 2, 3, 10, 11, 12, 13, 14, 15):
        assert sized_member_nbytes(header[:i] + b"\xee" + header[i + 1 :]) is None
    # How and when it was packed is another matter.
    assert sized_member_nbytes(header[:4] + b"\xee" * 6 + header[10:]) is not None


@pytest.mark.parametrize("sized", [False, True])
def test_only_exactly_one_member_is_read_at_once(sized: bool) -> None:
    data = mixed(50_000)
    member = gzip_member(data, sized=sized)
    out = bytearray(len(data))
    for bad in (b"", member[:-1], member + b"\0", member * 2, member[1:], member[:5], bytes(len(member))):
        with pytest.raises(CorruptData):
            gunzip_member_into(bad, out)
    for size in (0, len(data) - 1, len(data) + 1):
        with pytest.raises(CorruptData):
            gunzip_member_into(member, bytearray(size))
    for at in (-1, -5, len(member) // 2):  # length, CRC-32, data
        damaged = bytearray(member)
        damaged[at] ^= 1
        with pytest.raises(CorruptData):
            gunzip_member_into(damaged, out)
    with pytest.raises(TypeError):
        gunzip_member_into(member, bytes(len(data)))
    gunzip_member_into(member, out)
    assert out == data


def test_levels_are_levels() -> None:
    data = mixed(200_000)
    sizes = [len(gzip_member(data, level)) for level in (0, 1, 6, 12)]
    assert sizes == sorted(sizes, reverse=True)
    assert gzip_member(data) == gzip_member(data, 6) == gzip_member(data, level=6)


@pytest.mark.parametrize("level", [-1, 13, 1 << 40])
def test_no_such_level(level: int) -> None:
    with pytest.raises(InvalidArgument, match=r"0\.\.12"):
        gzip_member(b"", level)


def test_bound_holds_for_noise() -> None:
    for n in (0, 1, 100, 65535, 65536, 300_000):
        noise = os.urandom(n)
        for level in (0, 1, 6, 12):
            assert len(gzip_member(noise, level)) <= gzip_member_bound(n)
    for bad in (-1, 1 << 63, 1 << 64):
        with pytest.raises(InvalidArgument):
            gzip_member_bound(bad)


def test_into_a_buffer() -> None:
    data = mixed(10_000)
    member = gzip_member(data)
    for spare in (16, 5000):  # libdeflate wants some bytes more than it fills
        out = bytearray(len(member) + spare + 32)
        out[-32:] = b"\xee" * 32
        n = gzip_member_into(data, memoryview(out)[:-32])
        assert out[:n] == member
        assert out[-32:] == b"\xee" * 32
    for size in (0, 1, 17, len(member) - 1):
        with pytest.raises(InvalidArgument, match="too small"):
            gzip_member_into(data, bytearray(size))
    assert gzip_member(data) == member


def test_arguments() -> None:
    bad: Any
    for bad in ("text", None, memoryview(b"abcd")[::2]):
        with pytest.raises(TypeError):
            gzip_member(bad)
    for bad in (b"read only", memoryview(bytearray(100))[::2], None):
        with pytest.raises(TypeError):
            gzip_member_into(b"data", bad)


def test_many_threads_the_same_bytes() -> None:
    data = [mixed(100_000, seed=i) for i in range(8)]
    alone = [gzip_member(piece) for piece in data]
    together: dict[int, bytes] = {}

    def work(i: int) -> None:
        for _ in range(3):
            together[i] = gzip_member(data[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(8)] == alone
