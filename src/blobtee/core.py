"""The C core as typed Python: SHA-256, CRC-32C, gzip in and out. Nothing else imports `blobtee._core`.

What holds for everything here:

- A buffer is any C-contiguous object with the buffer protocol (bytes, bytearray, memoryview, mmap, array). It is read
  in place, never copied. Anything else is a TypeError, and so is a read-only buffer where one is written to.
- The GIL is released while C works, so other threads run on. Do not change or free a buffer that a call is reading.
- Objects may move between threads, but one thread at a time may use one: a second one that comes in meanwhile gets
  `FailedPrecondition`, and what the first one does is not disturbed.
- Sizes are bytes.

The environment variable BLOBTEE_CPU, read when this module is imported, restricts which CPU instructions are used:
unset, empty or `native` for all that are found, `portable` for none, or a comma list out of `CpuFeatures.known`. It
does not reach into ISA-L and libdeflate, which choose for themselves.

`python -m blobtee.core` says what was found and checks a few known answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, NoReturn

import cffi

from blobtee._core import ffi as _ffi
from blobtee._core import lib as _lib
from blobtee.errors import (
    BlobteeError,
    CorruptData,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    TooLarge,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "GZIP_MAX_LEVEL",
    "GZIP_MIN_LEVEL",
    "SIZED_HEADER_NBYTES",
    "CpuFeatures",
    "Inflater",
    "Sha256",
    "TarHeaders",
    "TarScanner",
    "cpu_features",
    "crc32c",
    "gunzip",
    "gunzip_member_into",
    "gzip_member",
    "gzip_member_bound",
    "gzip_member_into",
    "library_versions",
    "sha256_many",
    "sized_member_nbytes",
    "update_many",
]

GZIP_MIN_LEVEL: Final[int] = _lib.BT_GZIP_MIN_LEVEL
GZIP_MAX_LEVEL: Final[int] = _lib.BT_GZIP_MAX_LEVEL

# cffi looks a type up by its text on each call; objects are quicker.
_BYTES = _ffi.typeof("uint8_t[]")
_POINTERS = _ffi.typeof("const uint8_t *[]")
_SIZES = _ffi.typeof("size_t[]")
_TWO_SIZES = _ffi.typeof("size_t[2]")
_SHA256 = _ffi.typeof("bt_sha256 *")
_SHA256S = _ffi.typeof("bt_sha256 *[]")
_DIGEST = _ffi.typeof("uint8_t[32]")
_INFO = _ffi.typeof("bt_inflate_info *")
# For results: every byte that is read from them was written before.
_new_uncleared = _ffi.new_allocator(should_clear_after_alloc=False)

_ERROR_CLASSES: dict[int, type[BlobteeError]] = {
    _lib.BT_BUSY: FailedPrecondition,
    _lib.BT_BAD_ARGUMENT: InvalidArgument,
    _lib.BT_BAD_STATE: InvalidArgument,
    _lib.BT_TOO_LONG: InvalidArgument,
    _lib.BT_NO_SPACE: InvalidArgument,
    _lib.BT_NOT_DRAINED: FailedPrecondition,
    _lib.BT_TRUNCATED: CorruptData,
    _lib.BT_BAD_MAGIC: CorruptData,
    _lib.BT_BAD_METHOD: CorruptData,
    _lib.BT_BAD_FLAGS: CorruptData,
    _lib.BT_BAD_HEADER_CRC: CorruptData,
    _lib.BT_BAD_DEFLATE: CorruptData,
    _lib.BT_BAD_CRC: CorruptData,
    _lib.BT_BAD_ISIZE: CorruptData,
    _lib.BT_TRAILING_GARBAGE: CorruptData,
}


def _text(pointer: Any) -> str:
    text = _ffi.string(pointer)
    assert isinstance(text, bytes)
    return text.decode("ascii")


def _fail(result: int, what: str, where: str = "") -> NoReturn:
    raise _ERROR_CLASSES.get(result, Internal)(f"{what}: {_text(_lib.bt_strerror(result))}{where}")


def _readable(data: ReadableBuffer) -> Any:
    try:
        return _ffi.from_buffer(_BYTES, data)
    except BufferError as error:
        raise TypeError(f"a C-contiguous buffer is needed: {error}") from None


def _all_readable(buffers: Iterable[ReadableBuffer]) -> list[Any]:
    from_buffer, kind = _ffi.from_buffer, _BYTES
    try:
        return [from_buffer(kind, data) for data in buffers]
    except BufferError as error:
        raise TypeError(f"C-contiguous buffers are needed: {error}") from None


def _writable(out: WriteableBuffer) -> Any:
    try:
        return _ffi.from_buffer(_BYTES, out, True)
    except BufferError as error:
        raise TypeError(f"a writable, C-contiguous buffer is needed: {error}") from None


# ---- CPU ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """What the processor can do and what is made of it.

    known: every feature word, of all architectures; these are what BLOBTEE_CPU takes.
    found: those this processor has.
    allowed: those of `found` that BLOBTEE_CPU leaves in use.
    sha256: the SHA-256 implementation in use: "shani", "armv8-sha2" or "portable".
    sha256_lanes: how many streams it hashes side by side on one core; 1 means one after the other.
    crc32c: the CRC-32C implementation in use.
    """

    known: frozenset[str]
    found: frozenset[str]
    allowed: frozenset[str]
    sha256: str
    sha256_lanes: int
    crc32c: str


def _words(features: int) -> frozenset[str]:
    bits = (1 << n for n in range(32))
    return frozenset(_text(_lib.bt_cpu_word(bit)) for bit in bits if features & bit)


def cpu_features() -> CpuFeatures:
    """What was found, what is allowed, and which implementations that selects."""
    return CpuFeatures(
        known=_words(_lib.BT_CPU_ALL),
        found=_words(_lib.bt_cpu_found()),
        allowed=_words(_lib.bt_cpu_allowed()),
        sha256=_text(_lib.bt_sha256_path()),
        sha256_lanes=_lib.bt_sha256_lanes(),
        crc32c=_text(_lib.bt_crc32c_path()),
    )


def library_versions() -> dict[str, str]:
    """Versions of "isal" and "libdeflate" (of the headers this was compiled with) and of "cffi" (as installed)."""
    return {
        "isal": _text(_lib.bt_isal_version()),
        "libdeflate": _text(_lib.bt_libdeflate_version()),
        "cffi": cffi.__version__,
    }


def _restrict_cpu(words: str) -> None:
    encoded = words.encode("utf-8", "surrogateescape")
    bad = _ffi.new(_TWO_SIZES)
    if _lib.bt_cpu_restrict(encoded, bad, bad + 1) != _lib.BT_OK:
        word = encoded[bad[0] : bad[1]].decode("utf-8", "replace")
        known = ", ".join(sorted(_words(_lib.BT_CPU_ALL)))
        raise InvalidArgument(f"BLOBTEE_CPU={words}: unknown word {word!r}; use native, portable, or some of {known}")


_restrict_cpu(os.environ.get("BLOBTEE_CPU", ""))


# ---- SHA-256 --------------------------------------------------------------------------------------------------------


class Sha256:
    """SHA-256 of a stream (FIPS 180-4), used as hashlib's objects are, whose state can also be saved and resumed."""

    name: ClassVar[str] = "sha256"
    digest_size: ClassVar[int] = 32
    block_size: ClassVar[int] = 64

    __slots__ = ("_context",)

    def __init__(self, data: ReadableBuffer = b"") -> None:
        """Starts a message with the bytes of `data`."""
        self._context = _new_uncleared(_SHA256)
        _lib.bt_sha256_init(self._context)
        if type(data) is not bytes or data:
            self.update(data)

    def update(self, data: ReadableBuffer, /) -> None:
        """Appends the bytes of `data`.

        Raises FailedPrecondition when another thread is using this object, InvalidArgument past 2**61 - 1 bytes in all.
        After any error the object is as it was before.
        """
        # cffi takes the address of a bytes object faster than that of any buffer
        if type(data) is bytes:
            result = _lib.bt_sha256_update(self._context, data, len(data))
        else:
            # Let go of the buffer even when a signal raises in here: its owner could not release it otherwise.
            with _readable(data) as view:
                result = _lib.bt_sha256_update(self._context, view, len(view))
        if result:
            _fail(result, "Sha256.update")

    def digest(self) -> bytes:
        """The 32 bytes of the digest of what was appended so far. More may be appended after.

        Raises FailedPrecondition when another thread is using this object.
        """
        digest = _new_uncleared(_DIGEST)
        result = _lib.bt_sha256_digest(self._context, digest)
        if result:
            _fail(result, "Sha256.digest")
        answer: bytes = _ffi.buffer(digest)[:]
        return answer

    def hexdigest(self) -> str:
        """`digest()` as 64 lower-case hexadecimal digits."""
        return self.digest().hex()

    def copy(self) -> Sha256:
        """An independent object with the same message so far.

        Raises FailedPrecondition when another thread is using this object.
        """
        other = object.__new__(Sha256)
        other._context = _new_uncleared(_SHA256)
        result = _lib.bt_sha256_copy(other._context, self._context)
        if result:
            _fail(result, "Sha256.copy")
        return other

    def __copy__(self) -> Sha256:
        # Else copy.copy() would make two objects over one context.
        return self.copy()

    @property
    def nbytes(self) -> int:
        """How many bytes were appended so far.

        Raises FailedPrecondition when another thread is using this object.
        """
        count = _ffi.new("uint64_t *")
        result = _lib.bt_sha256_nbytes(self._context, count)
        if result:
            _fail(result, "Sha256.nbytes")
        return int(count[0])

    def state(self) -> bytes:
        """The state in the middle of the stream, for `from_state`: at most 115 bytes, the same on every machine.

        It holds up to 63 bytes of the message. Its layout has a version and a checksum (csrc/blobtee.h,
        bt_sha256_save). Raises FailedPrecondition when another thread is using this object.
        """
        out = _new_uncleared(_BYTES, _lib.BT_SHA256_STATE_MAX_NBYTES)
        result = _lib.bt_sha256_save(self._context, out)
        if result < 0:
            _fail(result, "Sha256.state")
        answer: bytes = _ffi.buffer(out, result)[:]
        return answer

    @classmethod
    def from_state(cls, state: ReadableBuffer, /) -> Sha256:
        """The object that `state()` was asked of.

        Raises InvalidArgument for bytes that are not such a state, are of another version, or are damaged. The check
        finds accidents, not forgery: whoever can write the state decides what the digest will be.
        """
        restored = cls()
        with _readable(state) as view:
            result = _lib.bt_sha256_restore(restored._context, view, len(view))
        if result:
            _fail(result, "Sha256.from_state")
        return restored

    def __repr__(self) -> str:
        return f"<blobtee.core.Sha256 at {id(self):#x}>"


