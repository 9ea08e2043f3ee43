"""gzip in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

from blobtee.core.native import (
    BYTES,
    SIZES,
    TWO_SIZES,
    fail,
    ffi,
    lib,
    new_uncleared,
    readable,
    writable,
)
from blobtee.errors import InvalidArgument, TooLarge

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

GZIP_MIN_LEVEL: Final[int] = lib.BT_GZIP_MIN_LEVEL
GZIP_MAX_LEVEL: Final[int] = lib.BT_GZIP_MAX_LEVEL

_INFO = ffi.typeof("bt_inflate_info *")


class Inflater:
    """Decompresses one gzip stream (RFC 1952), a piece at a time, into buffers of the caller, who so caps the output.

    A stream is one or more members, one after the other; any number of zero bytes may follow the last one, and anything
    else is an error. All header fields are understood and skipped; the header's checksum, if it has one, and CRC-32 and
    length of each member are checked.

    An error in the data is `CorruptData`, and final: every later call raises it again. Bytes handed out before it are
    not proven; only a member whose trailer was read (`members`) is.
    """

    __slots__ = ("_context",)

    def __init__(self) -> None:
        """Raises MemoryError when the context (about 90 KB) cannot be had."""
        context = lib.bt_inflate_alloc()
        if context == ffi.NULL:
            raise MemoryError("Inflater")
        self._context = ffi.gc(context, lib.bt_inflate_free, size=90_000)

    def inflate_into(self, data: ReadableBuffer, out: WriteableBuffer, /) -> tuple[int, int]:
        """Decompresses from the start of `data` into the start of `out`; returns (consumed, produced), in bytes.

        It goes on until all of `data` is consumed or `out` is full: with both not empty it always gets further. Give
        what was not consumed again. Output may be waiting when all input was consumed: `needs_input` is False then, and
        calling again with b"" brings it. The two buffers must not overlap.

        Raises CorruptData, for this and every later call (`out` then holds unspecified bytes, and nothing of this call
        counts); FailedPrecondition when another thread is using this object, which changes nothing.
        """
        sizes = new_uncleared(TWO_SIZES)
        with readable(data) as source, writable(out) as target:
            result = lib.bt_inflate(self._context, source, len(source), sizes, target, len(target), sizes + 1)
        if result:
            self._fail(result, "Inflater.inflate_into")
        return sizes[0], sizes[1]

    def finish(self) -> None:
        """Says that no more input comes.

        Raises CorruptData when the stream is not whole (it ends inside a member, or there was none), or had failed
        before; FailedPrecondition when output may still be waiting, or when another thread is using this object: these
        two change nothing.
        """
        result = lib.bt_inflate_finish(self._context)
        if result:
            self._fail(result, "Inflater.finish")

    def _fail(self, result: int, what: str) -> NoReturn:
        where = ""
        info = ffi.new(_INFO)
        if result != lib.BT_BUSY and lib.bt_inflate_stat(self._context, info) == lib.BT_OK:
            where = f" (member {info.members + 1}, after {info.total_in_nbytes} bytes in, {info.total_out_nbytes} out)"
        fail(result, what, where)

    def _stat(self) -> Any:
        info = ffi.new(_INFO)
        result = lib.bt_inflate_stat(self._context, info)
        if result:
            fail(result, "Inflater")
        return info

    @property
    def members(self) -> int:
        """How many members were read whole, and proved right."""
        return int(self._stat().members)

    @property
    def finished(self) -> bool:
        """True when what was read so far is a whole stream and all its output was handed out: `finish` would not raise.

        More input may make it False again: another member may follow.
        """
        return bool(self._stat().finished)

    @property
    def needs_input(self) -> bool:
        """True when all input was consumed and all output it makes was handed out."""
        return bool(self._stat().needs_input)

    @property
    def member_state(self) -> tuple[int, int]:
        """CRC-32 and length (modulo 2**32) of what was handed out of the member being read; (0, 0) between members."""
        info = self._stat()
        return int(info.crc), int(info.member_nbytes)

    @property
    def total_in(self) -> int:
        """Bytes consumed, over all calls."""
        return int(self._stat().total_in_nbytes)

    @property
    def total_out(self) -> int:
        """Bytes produced, over all calls."""
        return int(self._stat().total_out_nbytes)


def _likely_size(view: Any) -> int:
    """What a gzip stream's last bytes say it holds: right if it is one member, below 4 GiB, and tells the truth."""
    n = len(view)
    if n < 18:
        return 0
    claimed = int.from_bytes(ffi.buffer(view + (n - 4), 4)[:], "little")
    # Deflate makes at most 1032 bytes out of one; a larger claim is none.
    return claimed if claimed <= 1032 * n else 0


def gunzip(data: ReadableBuffer, /, *, max_output: int) -> bytes:
    """What the whole gzip stream `data` holds: all its members, one after the other; at most `max_output` bytes.

    Raises TooLarge (a ResourceExhausted) as soon as there is more, CorruptData for a stream that is damaged or not
    whole, InvalidArgument when max_output is negative.
    """
    if max_output < 0:
        raise InvalidArgument(f"gunzip: max_output is negative: {max_output}")
    inflater = Inflater()
    with readable(data) as view:
        likely = _likely_size(view)
        rest = memoryview(ffi.buffer(view))
        out = bytearray(min(max_output, likely or 4 * len(rest) + 1024))
        produced = 0
        while True:
            with memoryview(out) as whole, whole[produced:] as space:
                consumed, got = inflater.inflate_into(rest, space)
                filled = got == len(space)
            rest = rest[consumed:]
            produced += got
            if not filled or (not rest and inflater.finished):
                break
            if produced == max_output:
                # Full, but the end was not seen: there may be a trailer left to read, or one byte too many.
                consumed, got = inflater.inflate_into(rest, bytearray(1))
                if got:
                    raise TooLarge(f"gunzip: more than max_output = {max_output} bytes come out")
                break
            out += bytes(min(max(produced, 65536), max_output - produced))
    inflater.finish()
    del out[produced:]
    return bytes(out)


