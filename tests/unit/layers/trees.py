"""Directory trees to be put into layers, and what is in them, to be compared."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blobtee.layers import Entry, apply, entries, write_changes

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root may do this")


class Node(NamedTuple):
    """What a layer has to keep of one name. `links` are the other names of the inode within the tree."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    content: bytes
    xattrs: dict[str, bytes]
    links: tuple[bytes, ...]


def tree(root: str | os.PathLike[str], *, fraction: bool = True, links: bool = True) -> dict[bytes, Node]:
    """All below `root`, by path. Without `fraction`, times are whole seconds; without `links`, inodes are not looked
    at."""
    inodes: dict[int, list[bytes]] = {}
    found: list[tuple[bytes, str, os.stat_result]] = []
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            key = os.fsencode(os.path.relpath(path, root))
            found.append((key, path, status))
            if not stat.S_ISDIR(status.st_mode) and links:
                inodes.setdefault(status.st_ino, []).append(key)
    return {
        key: Node(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns if fraction else status.st_mtime_ns // 10**9,
            status.st_rdev,
            _content(path, status),
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
                if not name.startswith(("security.selinux", "system."))
            },
            tuple(sorted(inodes.get(status.st_ino, []))),
        )
        for key, path, status in found
    }


def _content(path: str, status: os.stat_result) -> bytes:
    if stat.S_ISREG(status.st_mode):
        return Path(path).read_bytes()
    return os.fsencode(os.readlink(path)) if stat.S_ISLNK(status.st_mode) else b""


def changes(lower: str | os.PathLike[str] | None, upper: str | os.PathLike[str], *, epoch: int | None = None) -> bytes:
    pieces: list[bytes] = []
    write_changes(lower, upper, lambda piece: pieces.append(bytes(piece)), epoch=epoch)
    return b"".join(pieces)


def listed(tar: bytes) -> list[Entry]:
    return list(entries(io.BytesIO(tar)))


def paths(tar: bytes) -> list[str]:
    return [entry.path for entry in listed(tar)]


def contents(tar: bytes) -> Iterator[tuple[str, bytes]]:
    for entry in entries(io.BytesIO(tar)):
        yield entry.path, entry.data().read() or b""


def put(tar: bytes, root: Path) -> None:
    root.mkdir(exist_ok=True)
    apply(io.BytesIO(tar), root)


def clone(source: Path, target: Path) -> None:
    """A copy of a tree with everything that belongs to it, made by somebody else."""
    subprocess.run(["cp", "-a", source, target], check=True)


def at(path: Path, seconds: float, *, nanoseconds: int = 0) -> None:
    """Set the modification time."""
    ns = int(seconds) * 10**9 + nanoseconds
    os.utime(path, ns=(ns, ns), follow_symlinks=False)


def descend(root: Path, name: str, depth: int) -> None:
    """Directories on top of each other, deeper than any path may be long, with a file in the lowest."""
    fd = os.open(root, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
    finally:
        os.close(fd)
