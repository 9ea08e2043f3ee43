"""The overlay differ: an overlay mount's upper directory as the layer it stands for.

Source of the facts: the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from blobtee.errors import Unimplemented
from blobtee.layers import source
from blobtee.layers.header import shown
from blobtee.layers.source import OVERLAY, Source
from blobtee.layers.trail import Trail, open_directory
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_CHECK_EVERY = 256


def write_overlay(
    upper: str | os.PathLike[str], write: Callable[[Buffer], object], *, epoch: int | None = None
) -> None:
    """Write the tar of the layer that `upper`, the upper directory of an overlay mount, puts on top of its lower ones.

    Character devices 0/0, and empty files with the attribute `overlay.whiteout`, become `.wh.` entries; a directory
    whose `overlay.opaque` is `y` is followed by its `.wh..wh..opq`. The attributes may be `trusted.*` (only root sees
    those: run as who made the mount) or `user.*`, and fuse-overlayfs's; none of them gets into the layer. As for the
    kernel, the mark means nothing on `upper` itself. A socket becomes a whiteout: it may hide something.

    `Unimplemented` for what cannot be told from `upper` alone: `redirect_dir=on` renamed a directory, `metacopy=on`
    left a file's content below, or `index=on` changed a file of which other names are known below only. Otherwise
    order, `epoch`, `write` and errors are as for `write_changes`.
    """
    trail = Trail(source.open_root(upper))
    with closing(trail):
        _Walk(trail, Source(write, epoch)).run()


class _Walk:
    def __init__(self, trail: Trail, out: Source) -> None:
        self._trail = trail
        self._out = out
        # Per directory on the way down: its path with a final slash, its status, what is left of its names, and which
        # of them are no regular files.
        self._stack: list[tuple[bytes, os.stat_result, list[bytes], set[bytes]]] = []

    def run(self) -> None:
        self._list(b"")
        count = 0
        while self._stack:
            prefix, _, names, others = self._stack[-1]
            if not names:
                self._leave()
                continue
            count += 1
            if count % _CHECK_EVERY == 0:
                check()
            name = names.pop()
            path = prefix + name
            if name.startswith(source.WHITEOUT):
                raise source.no_name(path)
            if name not in others:
                self._file(name, path)
                continue
            status = source.status_at(self._trail.fd, name, path)
            if stat.S_ISDIR(status.st_mode):
                self._enter(name, path)
            elif _is_whiteout(status) or not self._out.special(self._trail.fd, name, path, status):
                self._out.whiteout(path)
        self._out.finish()

    def _list(self, prefix: bytes) -> None:
        with source.reading(prefix):
            status = os.fstat(self._trail.fd)
            self._stack.append((prefix, status, *source.list_names(self._trail.fd)))

    def _leave(self) -> None:
        self._stack.pop()
        if self._stack:
            self._trail.cut(self._trail.level - 1)
            source.check_place(self._trail.fd, self._stack[-1][1], self._stack[-1][0])

    def _enter(self, name: bytes, path: bytes) -> None:
        with source.reading(path):
            fd = open_directory(name, self._trail.fd)
            self._trail.push(name, fd)
            status = os.fstat(fd)
        names, xattrs = source.xattrs_of(fd, path)
        self._out.directory(path, status, xattrs)
        marks = _marks(names)
        if "redirect" in marks:
            raise Unimplemented(f"{shown(path)} was renamed in an overlay with redirect_dir=on; compare the trees")
        if "opaque" in marks:
            with source.reading(path):
                if b"y" in [os.getxattr(fd, name) for name in marks["opaque"]]:
                    self._out.opaque(path)
        self._list(path + b"/")

    def _file(self, name: bytes, path: bytes) -> None:
        file = source.open_file(self._trail.fd, name, path)
        fd, status, xattr_names = file
        try:
            marks = _marks(xattr_names) if xattr_names else {}
            if "metacopy" in marks:
                raise Unimplemented(f"{shown(path)}: metacopy=on left its content below; compare the trees")
            if "nlink" in marks:
                _check_links(fd, marks["nlink"], path)
            if "whiteout" in marks and not status.st_size:
                self._out.whiteout(path)
            else:
                self._out.file(file, path)
        finally:
            os.close(fd)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _marks(names: list[str]) -> dict[str, list[str]]:
    """The overlay's attributes among `names` by what they mean: the same mark may be there in several spellings."""
    marks: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(OVERLAY):
            marks.setdefault(name.split(".", 2)[2], []).append(name)
    return marks


def _check_links(fd: int, names: list[str], path: bytes) -> None:
    """Refuse a file that has names below `upper` which an overlay with an index shows as changed, too.

    The attribute says how many names there are, counted from the inode's own links, of which the index has one: `U-1`
    means that all of them are here.
    """
    with source.reading(path):
        if any(os.getxattr(fd, name) != b"U-1" for name in names):
            raise Unimplemented(
                f"{shown(path)}: index=on changed all its names, but not all are in the upper directory; "
                "compare the trees"
            )
