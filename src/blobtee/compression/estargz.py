"""eStargz: a gzip layer whose footer points at a table of its contents (stargz-snapshotter, `docs/estargz.md`)."""

from __future__ import annotations

from typing import Protocol

from blobtee.core import Inflater
from blobtee.errors import CorruptData

TOC_NAME = "stargz.index.json"
_FOOTER = 51
_LEGACY_FOOTER = 47
_TAR_BLOCK = 512
_MAX_HEAD = 4096


class _Readable(Protocol):
    """What is needed of a `ReaderAt`."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, n: int, /) -> bytes: ...


def is_estargz(reader: _Readable) -> bool:
    """Whether the blob is eStargz: it has the footer, and the footer points at a table of contents.

    Reads at most a few kilobytes, near the end. Errors of `reader` pass through.
    """
    offset = _toc_offset(reader)
    if offset is None or not 0 <= offset < reader.size:
        return False
    head = bytearray(_TAR_BLOCK)
    inflater = Inflater()
    try:
        _, filled = inflater.inflate_into(reader.read_at(offset, _MAX_HEAD), head)
    except CorruptData:
        return False
    return filled == _TAR_BLOCK and bytes(head[:100]).partition(b"\0")[0] == TOC_NAME.encode()


def _toc_offset(reader: _Readable) -> int | None:
    footer = reader.read_at(max(0, reader.size - _FOOTER), _FOOTER)
    # The footer is an empty gzip member whose extra field is "SG", a length of 22, 16 hex digits and "STARGZ".
    if len(footer) == _FOOTER and footer[:4] == b"\x1f\x8b\x08\x04" and footer[12:16] == b"SG\x16\x00":
        return _hex(footer[16:38])
    footer = footer[-_LEGACY_FOOTER:]
    if len(footer) == _LEGACY_FOOTER and footer[:4] == b"\x1f\x8b\x08\x04":
        return _hex(footer[12:34])
    return None


def _hex(payload: bytes) -> int | None:
    if payload[16:] != b"STARGZ":
        return None
    try:
        return int(payload[:16], 16)
    except ValueError:
        return None