def _longest_first(sizes: list[int]) -> list[int]:
    # A long stream that starts last would have the core for itself at the end.
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)


def sha256_many(buffers: Iterable[ReadableBuffer], /) -> list[bytes]:
    """The SHA-256 digest (32 bytes) of each buffer, in order, hashing several side by side on one core.

    Faster than one after the other from two buffers on, whatever their lengths (see `CpuFeatures.sha256_lanes`).
    """
    views = _all_readable(buffers)
    sizes = list(map(len, views))
    order = _longest_first(sizes)
    digests = _new_uncleared(_BYTES, 32 * len(views))
    result = _lib.bt_sha256_many(
        _new_uncleared(_POINTERS, [views[i] for i in order]),
        _new_uncleared(_SIZES, [sizes[i] for i in order]),
        len(views),
        digests,
    )
    if result:
        _fail(result, "sha256_many")
    packed = _ffi.buffer(digests)[:]
    answer = [b""] * len(views)
    for place, i in enumerate(order):
        answer[i] = packed[32 * place : 32 * place + 32]
    return answer


def update_many(pairs: Iterable[tuple[Sha256, ReadableBuffer]], /) -> None:
    """Appends to each object the bytes of its buffer: as `update` for each pair, several side by side on one core.

    Raises InvalidArgument when an object appears twice or would go past 2**61 - 1 bytes, FailedPrecondition when
    another thread is using one of them. After any error all objects are as they were before.
    """
    pairs = list(pairs)
    hashers = [hasher for hasher, _ in pairs]
    views = _all_readable(data for _, data in pairs)
    for hasher in hashers:
        if not isinstance(hasher, Sha256):
            raise TypeError(f"a Sha256 is needed, not {type(hasher).__name__}")
    if len({id(hasher) for hasher in hashers}) != len(hashers):
        raise InvalidArgument("update_many: the same object appears twice")
    sizes = list(map(len, views))
    order = _longest_first(sizes)
    result = _lib.bt_sha256_update_many(
        _new_uncleared(_SHA256S, [hashers[i]._context for i in order]),
        _new_uncleared(_POINTERS, [views[i] for i in order]),
        _new_uncleared(_SIZES, [sizes[i] for i in order]),
        len(views),
    )
    if result:
        _fail(result, "update_many")


