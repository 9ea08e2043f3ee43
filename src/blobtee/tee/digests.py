"""What proves each chunk of a blob that was checked whole, for single chunks that are fetched again.

The file `<root>/digests/<algorithm>/<hex>`: magic with version, the blob's size and a CRC-32C of all that follows, then
32 bytes a chunk. For a SHA-256 blob these are the chaining values of the blob's own digest behind each chunk, and that
digest itself for the last: they come for nothing while it is hashed, and a chunk that leads from the value before it to
the one behind it is the blob's. For other algorithms it is a SHA-256 of the chunk. Either was made here, of bytes whose
digest was right (`spec/tee.md` sections 3 and 4). Without the file, or with a damaged one, the blob is only fetched
whole.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

from blobtee.content.digester import Hash, digest_of, digester
from blobtee.content.files import make_directory, os_errors, read_small, replace_file, sync_directory
from blobtee.core import Sha256, crc32c, sha256_many, update_many
from blobtee.oci import Digest
from blobtee.tee.map import CHUNK, chunks_of

NBYTES = 32
_MAGIC = b"bteedig\x02"
_HEAD = struct.Struct("<8sQI")


class ChunkDigests:
    """What proves one blob's chunks."""

    def __init__(self, digest: Digest, packed: bytes) -> None:
        self._packed = packed
        self._chained = digest.algorithm == Sha256.name

    @classmethod
    def load(cls, root: Path, digest: Digest, size: int) -> ChunkDigests | None:
        """Those kept for the blob; None where there are none, or no sound ones."""
        nbytes = _HEAD.size + NBYTES * chunks_of(size)
        try:
            raw = read_small(path_of(root, digest), nbytes + 1)
        except OSError:
            return None
        if len(raw) != nbytes:
            return None
        magic, stated, crc = _HEAD.unpack_from(raw)
        packed = raw[_HEAD.size :]
        if magic != _MAGIC or stated != size or crc != crc32c(packed):
            return None
        return cls(digest, packed)

    @staticmethod
    def are_kept(root: Path, digest: Digest, size: int) -> bool:
        """Whether there are some, by the length of the file alone."""
        try:
            return os.stat(path_of(root, digest)).st_size == _HEAD.size + NBYTES * chunks_of(size)
        except OSError:
            return False

    def agree(self, first: int, chunks: list[memoryview]) -> list[bool]:
        """Which of `chunks`, consecutive from `first`, are the blob's. Only its last may be shorter than the others."""
        found = self._chain(first, chunks) if self._chained else sha256_many(chunks)
        return [self._of(number) == each for number, each in enumerate(found, first)]

    def _of(self, chunk: int) -> bytes:
        return self._packed[NBYTES * chunk : NBYTES * (chunk + 1)]

    def _chain(self, first: int, chunks: list[memoryview]) -> list[bytes]:
        """Where each chunk leads from the value that is kept for the one before it."""
        hashers = [
            Sha256.from_chaining_value(self._of(number - 1), CHUNK * number) if number else Sha256()
            for number in range(first, first + len(chunks))
        ]
        update_many(zip(hashers, chunks, strict=True))
        last = len(self._packed) // NBYTES - 1 - first
        return [hasher.digest() if number == last else hasher.chaining_value() for number, hasher in enumerate(hashers)]


class ChunkHasher:
    """Hashes a blob in order, and makes what proves its chunks beside. For one thread."""

    def __init__(self, algorithm: str) -> None:
        self.done = 0
        """Bytes of the blob that are hashed."""
        self._algorithm = algorithm
        self._hash: Hash = digester(algorithm)
        self._proofs: list[bytes] = []

    def update(self, data: memoryview) -> None:
        """The bytes from `done` on: whole chunks, but at the end of the blob."""
        if isinstance(self._hash, Sha256):
            self._proofs.append(self._hash.update_chained(data, CHUNK))
        else:
            self._hash.update(data)
            self._proofs += sha256_many(cut(data))
        self.done += data.nbytes

    def digest(self) -> Digest:
        """Of what was hashed so far."""
        return digest_of(self._algorithm, self._hash)

    def packed(self) -> bytes:
        """What proves the chunks of the blob, which was hashed to its end, for `keep`."""
        packed = b"".join(self._proofs)
        if not isinstance(self._hash, Sha256):
            return packed
        whole = len(packed) if self.done % CHUNK else len(packed) - NBYTES
        return packed[:whole] + self._hash.digest()


def path_of(root: Path, digest: Digest) -> Path:
    return root / "digests" / digest.algorithm / digest.hex


def keep(root: Path, digest: Digest, size: int, packed: bytes) -> None:
    """Keep what proves the blob's chunks (`ChunkHasher.packed`), durably; the whole was checked by the caller."""
    path = path_of(root, digest)
    with os_errors(f"keep the digests of the chunks of {digest}"):
        make_directory(path.parent)
        replace_file(path, _HEAD.pack(_MAGIC, size, crc32c(packed)) + packed)


def settle(root: Path, digest: Digest) -> None:
    """Have what was kept survive a loss of power: who kept it may have been killed just before it would."""
    with os_errors(f"keep the digests of the chunks of {digest}"):
        sync_directory(path_of(root, digest).parent)


def forget(root: Path, digest: Digest) -> None:
    """Nothing of the blob is left."""
    with os_errors(f"forget the digests of the chunks of {digest}"), suppress(FileNotFoundError):
        os.unlink(path_of(root, digest))


def cut(data: memoryview) -> list[memoryview]:
    """`data`, from a chunk's beginning on, in chunks."""
    return [data[at : at + CHUNK] for at in range(0, data.nbytes, CHUNK)]
