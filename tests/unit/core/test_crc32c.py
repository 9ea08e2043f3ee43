"""CRC-32C against published vectors and a bitwise reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.core import cpu_features, crc32c, crc32c_each
from blobtee.errors import InvalidArgument
from tests.unit.core.support import mixed, thorough

# RFC 3720 appendix B.4, and the check value of the Castagnoli polynomial in the CRC catalogues
VECTORS = {
    b"": 0,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    bytes.fromhex(
        "01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000"
    ): 0xD9963A56,
}


def _step(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_step(byte) for byte in range(256)]


def reference(data: bytes, value: int = 0) -> int:
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def test_vectors() -> None:
    for data, value in VECTORS.items():
        assert crc32c(data) == value


def test_every_table_entry() -> None:
    # a byte at each place of a group of eight goes through each of the eight tables
    for place in range(8):
        for byte in range(256):
            data = bytes(place) + bytes([byte]) + bytes(7 - place)
            assert crc32c(data) == reference(data)


# around the lengths where the way of computing changes: 8; 3 * 256; 3 * 4096
@pytest.mark.parametrize("n", [7, 8, 9, 767, 768, 769, 1535, 1536, 12287, 12288, 12289, 13056, 24576, 25351])
def test_lengths(n: int) -> None:
    data = mixed(n + 3)
    for offset in range(3):
        assert crc32c(memoryview(data)[offset : offset + n]) == reference(data[offset : offset + n])


@thorough
@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1), st.integers(0, 2000))
def test_values_and_pieces(data: bytes, value: int, cut: int) -> None:
    assert crc32c(data, value) == reference(data, value)
    assert crc32c(data[cut:], crc32c(data[:cut], value)) == crc32c(data, value)


@given(st.binary(max_size=300), st.integers(1, 100))
def test_each(data: bytes, every: int) -> None:
    pieces = [data[at : at + every] for at in range(0, len(data), every)]
    assert crc32c_each(data, every) == b"".join(crc32c(piece).to_bytes(4, "little") for piece in pieces)


def test_each_of_nothing() -> None:
    for every in (0, -1, 1 << 63):
        with pytest.raises(InvalidArgument):
            crc32c_each(b"x", every)


def test_value_out_of_range() -> None:
    for value in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            crc32c(b"", value)


def test_path_is_named() -> None:
    assert cpu_features().crc32c.split("+")[0] in {"portable", "sse42", "armv8-crc32"}
