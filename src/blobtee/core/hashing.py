"""SHA-256 and CRC-32C."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from blobtee.core.native import (
    BYTES,
    POINTERS,
    SIZES,
    all_readable,
    fail,
    ffi,
    lib,
    new_uncleared,
    readable,
)
from blobtee.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SHA256 = ffi.typeof("bt_sha256 *")
_SHA256S = ffi.typeof("bt_sha256 *[]")
_DIGEST = ffi.typeof("uint8_t[32]")
_EMPTY = ffi.new(_SHA256)
lib.bt_sha256_init(_EMPTY)
_NBYTES = ffi.sizeof("bt_sha256")


class Sha256:
    """SHA-256 of a stream (FIPS 180-4), used as hashlib's objects are, whose state can also be saved and resumed."""

    name: ClassVar[str] = "sha256"
    digest_size: ClassVar[int] = 32
    block_size: ClassVar[int] = 64

    __slots__ = ("_context",)

    def __init__(self, data: ReadableBuffer = b"") -> None:
        """Starts a message with the bytes of `data`."""
        self._context = new_uncleared(_SHA256)
        ffi.memmove(self._context, _EMPTY, _NBYTES)
        if type(data) is not bytes or data:
            self.update(data)

    def update(self, data: ReadableBuffer, /) -> None:
        """Appends the bytes of `data`.

        Raises FailedPrecondition when another thread is using this object, InvalidArgument past 2**61 - 1 bytes in all.
        After any error the object is as it was before.
        """
        # cffi takes the address of a bytes object faster than that of any buffer
        if type(data) is bytes:
            result = lib.bt_sha256_update(self._context, data, len(data))
        else:
            # Let go of the buffer even when a signal raises in here: its owner could not release it otherwise.
            with readable(data) as view:
                result = lib.bt_sha256_update(self._context, view, len(view))
        if result:
            fail(result, "Sha256.update")

    def digest(self) -> bytes:
        """The 32 bytes of the digest of what was appended so far. More may be appended after.

        Raises FailedPrecondition when another thread is using this object.
        """
        digest = new_uncleared(_DIGEST)
        result = lib.bt_sha256_digest(self._context, digest)
        if result:
            fail(result, "Sha256.digest")
        answer: bytes = ffi.buffer(digest)[:]
        return answer

    def append(self, data: ReadableBuffer, /) -> bytes:
        """`update`, and then `digest`: for little `data`, in less time than one after the other. Errors as `update`."""
        digest = new_uncleared(_DIGEST)
        with readable(data) as view:
            result = lib.bt_sha256_append(self._context, view, len(view), digest)
        if result:
            fail(result, "Sha256.append")
        answer: bytes = ffi.buffer(digest)[:]
        return answer

    def hexdigest(self) -> str:
        """`digest()` as 64 lower-case hexadecimal digits."""
        return self.digest().hex()

    def copy(self) -> Sha256:
        """An independent object with the same message so far.

        Raises FailedPrecondition when another thread is using this object.
        """
        other = object.__new__(Sha256)
        other._context = new_uncleared(_SHA256)
        result = lib.bt_sha256_copy(other._context, self._context)
        if result:
            fail(result, "Sha256.copy")
        return other

    def __copy__(self) -> Sha256:
        # Else copy.copy() would make two objects over one context.
        return self.copy()

    @property
    def nbytes(self) -> int:
        """How many bytes were appended so far.

        Raises FailedPrecondition when another thread is using this object.
        """
        count = ffi.new("uint64_t *")
        result = lib.bt_sha256_nbytes(self._context, count)
        if result:
            fail(result, "Sha256.nbytes")
        return int(count[0])

    def state(self) -> bytes:
        """The state in the middle of the stream, for `from_state`: at most 115 bytes, the same on every machine.

        It holds up to 63 bytes of the message. Its layout has a version and a checksum (csrc/blobtee.h,
        bt_sha256_save). Raises FailedPrecondition when another thread is using this object.
        """
        out = new_uncleared(BYTES, lib.BT_SHA256_STATE_MAX_NBYTES)
        result = lib.bt_sha256_save(self._context, out)
        if result < 0:
            fail(result, "Sha256.state")
        answer: bytes = ffi.buffer(out, result)[:]
        return answer

    @classmethod
    def from_state(cls, state: ReadableBuffer, /) -> Sha256:
        """The object that `state()` was asked of.

        Raises InvalidArgument for bytes that are not such a state, are of another version, or are damaged. The check
        finds accidents, not forgery: whoever can write the state decides what the digest will be.
        """
        restored = cls()
        with readable(state) as view:
            result = lib.bt_sha256_restore(restored._context, view, len(view))
        if result:
            fail(result, "Sha256.from_state")
        return restored

    def update_chained(self, data: ReadableBuffer, every: int, /) -> bytes:
        """Appends the bytes of `data`, and gives the chaining value after each whole `every` bytes of it.

        A chaining value, 32 bytes, is the state between two blocks (FIPS 180-4: H(i)). Two of one message prove the
        bytes between them without the rest of it: see `from_chaining_value`. Costs no more than `update`.

        Raises InvalidArgument when `every` is not a positive multiple of 64, when the object is not at one, or past
        2**61 - 1 bytes in all; FailedPrecondition when another thread is using it. After any error it is as it was.
        """
        if not 0 < every < 1 << 63:
            raise InvalidArgument(f"chaining values after each {every} bytes")
        with readable(data) as view:
            values = new_uncleared(BYTES, len(view) // every * 32)
            result = lib.bt_sha256_update_chained(self._context, view, len(view), every, values)
        if result:
            fail(result, "Sha256.update_chained")
        answer: bytes = ffi.buffer(values)[:]
        return answer

    def chaining_value(self) -> bytes:
        """The chaining value after what was appended so far, 32 bytes.

        Raises InvalidArgument where that is not a multiple of 64 bytes, FailedPrecondition when another thread is using
        this object.
        """
        value = new_uncleared(_DIGEST)
        result = lib.bt_sha256_chaining_value(self._context, value)
        if result:
            fail(result, "Sha256.chaining_value")
        answer: bytes = ffi.buffer(value)[:]
        return answer

    @classmethod
    def from_chaining_value(cls, value: bytes, nbytes: int, /) -> Sha256:
        """The object as it is after `nbytes`, a multiple of 64, that led to the chaining value `value`.

        Raises InvalidArgument for another number of either.
        """
        resumed = cls()
        if len(value) != cls.digest_size or not 0 <= nbytes < 1 << 61:
            raise InvalidArgument(f"a chaining value of {len(value)} bytes, after {nbytes} bytes")
        result = lib.bt_sha256_resume(resumed._context, value, nbytes)
        if result:
            fail(result, "Sha256.from_chaining_value")
        return resumed

    def __repr__(self) -> str:
        return f"<blobtee.core.Sha256 at {id(self):#x}>"


def _longest_first(sizes: list[int]) -> list[int]:
    # A long stream that starts last would have the core for itself at the end.
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)


