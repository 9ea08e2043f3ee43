from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from blobtee.compression import is_estargz
from blobtee.compression.estargz import footer as written_footer
from blobtee.compression.estargz import payload_nbytes
from blobtee.errors import CorruptData


class Blob:
    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, n: int, /) -> bytes:
        return self.data[offset : offset + n]


def member(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"{}"))
    return gzip.compress(buffer.getvalue(), mtime=0)


def footer(offset: int, *, legacy: bool = False) -> bytes:
    payload = b"%016xSTARGZ" % offset
    extra = payload if legacy else b"SG" + len(payload).to_bytes(2, "little") + payload
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra
    return head + b"\x01\0\0\xff\xff" + bytes(8)


@pytest.mark.parametrize("legacy", [False, True])
def test_footer_and_table_of_contents_make_an_estargz(legacy: bool) -> None:
    layer = member("file")
    end = footer(len(layer), legacy=legacy)
    assert len(end) == (47 if legacy else 51)
    assert gzip.decompress(end) == b""
    blob = Blob(layer + member("stargz.index.json") + end)
    assert is_estargz(blob)
    assert payload_nbytes(blob) == len(layer)


def test_the_footer_is_the_one_that_is_read() -> None:
    assert written_footer(0x1234567) == footer(0x1234567)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x" * 30,
        member("file"),
        member("file") + footer(0),
        member("file") + footer(10**9),
        member("file") + footer(7),
        member("file") + footer(0)[:-1],
        member("stargz.index.json") + footer(0).replace(b"STARGZ", b"STARGX"),
        member("stargz.index.json") + footer(0).replace(b"0000000000000000", b"zzzzzzzzzzzzzzzz"),
        member("stargz.index.json") + footer(0).replace(b"0000000000000000", b"-000000000000000"),
        member("stargz.index.json") + footer(0).replace(b"0000000000000000", b"0x00000000000000"),
        member("stargz.index.json") + footer(0).replace(b"0000000000000000", b"ffffffffffffffff"),
        member("stargz.index.json") + footer(0).replace(b"\x1a\x00SG", b"\x1b\x00SG"),
        member("stargz.index.json") + footer(0, legacy=True).replace(b"\x16\x00", b"\x17\x00"),
    ],
    ids=range(14),
)
def test_anything_less_is_not(blob: bytes) -> None:
    assert not is_estargz(Blob(blob))
    with pytest.raises(CorruptData, match="not an eStargz"):
        payload_nbytes(Blob(blob))
