"""Partial blobs and digests of chunks as files of a root: what is there, and taking it away (`cache.collect`
decides)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blobtee.content.files import digest_names, os_errors, remove_temporaries
from blobtee.oci import Digest
from blobtee.tee.claims import LIFE, USE, Claims
from blobtee.tee.partial import is_locked_by, remove_files


@dataclass(frozen=True)
class Leftover:
    """A partial blob, or what somebody who was killed left of one: `nbytes` of the disk, `used_at` nanoseconds since
    the epoch when something of it was last written or it was last opened."""

    digest: Digest
    nbytes: int
    used_at: int


def leftovers(root: Path) -> Iterator[Leftover]:
    """The partial blobs of a root, open or not. What vanishes meanwhile is left out."""
    for digest, directory in digest_names(root / "partial"):
        found: dict[str, os.stat_result] = {}
        for name in ("", "lock", "map", "data"):
            with suppress(FileNotFoundError, NotADirectoryError):
                found[name] = os.stat(directory / name)
        if "" in found:
            used = [found[name] for name in ("lock", "map") if name in found] or [found[""]]
            nbytes = found["data"].st_blocks * 512 if "data" in found else 0
            yield Leftover(digest, nbytes, max(status.st_mtime_ns for status in used))


def digested(root: Path) -> Iterator[Digest]:
    """The blobs of whose chunks digests are kept."""
    for digest, _ in digest_names(root / "digests"):
        yield digest


def tidy(root: Path) -> None:
    """Remove what those left who were killed while they wrote digests of chunks."""
    for directory in root.glob("digests/*"):
        remove_temporaries(directory)


def remove(root: Path, digest: Digest) -> bool:
    """Take a partial blob away; False when somebody has it open, or it is not there."""
    directory = root / "partial" / digest.algorithm / digest.hex
    with os_errors(f"remove the partial blob {digest}"):
        try:
            claims = Claims(directory / "lock")
        except (FileNotFoundError, NotADirectoryError):
            return False  # also when it became a blob a moment ago
        try:
            if not (claims.take(LIFE, LIFE + 1) and claims.take(USE, USE + 1) and is_locked_by(directory, claims)):
                return False
            remove_files(directory)
            return True
        finally:
            claims.close()
