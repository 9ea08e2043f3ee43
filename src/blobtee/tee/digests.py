"""A digest for each chunk of a blob that was checked whole: what proves single chunks that are fetched again.

The file `<root>/digests/<algorithm>/<hex>`: magic with version, the blob's size and a CRC-32C of all that follows, then
32 bytes of SHA-256 a chunk. It is made here, of bytes whose digest was right, so that a chunk with the digest that
stands here is the blob's (`spec/tee.md` sections 3 and 4). Without it, or with a damaged one, the blob is only fetched
whole.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

from blobtee.content.files import make_directory, os_errors, replace_file
from blobtee.core import crc32c, sha256_many
from blobtee.oci import Digest
from blobtee.tee.map import CHUNK, chunks_of

NBYTES = 32
_MAGIC = b"bteedig\x01"
_HEAD = struct.Struct("<8sQI")


class ChunkDigests:
    """The digests of one blob's chunks."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    @classmethod
    def load(cls, root: Path, digest: Digest, size: int) -> ChunkDigests | None:
        """Those kept for the blob; None where there are none, or no sound ones."""
        try:
            raw = path_of(root, digest).read_bytes()
        except OSError:
            return None
        if len(raw) != _HEAD.size + NBYTES * chunks_of(size):
            return None
        magic, stated, crc = _HEAD.unpack_from(raw)
        packed = raw[_HEAD.size :]
        if magic != _MAGIC or stated != size or crc != crc32c(packed):
            return None
        return cls(packed)

    @staticmethod
    def are_kept(root: Path, digest: Digest, size: int) -> bool:
        """Whether there are some, by the length of the file alone."""
        try:
            return os.stat(path_of(root, digest)).st_size == _HEAD.size + NBYTES * chunks_of(size)
        except OSError:
            return False

    def agree(self, first: int, chunks: list[memoryview]) -> list[bool]:
        """Which of `chunks`, consecutive from `first`, are the blob's."""
        return [
            self._packed[NBYTES * number : NBYTES * (number + 1)] == digest
            for number, digest in enumerate(sha256_many(chunks), first)
        ]


def path_of(root: Path, digest: Digest) -> Path:
    return root / "digests" / digest.algorithm / digest.hex


def keep(root: Path, digest: Digest, size: int, packed: bytes) -> None:
    """Keep the digests of the blob's chunks, durably; the whole was checked by the caller."""
    path = path_of(root, digest)
    with os_errors(f"keep the digests of the chunks of {digest}"):
        make_directory(path.parent)
        replace_file(path, _HEAD.pack(_MAGIC, size, crc32c(packed)) + packed)


def forget(root: Path, digest: Digest) -> None:
    """Nothing of the blob is left."""
    with os_errors(f"forget the digests of the chunks of {digest}"), suppress(FileNotFoundError):
        os.unlink(path_of(root, digest))


def cut(data: memoryview) -> list[memoryview]:
    """`data`, from a chunk's beginning on, in chunks."""
    return [data[at : at + CHUNK] for at in range(0, data.nbytes, CHUNK)]
