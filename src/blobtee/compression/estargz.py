"""eStargz: a gzip layer whose footer points at a table of its contents (stargz-snapshotter, `docs/estargz.md`)."""

from __future__ import annotations

from typing import Protocol

from blobtee.core import Inflater
from blobtee.errors import CorruptData

TOC_NAME = "stargz.index.json"
FOOTER_NBYTES = 51

_LEGACY_FOOTER_NBYTES = 47
_GZIP_WITH_EXTRA = b"\x1f\x8b\x08\x04"
_SUBFIELD = b"SG\x16\x00"
_MAGIC = b"STARGZ"
_EMPTY_DEFLATE = b"\x01\x00\x00\xff\xff"
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
    return _checked_toc_offset(reader) is not None


def payload_nbytes(reader: _Readable) -> int:
    """How many of the blob's packed bytes, from its start, are the layer itself: all before its table of contents.

    Decoding just these gives the tar without the table's entry. What another writer made may then lack the
    end-of-archive mark. `CorruptData` when the blob is not eStargz (see `is_estargz`), its footer's offset included.
    """
    offset = _checked_toc_offset(reader)
    if offset is None:
        raise CorruptData("not an eStargz blob: its footer points at no table of contents")
    return offset


def footer(toc_offset: int) -> bytes:
    """The last `FOOTER_NBYTES` bytes of a blob whose table of contents begins at `toc_offset`.

    It is an empty gzip member whose extra field is the subfield "SG": 16 hex digits and "STARGZ".
    """
    extra = _SUBFIELD + b"%016x" % toc_offset + _MAGIC
    head = _GZIP_WITH_EXTRA + bytes(5) + b"\xff" + len(extra).to_bytes(2, "little")
    return head + extra + _EMPTY_DEFLATE + bytes(8)


def _checked_toc_offset(reader: _Readable) -> int | None:
    offset = toc_offset(reader.read_at(max(0, reader.size - FOOTER_NBYTES), FOOTER_NBYTES))
    if offset is None or offset >= reader.size:
        return None
    head = bytearray(_TAR_BLOCK)
    inflater = Inflater()
    try:
        _, filled = inflater.inflate_into(reader.read_at(offset, _MAX_HEAD), head)
    except CorruptData:
        return None
    is_table = filled == _TAR_BLOCK and bytes(head[:100]).partition(b"\0")[0] == TOC_NAME.encode()
    return offset if is_table else None


def toc_offset(suffix: bytes) -> int | None:
    """Where the footer at the end of `suffix`, the blob's last bytes, says that the table begins; None when it is none.
    Either kind of footer is `FOOTER_NBYTES` long at most."""
    end = suffix[-FOOTER_NBYTES:]
    if len(end) == FOOTER_NBYTES and end[:4] == _GZIP_WITH_EXTRA and end[10:16] == b"\x1a\x00" + _SUBFIELD:
        return _hex(end[16:38])
    # Before it became a subfield as RFC 1952 wants it, the payload was all of the extra field.
    end = end[-_LEGACY_FOOTER_NBYTES:]
    if len(end) == _LEGACY_FOOTER_NBYTES and end[:4] == _GZIP_WITH_EXTRA and end[10:12] == b"\x16\x00":
        return _hex(end[12:34])
    return None


def _hex(payload: bytes) -> int | None:
    digits, magic = payload[:16], payload[16:]
    if magic != _MAGIC or digits.strip(b"0123456789abcdefABCDEF"):
        return None
    return int(digits, 16)