# Compressors are large (up to some MB) and slow to set up, so each level keeps those that are not in use.
# list.append and list.pop are atomic; a thread that finds none makes one.
_idle: dict[int, list[Any]] = {level: [] for level in range(GZIP_MIN_LEVEL, GZIP_MAX_LEVEL + 1)}
_MAX_IDLE = 4


def _compress(data: Any, out: Any, level: int, sized: bool, what: str) -> int:
    idle = _idle.get(level)
    if idle is None:
        raise InvalidArgument(f"{what}: level {level} is not in {GZIP_MIN_LEVEL}..{GZIP_MAX_LEVEL}")
    try:
        compressor = idle.pop()
    except IndexError:
        compressor = lib.bt_gzip_alloc(level)
        if compressor == ffi.NULL:
            raise MemoryError(what) from None
        compressor = ffi.gc(compressor, lib.bt_gzip_free)
    nbytes = ffi.new(SIZES, 1)
    result = lib.bt_gzip_member(compressor, data, len(data), out, len(out), sized, nbytes)
    if len(idle) < _MAX_IDLE:
        idle.append(compressor)
    if result:
        fail(result, what)
    return int(nbytes[0])


def gzip_member_bound(nbytes: int, /) -> int:
    """The most bytes that a member holding `nbytes` bytes can take, at any level.

    Raises InvalidArgument when nbytes is negative or the bound is no size a machine could have.
    """
    bound = lib.bt_gzip_bound(nbytes) if 0 <= nbytes < 1 << 63 else 0
    if bound == 0:
        raise InvalidArgument(f"gzip_member_bound: no buffer can be for {nbytes} bytes")
    return int(bound)


def gzip_member(data: ReadableBuffer, level: int = 6, *, sized: bool = False) -> bytes:
    """The bytes of `data` as one gzip member (RFC 1952), compressed by libdeflate.

    level: 0 (stored) to 12 (smallest); else InvalidArgument. Members may be joined to a stream in any number.
    Equal data and level give equal bytes, with one version of libdeflate: no name, no time, OS 255.

    sized: the header also says how long the member is, in an extra field that other readers skip, so that
    `sized_member_nbytes` can find the next one without inflating. InvalidArgument for more than 2**30 bytes then.
    """
    with readable(data) as view:
        out = new_uncleared(BYTES, gzip_member_bound(len(view)))
        nbytes = _compress(view, out, level, sized, "gzip_member")
    member: bytes = ffi.buffer(out, nbytes)[:]
    return member


def gzip_member_into(data: ReadableBuffer, out: WriteableBuffer, level: int = 6, *, sized: bool = False) -> int:
    """As `gzip_member`, into the start of `out`; returns how many bytes were written. The two must not overlap.

    Raises InvalidArgument when `out` is too small (of `gzip_member_bound` bytes it never is; a few bytes more than the
    member takes may be wanted) or there is no such level; `out` then holds unspecified bytes.
    """
    with readable(data) as view, writable(out) as target:
        return _compress(view, target, level, sized, "gzip_member_into")


SIZED_HEADER_NBYTES: Final = 20
_SIZED_START = b"\x1f\x8b\x08\x04"
_SIZED_EXTRA = b"\x08\x00MZ\x04\x00"
_TRAILER_NBYTES = 8
_idle_readers: list[Any] = []


def sized_member_nbytes(header: bytes, /) -> int | None:
    """How long the gzip member that begins with `header` says it is, from its first to its last byte.

    header: its first SIZED_HEADER_NBYTES bytes. None when it does not say; see `gzip_member` for those that do, and
    MiGz writes the same. What it says is a claim: `gunzip_member_into` proves it.
    """
    if header[:4] != _SIZED_START or header[10:16] != _SIZED_EXTRA or len(header) < SIZED_HEADER_NBYTES:
        return None
    return SIZED_HEADER_NBYTES + int.from_bytes(header[16:SIZED_HEADER_NBYTES], "little") + _TRAILER_NBYTES


def gunzip_member_into(member: ReadableBuffer, out: WriteableBuffer, /) -> None:
    """Decompresses `member`, exactly one gzip member, that must fill `out` exactly. The two must not overlap.

    Faster than an `Inflater`. Raises CorruptData when it is not so, or is damaged (CRC-32 and length are compared, a
    header's checksum is not); `out` then holds unspecified bytes.
    """
    with readable(member) as source, writable(out) as target:
        try:
            reader = _idle_readers.pop()
        except IndexError:
            reader = lib.bt_gunzip_alloc()
            if reader == ffi.NULL:
                raise MemoryError("gunzip_member_into") from None
            reader = ffi.gc(reader, lib.bt_gunzip_free)
        result = lib.bt_gunzip_member(reader, source, len(source), target, len(target))
        if len(_idle_readers) < _MAX_IDLE:
            _idle_readers.append(reader)
    if result:
        fail(result, "gunzip_member_into")
