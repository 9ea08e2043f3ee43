"""eStargz: gzip, a member for each file or chunk, and a table of contents that a footer points at."""

from __future__ import annotations

import tarfile

from blobtee.compression.estargz import FOOTER_NBYTES, TOC_NAME, toc_offset
from blobtee.content import ReaderAt
from blobtee.core import Inflater
from blobtee.errors import CorruptData, TooLarge
from blobtee.oci import Descriptor
from blobtee.oci.annotations import TOC_DIGEST
from blobtee.seeking import toc
from blobtee.seeking.api import Contents
from blobtee.tasks import check

SUFFIX_NBYTES = 256 << 10
"""Bytes that are read of the end at once: the footer, and most tables with it."""

_BLOCK = 512
_MORE_NBYTES = 8 << 20


def contents(desc: Descriptor, reader: ReaderAt) -> Contents:
    """What the table of contents tells whose digest the annotations of `desc` have; one read of `reader`, which may be
    raw, two when the table is long.

    Files with holes that our writer has put behind the table are found like others. `CorruptData`, `DigestMismatch`:
    there is no such table. The rest is as for `toc.contents`.
    """
    start = max(0, reader.size - SUFFIX_NBYTES)
    suffix = reader.read_at(start, reader.size - start)
    offset = toc_offset(suffix)
    if offset is None or offset >= reader.size:
        raise CorruptData(f"layer {desc.digest} has no eStargz footer, though its annotations say so")
    table = _table(reader, offset, suffix[offset - start :] if offset >= start else b"")
    toc.check_digest(f"the table of contents of layer {desc.digest}", desc.annotations[TOC_DIGEST], table)
    return toc.contents(table, reader.size, (offset, max(0, reader.size - FOOTER_NBYTES)), _inflate)


def _table(reader: ReaderAt, offset: int, data: bytes) -> memoryview:
    """The table's JSON: the one file in the tar that the member at `offset` holds. `data` is what is known from there
    on."""
    inflater = Inflater()
    pending = memoryview(data)
    position = offset + len(data)
    out = bytearray(_BLOCK)
    filled = 0
    while True:
        check()
        with memoryview(out) as view, view[filled:] as room:
            consumed, produced = inflater.inflate_into(pending, room)
        pending = pending[consumed:]
        filled += produced
        if filled == len(out):
            if filled > _BLOCK:
                return memoryview(out)[_BLOCK:]
            nbytes = _listed_nbytes(bytes(out))
            if not nbytes:
                raise CorruptData("a table of contents of no bytes")
            out += bytes(nbytes)
        elif not pending and not produced:
            if inflater.members or position >= reader.size:
                raise CorruptData("a table of contents that breaks off")
            more = reader.read_at(position, _MORE_NBYTES)
            position += len(more)
            pending = memoryview(more)


def _listed_nbytes(header: bytes) -> int:
    """How long the file is that a tar with this header begins with."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        raise CorruptData("a table of contents that is in no tar") from None
    if info.name != TOC_NAME or not info.isreg():
        raise CorruptData("an eStargz footer that points at another file than the table of contents")
    if not 0 <= info.size <= toc.MAX_TOC:
        raise TooLarge(f"a table of contents of {info.size} bytes; the limit is {toc.MAX_TOC}")
    return info.size


def _inflate(packed: memoryview, out: memoryview, before: int) -> None:
    inflater = Inflater()
    scratch = memoryview(bytearray(before))
    for target in (scratch, out):
        filled = 0
        while filled < len(target):
            check()
            consumed, produced = inflater.inflate_into(packed, target[filled:])
            packed = packed[consumed:]
            filled += produced
            if not consumed and not produced:
                raise CorruptData("a chunk that ends early")
