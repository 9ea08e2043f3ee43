"""Points in a gzip stream that it can be inflated from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blobtee.core.gzip import Inflater
from blobtee.core.native import fail, ffi, lib
from blobtee.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

WINDOW_NBYTES: Final[int] = lib.BT_GZPOINT_WINDOW_NBYTES
MAX_HEADER_NBYTES: Final[int] = lib.BT_GZPOINT_HEADER_NBYTES
MAX_AHEAD_NBYTES: Final[int] = lib.BT_GZPOINT_AHEAD_NBYTES
MAX_SPACING: Final[int] = lib.BT_GZPOINT_MAX_SPACING

_POINT = ffi.typeof("bt_gzpoint *")
_FOUND = ffi.typeof("int *")


@dataclass(frozen=True, slots=True)
class GzipPoint:
    """A place in the deflate data of a gzip stream, and what has to be known to inflate from there on.

    It lies at the beginning of a member's data, between two deflate blocks, or between two symbols of a long one.

    packed_at: the first byte of the stream that is needed.
    at: how many bytes the stream gives before.
    crc32, member_nbytes: of this member's data before; its length is modulo 2**32, as gzip has it.
    nbits, bits: the last bits (0 to 7) of the byte before `packed_at`, which are needed too; the first one is lowest.
    window: the data before, as far as it can be referred to; zeros in place of what nothing refers to.
    header_nbits, header: the header of the block that it lies within, first bit lowest; 0 and empty elsewhere.
    ahead: the stream's next bytes for a point within a block: who inflates up to it and reads no further than
        `packed_at` gives these to the inflater when something is missing at the end; empty elsewhere.
    """

    packed_at: int
    at: int
    crc32: int = 0
    member_nbytes: int = 0
    nbits: int = 0
    bits: int = 0
    window: bytes = b""
    header_nbits: int = 0
    header: bytes = b""
    ahead: bytes = b""


class MarkingInflater(Inflater):
    """An `Inflater` that finds points on its way: one where the first member's data begins, then one after each
    `spacing` bytes of input or output, whichever is sooner, where the next deflate block begins.

    In a block that goes on for as long again a point lies within it, and where a member begins there may be one sooner:
    such a point has no window. There is never more than one in the same 32 KiB of output of one member.
    """

    __slots__ = ("_found", "_point")

    def __init__(self, spacing: int) -> None:
        """Raises InvalidArgument unless spacing is in 1..MAX_SPACING; MemoryError (it takes about 450 KB)."""
        if not 1 <= spacing <= MAX_SPACING:
            raise InvalidArgument(f"MarkingInflater: spacing {spacing} is not in 1..{MAX_SPACING}")
        super().__init__()
        result = lib.bt_inflate_mark(self._context, spacing)
        if result == lib.BT_NO_MEMORY:
            raise MemoryError("MarkingInflater")
        if result:
            fail(result, "MarkingInflater")
        self._point = ffi.new(_POINT)
        self._found = ffi.new(_FOUND)

    def inflate_into(self, data: ReadableBuffer, out: WriteableBuffer, /) -> tuple[int, int]:
        """As `Inflater.inflate_into`, but it stops where a point was found: take it (`point`) and go on.

        Raises FailedPrecondition, having done nothing, while one has not been taken.
        """
        return Inflater.inflate_into(self, data, out)

    def point(self) -> GzipPoint | None:
        """The point that was found by the last `inflate_into`, or None. It may lie some bytes before what was
        consumed, or 32 KiB of output or more."""
        result = lib.bt_inflate_point(self._context, self._point, self._found)
        if result:
            fail(result, "MarkingInflater.point")
        if not self._found[0]:
            return None
        point = self._point
        return GzipPoint(
            packed_at=point.in_nbytes,
            at=point.out_nbytes,
            crc32=point.crc,
            member_nbytes=point.member_nbytes,
            nbits=point.nbits,
            bits=point.bits,
            window=bytes(ffi.buffer(point.window, point.window_nbytes)),
            header_nbits=point.header_nbits,
            header=bytes(ffi.buffer(point.header, (point.header_nbits + 7) // 8)),
            ahead=bytes(ffi.buffer(point.ahead, point.ahead_nbytes)),
        )


def resume(point: GzipPoint, /) -> Inflater:
    """An inflater whose next input is the stream from `point.packed_at` on, and whose output is what comes there.

    At the member's end CRC-32 and length are compared as if it had been read from its beginning. `total_in`,
    `total_out` and `members` count from here. Raises InvalidArgument for a point with numbers outside their ranges,
    CorruptData for one with a header that is none; what else is wrong in a point makes wrong output, or an error later.
    """
    ranges = (
        (point.crc32, 1 << 32),
        (point.member_nbytes, 1 << 32),
        (point.nbits, 8),
        (point.bits, 1 << point.nbits if 0 <= point.nbits < 8 else 0),
        (len(point.window), WINDOW_NBYTES + 1),
        (point.header_nbits, 8 * MAX_HEADER_NBYTES + 1),
    )
    if not all(0 <= value < end for value, end in ranges) or len(point.header) != (point.header_nbits + 7) // 8:
        raise InvalidArgument("resume: a point with numbers that none can have")
    native = ffi.new(_POINT)
    native.crc = point.crc32
    native.member_nbytes = point.member_nbytes
    native.nbits = point.nbits
    native.bits = point.bits
    native.window_nbytes = len(point.window)
    ffi.memmove(native.window, point.window, len(point.window))
    native.header_nbits = point.header_nbits
    ffi.memmove(native.header, point.header, len(point.header))
    inflater = Inflater()
    result = lib.bt_inflate_resume(inflater._context, native)
    if result:
        fail(result, "resume")
    return inflater