def sha256_many(buffers: Iterable[ReadableBuffer], /) -> list[bytes]:
    """The SHA-256 digest (32 bytes) of each buffer, in order, hashing several side by side on one core.

    Faster than one after the other from two buffers on, whatever their lengths (see `CpuFeatures.sha256_lanes`).
    """
    views = all_readable(buffers)
    sizes = list(map(len, views))
    order = _longest_first(sizes)
    digests = new_uncleared(BYTES, 32 * len(views))
    result = lib.bt_sha256_many(
        new_uncleared(POINTERS, [views[i] for i in order]),
        new_uncleared(SIZES, [sizes[i] for i in order]),
        len(views),
        digests,
    )
    if result:
        fail(result, "sha256_many")
    packed = ffi.buffer(digests)[:]
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
    views = all_readable(data for _, data in pairs)
    for hasher in hashers:
        if not isinstance(hasher, Sha256):
            raise TypeError(f"a Sha256 is needed, not {type(hasher).__name__}")
    if len({id(hasher) for hasher in hashers}) != len(hashers):
        raise InvalidArgument("update_many: the same object appears twice")
    sizes = list(map(len, views))
    order = _longest_first(sizes)
    result = lib.bt_sha256_update_many(
        new_uncleared(_SHA256S, [hashers[i]._context for i in order]),
        new_uncleared(POINTERS, [views[i] for i in order]),
        new_uncleared(SIZES, [sizes[i] for i in order]),
        len(views),
    )
    if result:
        fail(result, "update_many")


def crc32c(data: ReadableBuffer, value: int = 0, /) -> int:
    """The CRC-32C (Castagnoli; RFC 3720 appendix B.4) of the bytes that gave `value`, followed by those of `data`.

    The result is 0 <= crc < 2**32, and `value` must be; else OverflowError.
    """
    with readable(data) as view:
        return int(lib.bt_crc32c(value, view, len(view)))


def crc32c_each(data: ReadableBuffer, every: int, /) -> bytes:
    """The CRC-32C of each `every` bytes of `data`, the last of what is left: four bytes each, little endian.

    Raises InvalidArgument when `every` is not positive.
    """
    if not 0 < every < 1 << 63:
        raise InvalidArgument(f"a CRC of each {every} bytes")
    with readable(data) as view:
        values = new_uncleared(BYTES, 4 * -(-len(view) // every))
        lib.bt_crc32c_each(view, len(view), every, values)
    answer: bytes = ffi.buffer(values)[:]
    return answer
