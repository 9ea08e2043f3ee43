"""The walking differ: what has to go on top of one directory tree to make it another."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from blobtee.layers import source
from blobtee.layers.blocks import PIECE
from blobtee.layers.source import Source, Xattrs
from blobtee.layers.trail import Trail, open_directory
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_CHECK_EVERY = 256
_SECOND = 1_000_000_000
_NOBODY: frozenset[bytes] = frozenset()


def write_changes(
    lower: str | os.PathLike[str] | None,
    upper: str | os.PathLike[str],
    write: Callable[[Buffer], object],
    *,
    epoch: int | None = None,
) -> None:
    """Write the tar of a layer that makes the tree `lower` the tree `upper`; all of `upper` when `lower` is None.

    Entries come name by name in the order of their bytes, a directory before what is in it; the root itself is left
    out. What is deleted is one `.wh.` entry; what changes its type is simply replaced. The parents of a change are part
    of the layer. A file counts as unchanged when type, mode, owner, size, device, link target, kept extended attributes
    and modification time are equal; when either time has no nanoseconds (it may have gone through a tar), whole seconds
    and the contents must be. A directory is written when any of that differs, its time too. When one name of an inode
    is written, its unchanged names are hard links to it, those that would have come earlier after it: so no layer
    links to what it does not hold. (The rules of containerd's continuity, `fs.Changes`, and of its `ChangeWriter`;
    theirs knows capabilities only, and lets times of directories be.) What is kept of a file: see `Source`.

    Two runs over equal trees give equal bytes. `epoch`: later modification times become this one, in seconds.
    `write` gets pieces of about a mebibyte, good only during the call; what it raises passes through.
    `FailedPrecondition`: something changed while it was read. `PermissionDenied` names what could not be read.
    `InvalidArgument`: a name beginning with `.wh.`, which a layer cannot hold. `NotFound`: no such directory. After an
    error the tar is broken off. Memory: the names of the directories on the way down, and the inodes that have
    more names than were met.
    """
    with ExitStack() as stack:
        trail = Trail(source.open_root(upper))
        stack.callback(trail.close)
        below = None
        if lower is not None:
            below = Trail(source.open_root(lower))
            stack.callback(below.close)
        _Walk(trail, below, Source(write, epoch)).run()


class _Directory:
    """One that the walk is in. `prefix` is its path with a final slash, empty for the root."""

    __slots__ = ("in_lower", "in_upper", "names", "others", "parent", "prefix", "status", "written", "xattrs")

    def __init__(self, parent: _Directory | None, prefix: bytes, status: os.stat_result, xattrs: Xattrs | None) -> None:
        self.parent = parent
        self.prefix = prefix
        self.status = status
        self.xattrs = xattrs
        self.written = parent is None
        self.names: list[bytes] = []
        # Of a directory with a counterpart: which name is where. Of one without: what is no regular file.
        self.in_upper: set[bytes] | frozenset[bytes] = _NOBODY
        self.in_lower: set[bytes] | None = None
        self.others: set[bytes] | frozenset[bytes] = _NOBODY


class _Walk:
    def __init__(self, upper: Trail, lower: Trail | None, out: Source) -> None:
        self._upper = upper
        self._lower = lower
        self._out = out
        self._stack: list[_Directory] = []
        # Unchanged names, by inode, of which another name may still turn out to be changed.
        self._unchanged: dict[tuple[int, int], list[tuple[_Directory, bytes]]] = {}

    def run(self) -> None:
        root = _Directory(None, b"", os.fstat(self._upper.fd), None)
        self._fill(root, self._lower is not None)
        self._stack.append(root)
        count = 0
        while self._stack:
            current = self._stack[-1]
            if not current.names:
                self._leave()
                continue
            count += 1
            if count % _CHECK_EVERY == 0:
                check()
            if current.in_lower is None:
                self._add(current)
            else:
                self._compare(current, current.names.pop(), current.in_lower)
        self._out.finish()

    def _fill(self, directory: _Directory, both: bool) -> None:
        """Take the names in a directory that the trails have just reached."""
        with source.reading(directory.prefix):
            if not both:
                directory.names, directory.others = source.list_names(self._upper.fd)
                return
            assert self._lower is not None
            in_upper = {os.fsencode(name) for name in os.listdir(self._upper.fd)}
            in_lower = {os.fsencode(name) for name in os.listdir(self._lower.fd)}
        directory.names = sorted(in_upper | in_lower, reverse=True)
        directory.in_upper, directory.in_lower = in_upper, in_lower

    def _leave(self) -> None:
        gone = self._stack.pop()
        if not self._stack:
            return
        self._upper.cut(self._upper.level - 1)
        source.check_place(self._upper.fd, self._stack[-1].status, self._stack[-1].prefix)
        if gone.in_lower is not None:
            assert self._lower is not None
            self._lower.cut(self._lower.level - 1)

    def _add(self, current: _Directory) -> None:
        """The next name of a directory that has no counterpart, and the plain files that follow it."""
        names, others = current.names, current.others
        upper = self._upper.fd
        while names:
            name = names.pop()
            path = current.prefix + name
            if name.startswith(source.WHITEOUT):
                raise source.no_name(path)
            if name in others:
                status = source.status_at(upper, name, path)
                if stat.S_ISDIR(status.st_mode):
                    self._enter(current, name, path, None)
                    return
                self._write(current, name, path, status)
            else:
                self._file(current, name, path)

    def _compare(self, current: _Directory, name: bytes, in_lower: set[bytes]) -> None:
        path = current.prefix + name
        if name not in current.in_upper:
            self._parents(current)
            self._out.whiteout(path)
            return
        if name.startswith(source.WHITEOUT):
            raise source.no_name(path)
        status = source.status_at(self._upper.fd, name, path)
        before = None
        if name in in_lower:
            assert self._lower is not None
            before = source.status_at(self._lower.fd, name, path)
        if stat.S_ISDIR(status.st_mode):
            self._enter(current, name, path, before)
        elif before is None or not self._same(before, status, name, path):
            if not self._write(current, name, path, status) and before is not None:
                # The layer cannot hold it, but what was there is gone all the same.
                self._parents(current)
                self._out.whiteout(path)
        elif status.st_nlink > 1:
            self._keep(current, name, path, status)

    def _enter(self, current: _Directory, name: bytes, path: bytes, before: os.stat_result | None) -> None:
        """Step into a directory; into its counterpart too when that is a directory."""
        with source.reading(path):
            fd = open_directory(name, self._upper.fd)
            self._upper.push(name, fd)
            status = os.fstat(fd)
        _, xattrs = source.xattrs_of(fd, path)
        directory = _Directory(current, path + b"/", status, xattrs)
        both = before is not None and stat.S_ISDIR(before.st_mode)
        changed = True
        if both:
            assert self._lower is not None
            with source.reading(path):
                fd = open_directory(name, self._lower.fd)
                self._lower.push(name, fd)
                before = os.fstat(fd)
            changed = not (
                _same_metadata(before, status)
                and _same_time(before, status)
                and source.xattrs_of(fd, path)[1] == xattrs
            )
        if changed:
            self._parents(directory)
        self._fill(directory, both)
        self._stack.append(directory)

    def _parents(self, directory: _Directory | None) -> None:
        """Write the directories on the way to a change that are not in the layer yet."""
        missing = []
        while directory is not None and not directory.written:
            missing.append(directory)
            directory = directory.parent
        for directory in reversed(missing):
            self._out.directory(directory.prefix[:-1], directory.status, directory.xattrs)
            directory.written = True

    def _write(self, current: _Directory, name: bytes, path: bytes, status: os.stat_result) -> bool:
        """Write what is no directory; False when a layer cannot hold it."""
        if stat.S_ISREG(status.st_mode):
            self._file(current, name, path)
            return True
        if stat.S_ISSOCK(status.st_mode):
            return self._out.special(self._upper.fd, name, path, status)
        self._parents(current)
        self._out.special(self._upper.fd, name, path, status)
        for directory, other in self._unchanged.pop((status.st_dev, status.st_ino), ()):
            self._parents(directory)
            self._out.special(self._upper.fd, name, other, status)
        return True

    def _file(self, current: _Directory, name: bytes, path: bytes) -> None:
        if not current.written:
            self._parents(current)
        file = source.open_file(self._upper.fd, name, path)
        fd, status, _ = file
        try:
            self._out.file(file, path)
            if status.st_nlink > 1 and self._unchanged:
                for directory, other in self._unchanged.pop((status.st_dev, status.st_ino), ()):
                    self._parents(directory)
                    self._out.file(file, other)
        finally:
            os.close(fd)

    def _keep(self, current: _Directory, name: bytes, path: bytes, status: os.stat_result) -> None:
        """An unchanged name of an inode with several."""
        if self._out.is_linked(status):
            self._write(current, name, path, status)
            return
        key = (status.st_dev, status.st_ino)
        names = self._unchanged.setdefault(key, [])
        names.append((current, path))
        if len(names) == status.st_nlink:
            del self._unchanged[key]

    def _same(self, before: os.stat_result, after: os.stat_result, name: bytes, path: bytes) -> bool:
        """Whether what is no directory is unchanged."""
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return True
        if not _same_metadata(before, after) or not _same_time(before, after):
            return False
        if before.st_rdev != after.st_rdev or before.st_size != after.st_size:
            return False
        assert self._lower is not None
        lower, upper = self._lower.fd, self._upper.fd
        if source.xattrs_at(lower, name, path) != source.xattrs_at(upper, name, path):
            return False
        if stat.S_ISLNK(after.st_mode):
            with source.reading(path):
                return os.readlink(name, dir_fd=lower) == os.readlink(name, dir_fd=upper)
        if not stat.S_ISREG(after.st_mode) or not after.st_size or _has_fractions(before, after):
            return True
        return _same_contents(lower, upper, name, path)


def _same_metadata(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)


def _same_time(before: os.stat_result, after: os.stat_result) -> bool:
    if _has_fractions(before, after):
        return before.st_mtime_ns == after.st_mtime_ns
    return before.st_mtime_ns // _SECOND == after.st_mtime_ns // _SECOND


def _has_fractions(before: os.stat_result, after: os.stat_result) -> bool:
    return bool(before.st_mtime_ns % _SECOND and after.st_mtime_ns % _SECOND)


def _same_contents(lower: int, upper: int, name: bytes, path: bytes) -> bool:
    with ExitStack() as stack:
        fds = []
        for parent in (lower, upper):
            fds.append(source.open_file(parent, name, path)[0])
            stack.callback(os.close, fds[-1])
        first, second = bytearray(PIECE), bytearray(PIECE)
        position = 0
        while True:
            check()
            with source.reading(path):
                n, m = os.preadv(fds[0], [first], position), os.preadv(fds[1], [second], position)
            if n != m or memoryview(first)[:n] != memoryview(second)[:m]:
                return False
            if not n:
                return True
            position += n
