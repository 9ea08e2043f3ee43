"""Layers in pieces that decode each by itself: zstd frames with a seek table, gzip members with their size.

What such a layer says of its pieces is a claim like any other. `members` and `frames` find what is claimed; who reads
all of the stream once, as `whole.contents` does, has it proven: each piece decodes to just what it said, and nothing
lies between them. With digests a piece is proven by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from blobtee.compression.detect import is_skippable
from blobtee.compression.unzstd import SizedFrames, is_one_frame
from blobtee.content import ReaderAt, Trust
from blobtee.core import SIZED_HEADER_NBYTES, Sha256, gunzip, gunzip_member_into, sized_member_nbytes
from blobtee.errors import BlobteeError, CorruptData, DigestMismatch
from blobtee.oci import Compressed
from blobtee.seeking.spans import MAX_SPAN, SpannedStream, SpanTable
from blobtee.tasks import check

DIGEST_NBYTES = 32
_TRAILER_NBYTES = 8
_MAX_PIECES = 4 << 20
_SEEKABLE_MAGIC = 0x8F92EAB1
_SEEKABLE_FRAME = 0x184D2A5E
_SEEKABLE_FOOTER = struct.Struct("<IBI")
_SKIPPABLE = struct.Struct("<II")

Decode = Callable[[memoryview, memoryview], None]
"""Fills the second with what the first, one whole piece, holds; `CorruptData` unless that is exactly as much."""


class Pieces(SpannedStream):
    """A span is a piece. With `digests`, SHA-256 of each piece as it is packed, they are compared first.

    One piece of gzip may be a row of members: the one whose number is `rest`.
    """

    def __init__(
        self, table: SpanTable, form: Compressed, digests: bytes | None = None, rest: int | None = None
    ) -> None:
        super().__init__(table)
        self.proof = Trust.RAW if digests is None else Trust.ATTESTED
        self.form = form
        self.digests = digests
        self.rest = rest
        self._decode: Decode = gunzip_member_into if form is Compressed.GZIP else _Frame()

    def unpack(self, number: int, packed: memoryview) -> memoryview:
        if self.digests is not None:
            expected = self.digests[number * DIGEST_NBYTES : (number + 1) * DIGEST_NBYTES]
            actual = Sha256(packed)
            if actual.digest() != expected:
                span = self.table[number]
                what = f"bytes [{span.packed_at}, {span.packed_at + span.packed_nbytes}) of the layer"
                raise DigestMismatch(what, f"sha256:{expected.hex()}", f"sha256:{actual.hexdigest()}")
        if number == self.rest:
            return memoryview(gunzip(packed, max_output=self.table[number].nbytes))
        out = memoryview(bytearray(self.table[number].nbytes))
        self._decode(packed, out)
        return out


class _Frame:
    def __init__(self) -> None:
        self._form = SizedFrames()

    def __call__(self, packed: memoryview, out: memoryview) -> None:
        if not len(out) and is_skippable(bytes(packed[:4])):
            if _skippable_nbytes(packed) != len(packed):
                raise CorruptData("a seek table that cuts a skippable frame in two")
            return
        if not is_one_frame(packed):
            raise CorruptData("a piece that is not one zstd frame")
        self._form.unpack(packed, out)


def members(reader: ReaderAt) -> Pieces | None:
    """The members of a gzip blob that say how long they are (`core.sized_member_nbytes`); what comes behind the last of
    them is one more piece. None for any other gzip. Some 30 bytes are read of each member. Errors of `reader`."""
    table = SpanTable(reader.size)
    header = reader.read_at(0, SIZED_HEADER_NBYTES)
    position = 0
    while (nbytes := sized_member_nbytes(header)) is not None:
        check()
        end = position + nbytes
        if end > reader.size or nbytes > MAX_SPAN or len(table) >= _MAX_PIECES:
            return None
        edge = reader.read_at(end - 4, 4 + SIZED_HEADER_NBYTES)
        holds = int.from_bytes(edge[:4], "little")
        if holds > MAX_SPAN:
            return None
        table.append(holds, position, nbytes)
        position, header = end, edge[4:]
    rest = reader.size - position
    if not len(table) or rest > MAX_SPAN:
        return None
    if not rest:
        return Pieces(table, Compressed.GZIP)
    number = len(table)
    try:
        last = gunzip(reader.read_at(position, rest), max_output=MAX_SPAN)
    except BlobteeError:
        return None  # too long, or damaged; who reads it in order will say so
    table.append(len(last), position, rest)
    return Pieces(table, Compressed.GZIP, rest=number)


def frames(reader: ReaderAt) -> Pieces | None:
    """The frames that a zstd blob's seek table tells; None when it has none that makes sense. Errors of `reader`."""
    footer = reader.read_at(max(0, reader.size - _SEEKABLE_FOOTER.size), _SEEKABLE_FOOTER.size)
    if len(footer) < _SEEKABLE_FOOTER.size:
        return None
    count, flags, magic = _SEEKABLE_FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC or flags & 0x7C or count > _MAX_PIECES:
        return None
    entry_nbytes = 12 if flags & 0x80 else 8
    nbytes = _SKIPPABLE.size + count * entry_nbytes + _SEEKABLE_FOOTER.size
    start = reader.size - nbytes
    if start < 0:
        return None
    data = reader.read_at(start, nbytes)
    if _SKIPPABLE.unpack_from(data) != (_SEEKABLE_FRAME, nbytes - _SKIPPABLE.size):
        return None
    table = SpanTable(start)
    position = 0
    try:
        for number in range(count):
            packed_nbytes, holds = _SKIPPABLE.unpack_from(data, _SKIPPABLE.size + number * entry_nbytes)
            table.append(holds, position, packed_nbytes)
            position += packed_nbytes
    except BlobteeError:
        return None
    return Pieces(table, Compressed.ZSTD) if _all_skippable(reader, position, start) else None


def _all_skippable(reader: ReaderAt, position: int, end: int) -> bool:
    """Whether [position, end) is nothing but skippable frames: no other data lies behind the frames of the table."""
    while position < end:
        check()
        nbytes = _skippable_nbytes(memoryview(reader.read_at(position, _SKIPPABLE.size)))
        if not nbytes:
            return False
        position += nbytes
    return position == end


def _skippable_nbytes(head: memoryview) -> int:
    """How long the skippable frame that begins so is, its header included; 0 when it is none."""
    if len(head) < _SKIPPABLE.size or not is_skippable(bytes(head[:4])):
        return 0
    return _SKIPPABLE.size + int(_SKIPPABLE.unpack_from(head)[1])
