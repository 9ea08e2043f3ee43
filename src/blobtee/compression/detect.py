"""What a blob is, told by its first bytes."""

from __future__ import annotations

from blobtee.oci import Compressed

GZIP_MAGIC = b"\x1f\x8b\x08"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = (0x50, b"\x2a\x4d\x18")
PREFIX_NBYTES = 4
"""Bytes that `detect` needs."""


def detect(prefix: bytes) -> Compressed:
    """How the blob that begins with `prefix` is packed; uncompressed when nothing is recognised, or it is empty.

    A zstd stream may begin with a skippable frame, as those of seekable and chunked writers do (RFC 8878).
    """
    if prefix[:3] == GZIP_MAGIC:
        return Compressed.GZIP
    if prefix[:4] == ZSTD_MAGIC or is_skippable(prefix[:4]):
        return Compressed.ZSTD
    return Compressed.NONE


def is_skippable(magic: bytes) -> bool:
    """Whether these four bytes begin a skippable zstd frame."""
    return len(magic) == 4 and magic[0] & 0xF0 == _SKIPPABLE[0] and magic[1:] == _SKIPPABLE[1]
