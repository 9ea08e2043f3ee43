"""Partial blobs and digests of chunks as files of a root: what is there, and taking it away (`cache.collect`
decides)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blobtee.content.files import digest_names, os_errors
from blobtee.oci import Digest
from blobtee.tee.claims import LIFE, USE, Claims
from blobtee.tee.partial import remove_files


@dataclass(frozen=True)
class Leftover:
    """A partial blob: `nbytes` of the disk, `used_at` nanoseconds since the epoch when something of it was last written
    or it was last opened."""

    digest: Digest
    nbytes: int
    used_at: int


def leftovers(root: Path) -> Iterator[Leftover]:
    """The partial blobs of a root, open or not. What vanishes meanwhile is left out."""
    for digest, directory in digest_names(root / "partial"):
        with suppress(FileNotFoundError):
            used_at = max(os.stat(directory / name).st_mtime_ns for name in ("lock", "map"))
            yield Leftover(digest, os.stat(directory / "data").st_blocks * 512, used_at)


def digested(root: Path) -> Iterator[Digest]:
    """The blobs of whose chunks digests are kept."""
    for digest, _ in digest_names(root / "digests"):
        yield digest


def remove(root: Path, digest: Digest) -> bool:
    """Take a partial blob away; False when somebody has it open, or it is not there."""
    directory = root / "partial" / digest.algorithm / digest.hex
    with os_errors(f"remove the partial blob {digest}"):
        if not directory.is_dir():
            return False
        claims = Claims(directory / "lock")
        try:
            if not (claims.take(LIFE, LIFE + 1) and claims.take(USE, USE + 1)):
                return False
            remove_files(directory)
            return True
        finally:
            claims.close()