# ---- CRC-32C --------------------------------------------------------------------------------------------------------


def crc32c(data: ReadableBuffer, value: int = 0, /) -> int:
    """The CRC-32C (Castagnoli; RFC 3720 appendix B.4) of the bytes that gave `value`, followed by those of `data`.

    The result is 0 <= crc < 2**32, and `value` must be; else OverflowError.
    """
    with _readable(data) as view:
        return int(_lib.bt_crc32c(value, view, len(view)))


# ---- gzip, reading --------------------------------------------------------------------------------------------------


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
        context = _lib.bt_inflate_alloc()
        if context == _ffi.NULL:
            raise MemoryError("Inflater")
        self._context = _ffi.gc(context, _lib.bt_inflate_free, size=90_000)

    def inflate_into(self, data: ReadableBuffer, out: WriteableBuffer, /) -> tuple[int, int]:
        """Decompresses from the start of `data` into the start of `out`; returns (consumed, produced), in bytes.

        It goes on until all of `data` is consumed or `out` is full: with both not empty it always gets further. Give
        what was not consumed again. Output may be waiting when all input was consumed: `needs_input` is False then, and
        calling again with b"" brings it. The two buffers must not overlap.

        Raises CorruptData, for this and every later call (`out` then holds unspecified bytes, and nothing of this call
        counts); FailedPrecondition when another thread is using this object, which changes nothing.
        """
        sizes = _new_uncleared(_TWO_SIZES)
        with _readable(data) as source, _writable(out) as target:
            result = _lib.bt_inflate(self._context, source, len(source), sizes, target, len(target), sizes + 1)
        if result:
            self._fail(result, "Inflater.inflate_into")
        return sizes[0], sizes[1]

    def finish(self) -> None:
        """Says that no more input comes.

        Raises CorruptData when the stream is not whole (it ends inside a member, or there was none), or had failed
        before; FailedPrecondition when output may still be waiting, or when another thread is using this object: these
        two change nothing.
        """
        result = _lib.bt_inflate_finish(self._context)
        if result:
            self._fail(result, "Inflater.finish")

    def _fail(self, result: int, what: str) -> NoReturn:
        where = ""
        info = _ffi.new(_INFO)
        if result != _lib.BT_BUSY and _lib.bt_inflate_stat(self._context, info) == _lib.BT_OK:
            where = f" (member {info.members + 1}, after {info.total_in_nbytes} bytes in, {info.total_out_nbytes} out)"
        _fail(result, what, where)

    def _stat(self) -> Any:
        info = _ffi.new(_INFO)
        result = _lib.bt_inflate_stat(self._context, info)
        if result:
            _fail(result, "Inflater")
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
    claimed = int.from_bytes(_ffi.buffer(view + (n - 4), 4)[:], "little")
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
    with _readable(data) as view:
        likely = _likely_size(view)
        rest = memoryview(_ffi.buffer(view))
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


