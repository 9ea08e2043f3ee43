"""A way down a directory tree that no symbolic link can bend: each step opens one name below an open directory."""

from __future__ import annotations

import errno
import os
import stat

from blobtee.errors import TooLarge
from blobtee.tasks import check

MAX_DEPTH = 16_384
"""Directories on top of each other: as many as a path of `MAX_PATH` bytes can name."""

_OPEN = 32
_MILESTONE = 256
_CHECK_EVERY = 1024
_BATCH = 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Trail:
    """The directories from a root (level 0) down to the one that is being worked in, by name.

    However deep it goes, at most about 150 of them are held open: the lowest, and a milestone here and there. The
    others are opened again, name by name from the last milestone, when the way back leads through them. Not
    thread-safe.
    """

    def __init__(self, root: int) -> None:
        """`root` is an open directory, which the trail takes over."""
        self.names: list[bytes] = [b""]
        self._fds: list[int | None] = [root]
        self._nopen = 1

    @property
    def level(self) -> int:
        return len(self.names) - 1

    @property
    def fd(self) -> int:
        """The lowest directory's descriptor, good until the trail moves."""
        return self.at(self.level)

    def at(self, level: int) -> int:
        """The descriptor of the directory at `level`, good until the trail moves."""
        fd = self._fds[level]
        return fd if fd is not None else self._reopen(level)

    def push(self, name: bytes, fd: int) -> None:
        """Step down into `name`, open as `fd`, which the trail takes over. `TooLarge` below `MAX_DEPTH`."""
        if len(self.names) > MAX_DEPTH:
            os.close(fd)
            raise TooLarge(f"directories deeper than {MAX_DEPTH} levels")
        self.names.append(name)
        self._fds.append(fd)
        self._nopen += 1
        self._close_at(self.level - _OPEN)

    def cut(self, level: int) -> None:
        """Step back up to `level`."""
        while len(self.names) - 1 > level:
            self.names.pop()
            fd = self._fds.pop()
            if fd is not None:
                self._nopen -= 1
                os.close(fd)

    def close(self) -> None:
        """Close all of it, the root too. May be called again."""
        self.cut(-1)

    def _close_at(self, level: int) -> None:
        if level > 0 and level % _MILESTONE:
            fd = self._fds[level]
            if fd is not None:
                self._fds[level] = None
                self._nopen -= 1
                os.close(fd)

    def _reopen(self, level: int) -> int:
        if self._nopen > 2 * _OPEN + self.level // _MILESTONE:
            for other in range(1, self.level):
                self._close_at(other)
        start = level
        while self._fds[start] is None:
            start -= 1
        fd = self.at(start)
        for below in range(start + 1, level + 1):
            if below % _CHECK_EVERY == 0:
                check()
            fd = self._fds[below] = open_directory(self.names[below], fd)
            self._nopen += 1
            # One that is far behind is not kept: the way down would use up all descriptors.
            if below - _OPEN > start:
                self._close_at(below - _OPEN)
        return fd


def open_directory(name: bytes, parent: int) -> int:
    """Open the directory `name` of the open directory `parent`. A symbolic link is a `NotADirectoryError`."""
    return os.open(name, _DIRECTORY, dir_fd=parent)


def open_widened(name: bytes, parent: int) -> tuple[int, int | None]:
    """As `open_directory`, for who is not root: a directory that its owner may not list, enter or change is made so.

    Gives the mode it had, None when that was wide enough.
    """
    before = None
    try:
        fd = open_directory(name, parent)
    except PermissionError:
        before = _widen(name, parent)
        fd = open_directory(name, parent)
    try:
        narrow = widen(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, before if before is not None else narrow


def widen(fd: int) -> int | None:
    """Give the owner all rights to an open directory; the mode it had, None when it stays as it is.

    Somebody else's directory stays too: it may be good enough for what comes, and otherwise that says why.
    """
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o700 == 0o700:
        return None
    try:
        os.fchmod(fd, mode | 0o700)
    except PermissionError:
        return None
    return mode


def remove(name: bytes, parent: int, *, as_root: bool) -> None:
    """Take away `name` in the open directory `parent`, with all that is in it when it is a directory.

    Nothing happens when it is not there. Unless `as_root`, directories are opened as by `open_widened`. However deep or
    wide it is, memory and the number of open files stay small.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        _remove_directory(name, parent, as_root=as_root)


def _remove_directory(name: bytes, parent: int, *, as_root: bool) -> None:
    trail = Trail(os.dup(parent))
    # For each directory of the trail, names of directories in it that are due.
    due = [[name]]
    try:
        while len(due) > 1 or due[0]:
            check()
            if not due[-1]:
                # It is empty now, or has more than one batch of directories: removing it once more tells.
                due.pop()
                due[-1].append(trail.names[-1])
                trail.cut(trail.level - 1)
            elif _removed(due[-1][-1], trail.fd):
                due[-1].pop()
            else:
                below = due[-1].pop()
                trail.push(below, open_directory(below, trail.fd) if as_root else open_widened(below, trail.fd)[0])
                due.append(_emptied(trail.fd))
    finally:
        trail.close()


def _removed(name: bytes, parent: int) -> bool:
    """Whether the directory `name` is gone; False when there is something in it."""
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _emptied(fd: int) -> list[bytes]:
    """Take what is no directory out of an open directory. Names of the directories in it, at most `_BATCH`."""
    names: list[bytes] = []
    with os.scandir(fd) as found:
        for position, entry in enumerate(found):
            if position % _CHECK_EVERY == 0:
                check()
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(name, dir_fd=fd)
                continue
            names.append(name)
            if len(names) == _BATCH:
                break
    return names


def _widen(name: bytes, parent: int) -> int:
    """Give the owner all rights to a directory that cannot be opened; the mode it had."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(handle)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        mode = stat.S_IMODE(status.st_mode)
        # The handle is no name: nothing can come in between and be changed instead.
        os.chmod(f"/proc/self/fd/{handle}", mode | 0o700)
    finally:
        os.close(handle)
    return mode
