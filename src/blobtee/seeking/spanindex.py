"""The index that gzip and zstd layers of ours have near their end (`docs/formats.md`, "blobtee's own index").

It tells the tar's entries, and each member or frame with its digest. Decoders pass over it: in zstd it is a skippable
frame, in gzip the extra fields of empty members. The manifest's annotations say where it is and what its digest is.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import zstandard

from blobtee.content import ReaderAt, Trust
from blobtee.errors import CorruptData, TooLarge
from blobtee.oci import Compressed, Descriptor, Digest
from blobtee.oci.annotations import INDEX_DIGEST, INDEX_POSITION
from blobtee.seeking import listing
from blobtee.seeking.api import Contents
from blobtee.seeking.pieces import DIGEST_NBYTES, Pieces
from blobtee.seeking.spans import SpanTable
from blobtee.seeking.toc import MAX_TOC, check_digest, position

MAX_LISTED = 32 << 20
"""Bytes of the list of entries beyond which a layer is written without an index: some 250,000 files."""
MIN_BLOB = 256 << 10
"""Bytes of a blob below which it has none: it is read at once anyway."""

_LEVEL = 12
_MAGIC = b"BTX1"
_HEAD = struct.Struct("<4sIQ")
_SKIPPABLE_MAGIC = 0x184D2A5B
_SKIPPABLE = struct.Struct("<II")
# An empty member: no name, no time, OS unknown, an extra field; and at its end an empty final block, CRC-32 and length.
_MEMBER_HEAD = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff"
_MEMBER_END = b"\x03\x00" + bytes(8)
_SUBFIELD = b"BT"
_MAX_EXTRA = 65_535 - 4
_MEMBER_NBYTES = len(_MEMBER_HEAD) + 2 + 4 + len(_MEMBER_END)


class Made(NamedTuple):
    """`data` is to follow the last member or frame directly; `annotations` belong to the layer's descriptor."""

    data: bytes
    annotations: dict[str, str]


def make(pieces: Sequence[tuple[int, int, bytes]], entries: listing.ListWriter, form: Compressed) -> Made:
    """The index of a blob that begins with `pieces`: how many bytes each holds and takes, and its SHA-256.

    The same input gives the same bytes, with one version of libzstd.
    """
    holds = listing.packed_column(array("q", [piece[0] for piece in pieces]))
    takes = listing.packed_column(array("q", [piece[1] for piece in pieces]))
    digests = b"".join(piece[2] for piece in pieces)
    listed = entries.to_bytes()
    index = _HEAD.pack(_MAGIC, len(pieces), len(listed)) + holds + takes + digests + listed
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, source_size=len(index), write_content_size=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compress(index)
    data = _in_members(packed) if form is Compressed.GZIP else _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(packed)) + packed
    offset = sum(piece[1] for piece in pieces)
    return Made(data, {INDEX_DIGEST: Digest.of(data), INDEX_POSITION: f"{offset}:{len(data)}"})


def _in_members(packed: bytes) -> bytes:
    data = bytearray()
    for start in range(0, len(packed), _MAX_EXTRA):
        part = packed[start : start + _MAX_EXTRA]
        extra = _SUBFIELD + len(part).to_bytes(2, "little") + part
        data += _MEMBER_HEAD + len(extra).to_bytes(2, "little") + extra + _MEMBER_END
    return bytes(data)


def told(desc: Descriptor) -> bool:
    """Whether the annotations of `desc` tell of an index."""
    return INDEX_DIGEST in desc.annotations and INDEX_POSITION in desc.annotations


def contents(desc: Descriptor, form: Compressed, reader: ReaderAt) -> Contents:
    """What the index says that the annotations of `desc` name; one read of `reader`, which may be raw.

    `CorruptData`, `DigestMismatch`: it is not there, or makes no sense; `TooLarge` beyond the bounds of `toc` and
    `listing`.
    """
    offset, nbytes, *_ = position(desc.annotations[INDEX_POSITION], 2, reader.size)
    data = reader.read_at(offset, nbytes)
    check_digest(f"the index of layer {desc.digest}", desc.annotations[INDEX_DIGEST], data)
    packed = _from_members(data) if form is Compressed.GZIP else _from_skippable(data)
    return _parse(memoryview(unpacked(packed)), offset, form)


def unpacked(packed: bytes | memoryview) -> bytes:
    """What the one zstd frame holds; it must say how much, and no more than `MAX_TOC`."""
    try:
        nbytes = zstandard.frame_content_size(packed[:18])
        if nbytes > MAX_TOC:
            raise TooLarge(f"an index of {nbytes} bytes; the limit is {MAX_TOC}")
        if nbytes < 0:
            raise CorruptData("an index that does not say how long it is")
        data = zstandard.ZstdDecompressor(max_window_size=256 << 20).decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptData(f"an index that does not decode: {error}") from None
    if len(data) != nbytes:
        raise CorruptData("an index that breaks off")
    return data


def _from_skippable(data: bytes) -> memoryview:
    if len(data) < _SKIPPABLE.size or _SKIPPABLE.unpack_from(data) != (
        _SKIPPABLE_MAGIC,
        len(data) - _SKIPPABLE.size,
    ):
        raise CorruptData("an index that is not a skippable frame")
    return memoryview(data)[_SKIPPABLE.size :]


def _from_members(data: bytes) -> bytes:
    packed = bytearray()
    at = 0
    while at < len(data):
        head = data[at : at + len(_MEMBER_HEAD) + 2 + 4]
        nbytes = int.from_bytes(head[-2:], "little")
        end = at + _MEMBER_NBYTES + nbytes
        extra = len(head[10:12]) == 2 and int.from_bytes(head[10:12], "little") == nbytes + 4
        if not head.startswith(_MEMBER_HEAD) or head[12:14] != _SUBFIELD or not extra or end > len(data):
            raise CorruptData("an index that is not in empty members")
        packed += data[at + len(head) : at + len(head) + nbytes]
        at = end
    return bytes(packed)


def _parse(index: memoryview, blob_nbytes: int, form: Compressed) -> Contents:
    if len(index) < _HEAD.size:
        raise CorruptData("an index that breaks off")
    magic, count, listed_nbytes = _HEAD.unpack_from(index)
    columns = 8 * count
    if magic != _MAGIC or len(index) != _HEAD.size + 2 * columns + DIGEST_NBYTES * count + listed_nbytes:
        raise CorruptData("an index that is none of ours, or of another version")
    at = _HEAD.size
    holds, takes = (listing.column(index[at + k * columns : at + (k + 1) * columns]) for k in range(2))
    at += 2 * columns
    table = SpanTable(blob_nbytes)
    packed_at = 0
    for nbytes, packed_nbytes in zip(holds, takes, strict=True):
        if not packed_nbytes:
            raise CorruptData("an index with a piece of no bytes")
        table.append(nbytes, packed_at, packed_nbytes)
        packed_at += packed_nbytes
    if packed_at != blob_nbytes:
        raise CorruptData("an index whose pieces are not all of the layer")
    digests = bytes(index[at : at + DIGEST_NBYTES * count])
    at += DIGEST_NBYTES * count
    stream = Pieces(table, form, digests)
    return Contents(listing.load(index[at:], stream.size), stream, Trust.ATTESTED)