# ---- gzip, writing --------------------------------------------------------------------------------------------------

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
        compressor = _lib.bt_gzip_alloc(level)
        if compressor == _ffi.NULL:
            raise MemoryError(what) from None
        compressor = _ffi.gc(compressor, _lib.bt_gzip_free)
    nbytes = _ffi.new(_SIZES, 1)
    result = _lib.bt_gzip_member(compressor, data, len(data), out, len(out), sized, nbytes)
    if len(idle) < _MAX_IDLE:
        idle.append(compressor)
    if result:
        _fail(result, what)
    return int(nbytes[0])


def gzip_member_bound(nbytes: int, /) -> int:
    """The most bytes that a member holding `nbytes` bytes can take, at any level.

    Raises InvalidArgument when nbytes is negative or the bound is no size a machine could have.
    """
    bound = _lib.bt_gzip_bound(nbytes) if 0 <= nbytes < 1 << 63 else 0
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
    with _readable(data) as view:
        out = _new_uncleared(_BYTES, gzip_member_bound(len(view)))
        nbytes = _compress(view, out, level, sized, "gzip_member")
    member: bytes = _ffi.buffer(out, nbytes)[:]
    return member


def gzip_member_into(data: ReadableBuffer, out: WriteableBuffer, level: int = 6, *, sized: bool = False) -> int:
    """As `gzip_member`, into the start of `out`; returns how many bytes were written. The two must not overlap.

    Raises InvalidArgument when `out` is too small (of `gzip_member_bound` bytes it never is; a few bytes more than the
    member takes may be wanted) or there is no such level; `out` then holds unspecified bytes.
    """
    with _readable(data) as view, _writable(out) as target:
        return _compress(view, target, level, sized, "gzip_member_into")


