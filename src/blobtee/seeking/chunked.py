"""zstd:chunked: zstd, a frame for each file or chunk, and a table of contents in a skippable frame. Two dialects.

containers/storage writes annotations and a footer of 64 bytes; stargz-snapshotter others, and one of 40 bytes.
(containers/storage, `docs/containers-storage-zstd-chunked.md`; stargz-snapshotter, package `zstdchunked`.)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import zstandard

from blobtee.compression import MAX_WINDOW
from blobtee.content import ReaderAt
from blobtee.errors import CorruptData, TooLarge
from blobtee.oci import Descriptor
from blobtee.oci.annotations import (
    CHUNKED_DIGEST,
    CHUNKED_POSITION,
    STARGZ_CHUNKED_DIGEST,
    STARGZ_CHUNKED_POSITION,
    TOC_DIGEST,
)
from blobtee.seeking import toc
from blobtee.seeking.api import Contents
from blobtee.seeking.estargz import SUFFIX_NBYTES
from blobtee.tasks import check

_TYPE = 1
"""The one kind of table there is: the same JSON as eStargz's."""


class _Dialect(NamedTuple):
    digest_key: str
    position_key: str
    footer: struct.Struct
    magic: bytes


_CONTAINERS = _Dialect(CHUNKED_DIGEST, CHUNKED_POSITION, struct.Struct("<7Q8s"), b"GNUlInUx")
_STARGZ = _Dialect(STARGZ_CHUNKED_DIGEST, STARGZ_CHUNKED_POSITION, struct.Struct("<4Q8s"), b"GnUlInUx")


def told(desc: Descriptor) -> bool:
    """Whether the annotations of `desc`, a zstd layer, tell of a table of contents."""
    return any(key in desc.annotations for key in (CHUNKED_DIGEST, STARGZ_CHUNKED_DIGEST, TOC_DIGEST))


def contents(desc: Descriptor, reader: ReaderAt) -> Contents:
    """What the table of contents tells whose digest the annotations of `desc` have; one read of `reader`, which may be
    raw, two when no annotation says where it is and it is long.

    `CorruptData`, `DigestMismatch`: there is no such table; there are annotations of both dialects, which could tell
    two different trees. The rest is as for `toc.contents`.
    """
    annotations = desc.annotations
    if CHUNKED_DIGEST in annotations and (STARGZ_CHUNKED_DIGEST in annotations or TOC_DIGEST in annotations):
        raise CorruptData(f"layer {desc.digest} is annotated with the tables of two dialects")
    dialect = _CONTAINERS if CHUNKED_DIGEST in annotations else _STARGZ
    packed, offset, nbytes = _packed(desc, reader, dialect)
    what = f"the table of contents of layer {desc.digest}"
    if dialect.digest_key in annotations:
        toc.check_digest(what, annotations[dialect.digest_key], packed)
    table = _decompress(packed, nbytes)
    if TOC_DIGEST in annotations:
        toc.check_digest(what, annotations[TOC_DIGEST], table)
    return toc.contents(table, reader.size, (offset,), _unpack)


def _packed(desc: Descriptor, reader: ReaderAt, dialect: _Dialect) -> tuple[bytes, int, int]:
    """The table as it is packed, where it begins, and how long it says that it is unpacked."""
    text = desc.annotations.get(dialect.position_key)
    if text is not None:
        numbers = toc.position(text, 4, reader.size)
        _check_numbers(numbers)
        return reader.read_at(numbers[0], numbers[1]), numbers[0], numbers[2]
    start = max(0, reader.size - SUFFIX_NBYTES)
    suffix = reader.read_at(start, reader.size - start)
    if len(suffix) < dialect.footer.size:
        raise CorruptData(f"layer {desc.digest} is too short for a footer")
    *numbers, magic = dialect.footer.unpack(suffix[-dialect.footer.size :])
    if magic != dialect.magic or numbers[0] + numbers[1] > reader.size:
        raise CorruptData(f"layer {desc.digest} has no footer of zstd:chunked, though its annotations say so")
    _check_numbers(numbers)
    offset, packed_nbytes, nbytes = numbers[:3]
    if offset >= start:
        return suffix[offset - start :][:packed_nbytes], offset, nbytes
    return reader.read_at(offset, packed_nbytes), offset, nbytes


def _check_numbers(numbers: list[int]) -> None:
    if numbers[3] != _TYPE:
        raise CorruptData(f"a table of contents of type {numbers[3]}")
    if max(numbers[1:3]) > toc.MAX_TOC:
        raise TooLarge(f"a table of contents of {max(numbers[1:3])} bytes; the limit is {toc.MAX_TOC}")


def _decompress(packed: bytes, nbytes: int) -> memoryview:
    out = memoryview(bytearray(nbytes + 1))
    if _read_into(memoryview(packed), out) != nbytes:
        raise CorruptData("a table of contents of another length than it says")
    return out[:nbytes]


def _unpack(packed: memoryview, out: memoryview, before: int) -> None:
    whole = out if not before else memoryview(bytearray(before + len(out)))
    if _read_into(packed, whole) != len(whole):
        raise CorruptData("a chunk that ends early")
    if before:
        out[:] = whole[before:]


def _read_into(packed: memoryview, out: memoryview) -> int:
    """Fill `out` with what is packed, as far as there is any; how many bytes there were."""
    filled = 0
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        with decompressor.stream_reader(packed, read_across_frames=True) as reader:
            while filled < len(out):
                check()
                n = reader.readinto(out[filled:])
                if not n:
                    break
                filled += n
    except zstandard.ZstdError as error:
        raise CorruptData(f"damaged zstd data: {error}") from None
    return filled
