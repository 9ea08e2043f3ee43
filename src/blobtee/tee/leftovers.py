"""Partial blobs and digests of chunks as files of a root: what is there, and taking it away (`cache.collect`
decides)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blobtee.content.files import digest_names, make_directory, os_errors, remove_temporaries
from blobtee.errors import StorageFull
from blobtee.oci import Digest
from blobtee.tee.claims import LIFE, USE, Claims
from blobtee.tee.digests import path_of
from blobtee.tee.partial import is_locked_by, remove_files


@dataclass(frozen=True)
class Leftover:
    """A partial blob, or what somebody who was killed left of one: `nbytes` of the disk, `used_at` nanoseconds since
    the epoch when something of it was last written or it was last opened. `size` is the blob's; 0 of one that has no
    data."""

    digest: Digest
    nbytes: int
    used_at: int
    size: int


def leftovers(root: Path) -> Iterator[Leftover]:
    """The partial blobs of a root, open or not. What vanishes meanwhile is left out."""
    for digest, directory in digest_names(root / "partial"):
        found: dict[str, os.stat_result] = {}
        for name in ("", "lock", "map", "data"):
            with suppress(FileNotFoundError, NotADirectoryError):
                found[name] = os.stat(directory / name)
        if "" in found:
            used = [found[name] for name in ("lock", "map") if name in found] or [found[""]]
            nbytes = sum(found[name].st_blocks * 512 for name in ("map", "data") if name in found)
            size = found["data"].st_size if "data" in found else 0
            yield Leftover(digest, nbytes, max(status.st_mtime_ns for status in used), size)


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
    directory = _directory(root, digest)
    with os_errors(f"remove the partial blob {digest}"), _alone(directory) as alone:
        if alone:
            remove_files(directory)
        return alone


def forget(root: Path, digest: Digest) -> bool:
    """Take away what proves the chunks of a blob; False while there is a partial blob of it: what is here of that, and
    what comes to who has it open, could not be told from what was never checked. False, too, when a full disk has no
    room for the lock: making room must not fail of that."""
    directory = _directory(root, digest)
    if not (directory.exists() or path_of(root, digest).exists()):
        return True  # most blobs were never read by parts: no folder is made, and synced, to find that out
    try:
        with os_errors(f"forget the digests of the chunks of {digest}"):
            # Who opens it now, and looks for them, waits for the lock, and finds the folder gone or them.
            make_directory(directory)
            with _alone(directory) as alone:
                if not alone or (directory / "data").exists():
                    return False
                with suppress(FileNotFoundError):
                    os.unlink(path_of(root, digest))
                remove_files(directory)
                return True
    except StorageFull:
        return False


def _directory(root: Path, digest: Digest) -> Path:
    return root / "partial" / digest.algorithm / digest.hex


@contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Whether nobody else has the partial blob open, nor can while the block lasts."""
    try:
        claims = Claims(directory / "lock")
    except (FileNotFoundError, NotADirectoryError):
        yield False  # also when it became a blob a moment ago
        return
    try:
        yield claims.take(LIFE, LIFE + 1) and claims.take(USE, USE + 1) and is_locked_by(directory, claims)
    finally:
        claims.close()