# ---- gzip, whole members --------------------------------------------------------------------------------------------

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
    with _readable(member) as source, _writable(out) as target:
        try:
            reader = _idle_readers.pop()
        except IndexError:
            reader = _lib.bt_gunzip_alloc()
            if reader == _ffi.NULL:
                raise MemoryError("gunzip_member_into") from None
            reader = _ffi.gc(reader, _lib.bt_gunzip_free)
        result = _lib.bt_gunzip_member(reader, source, len(source), target, len(target))
        if len(_idle_readers) < _MAX_IDLE:
            _idle_readers.append(reader)
    if result:
        _fail(result, "gunzip_member_into")


# ---- tar ------------------------------------------------------------------------------------------------------------

_TAR_CAPACITY = 512
_TAR_TEXT_NBYTES = 256 << 10


class TarHeaders(NamedTuple):
    """Consecutive entries of a tar.

    columns: lists of a number for each entry: type (0 file, 1 hard link, 2 symbolic link, 3 directory, 4 pipe), mode,
    uid, gid, nanoseconds of mtime, size, offset of the content from the input's beginning, index into `owners`.
    paths, linknames: as in `layers.Entry`. owners: names of user and group. next: where the header after the entries
    begins in the input, maybe past its end. needs_input: reading stopped because the input did.
    """

    columns: list[list[int]]
    paths: list[str]
    linknames: list[str]
    owners: list[tuple[str, str]]
    next: int
    needs_input: bool


class TarScanner:
    """Reads tar headers many at a time, as far as they are plain ones."""

    def __init__(self) -> None:
        self._numbers = _new_uncleared("int64_t[]", _lib.BT_TAR_COLUMNS * _TAR_CAPACITY)
        self._text = _new_uncleared(_BYTES, _TAR_TEXT_NBYTES)
        self._owners = _new_uncleared(_BYTES, _TAR_TEXT_NBYTES)
        batch = self._batch = _ffi.new("bt_tar_batch *")
        batch.numbers, batch.capacity = self._numbers, _TAR_CAPACITY
        batch.text, batch.text_nbytes = self._text, _TAR_TEXT_NBYTES
        batch.owners, batch.owners_nbytes = self._owners, _TAR_TEXT_NBYTES

    def scan(self, data: ReadableBuffer, start: int) -> TarHeaders:
        """The entries whose headers are whole in `data` from byte `start` on, where a header begins.

        Stops before the first one that is not plain: a device, a sparse file, extended attributes, anything wrong, the
        tar's end. Nothing is wrong or different in what it gives. At most 512 at once.
        """
        batch = self._batch
        with _readable(data) as view:
            if not 0 <= start <= len(view):
                raise InvalidArgument(f"scan: byte {start} of {len(view)}")
            stop = _lib.bt_tar_scan(view + start, len(view) - start, batch)
        count = batch.nentries
        with memoryview(_ffi.buffer(self._numbers)).cast("B").cast("q") as numbers:
            columns = [
                numbers[first : first + count].tolist()
                for first in range(0, _lib.BT_TAR_COLUMNS * _TAR_CAPACITY, _TAR_CAPACITY)
            ]
        texts = _ffi.buffer(self._text, batch.text_used)[:].decode("utf-8", "surrogateescape").split("\0")
        names = _ffi.buffer(self._owners, batch.owners_used)[:].decode("utf-8", "surrogateescape").split("\0")
        owners = list(zip(names[:-1:2], names[1::2], strict=True))
        more = stop == _lib.BT_TAR_MORE
        return TarHeaders(columns, texts[:-1:2], texts[1::2], owners, int(batch.next), more)


# ---- python -m blobtee.core -----------------------------------------------------------------------------------------


def _check_answers() -> None:
    """Known answers on every implementation in use; Internal when one is wrong."""
    million = b"a" * 1_000_000
    digest = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # FIPS 180-2, appendix B.3
    right = (
        Sha256(million).hexdigest() == digest
        and [found.hex() for found in sha256_many([million] * 5)] == [digest] * 5
        and crc32c(b"123456789") == 0xE3069283
        and gunzip(gzip_member(million) * 2, max_output=2_000_000) == million * 2
    )
    if not right:
        raise Internal("blobtee.core: a known answer came out wrong")


def _main() -> None:
    _check_answers()
    features = cpu_features()
    print(f"SHA-256: {features.sha256}, {features.sha256_lanes} lanes; CRC-32C: {features.crc32c}")
    print("CPU found:", *sorted(features.found))
    print("CPU allowed:", *sorted(features.allowed))
    print("libraries:", *(f"{name} {version}" for name, version in library_versions().items()))
    print("known answers are right")


if __name__ == "__main__":
    _main()
