"""The extension module, and what every use of it needs. Nothing else imports `blobtee._core`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import cffi

from blobtee._core import ffi, lib
from blobtee.errors import (
    BlobteeError,
    CorruptData,
    FailedPrecondition,
    Internal,
    InvalidArgument,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "BYTES",
    "POINTERS",
    "SIZES",
    "TWO_SIZES",
    "CpuFeatures",
    "all_readable",
    "cpu_features",
    "fail",
    "ffi",
    "lib",
    "library_versions",
    "new_uncleared",
    "os_error",
    "readable",
    "text",
    "writable",
]

# cffi looks a type up by its text on each call; objects are quicker.
BYTES = ffi.typeof("uint8_t[]")
POINTERS = ffi.typeof("const uint8_t *[]")
SIZES = ffi.typeof("size_t[]")
TWO_SIZES = ffi.typeof("size_t[2]")
# For results: every byte that is read from them was written before.
new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)

_ERROR_CLASSES: dict[int, type[BlobteeError]] = {
    lib.BT_BUSY: FailedPrecondition,
    lib.BT_BAD_ARGUMENT: InvalidArgument,
    lib.BT_BAD_STATE: InvalidArgument,
    lib.BT_TOO_LONG: InvalidArgument,
    lib.BT_NO_SPACE: InvalidArgument,
    lib.BT_NOT_DRAINED: FailedPrecondition,
    lib.BT_TRUNCATED: CorruptData,
    lib.BT_BAD_MAGIC: CorruptData,
    lib.BT_BAD_METHOD: CorruptData,
    lib.BT_BAD_FLAGS: CorruptData,
    lib.BT_BAD_HEADER_CRC: CorruptData,
    lib.BT_BAD_DEFLATE: CorruptData,
    lib.BT_BAD_CRC: CorruptData,
    lib.BT_BAD_ISIZE: CorruptData,
    lib.BT_TRAILING_GARBAGE: CorruptData,
}


def text(pointer: Any) -> str:
    text = ffi.string(pointer)
    assert isinstance(text, bytes)
    return text.decode("ascii")


def fail(result: int, what: str, where: str = "") -> NoReturn:
    raise _ERROR_CLASSES.get(result, Internal)(f"{what}: {text(lib.bt_strerror(result))}{where}")


def os_error(result: int, path: str | None = None) -> OSError:
    """What the kernel said, of a `result` of BT_ERRNO - errno."""
    number = lib.BT_ERRNO - result
    return OSError(number, os.strerror(number), path)


def readable(data: ReadableBuffer) -> Any:
    try:
        return ffi.from_buffer(BYTES, data)
    except BufferError as error:
        raise TypeError(f"a C-contiguous buffer is needed: {error}") from None


def all_readable(buffers: Iterable[ReadableBuffer]) -> list[Any]:
    from_buffer, kind = ffi.from_buffer, BYTES
    try:
        return [from_buffer(kind, data) for data in buffers]
    except BufferError as error:
        raise TypeError(f"C-contiguous buffers are needed: {error}") from None


def writable(out: WriteableBuffer) -> Any:
    try:
        return ffi.from_buffer(BYTES, out, True)
    except BufferError as error:
        raise TypeError(f"a writable, C-contiguous buffer is needed: {error}") from None


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
    return frozenset(text(lib.bt_cpu_word(bit)) for bit in bits if features & bit)


def cpu_features() -> CpuFeatures:
    """What was found, what is allowed, and which implementations that selects."""
    return CpuFeatures(
        known=_words(lib.BT_CPU_ALL),
        found=_words(lib.bt_cpu_found()),
        allowed=_words(lib.bt_cpu_allowed()),
        sha256=text(lib.bt_sha256_path()),
        sha256_lanes=lib.bt_sha256_lanes(),
        crc32c=text(lib.bt_crc32c_path()),
    )


def library_versions() -> dict[str, str]:
    """Versions of "isal", "libdeflate", "nghttp2" (of the headers this was compiled with) and "cffi" (as installed)."""
    return {
        "isal": text(lib.bt_isal_version()),
        "libdeflate": text(lib.bt_libdeflate_version()),
        "nghttp2": text(lib.bt_nghttp2_version()),
        "cffi": cffi.__version__,
    }


def _restrict_cpu(words: str) -> None:
    encoded = words.encode("utf-8", "surrogateescape")
    bad = ffi.new(TWO_SIZES)
    if lib.bt_cpu_restrict(encoded, bad, bad + 1) != lib.BT_OK:
        word = encoded[bad[0] : bad[1]].decode("utf-8", "replace")
        known = ", ".join(sorted(_words(lib.BT_CPU_ALL)))
        raise InvalidArgument(f"BLOBTEE_CPU={words}: unknown word {word!r}; use native, portable, or some of {known}")


_restrict_cpu(os.environ.get("BLOBTEE_CPU", ""))
