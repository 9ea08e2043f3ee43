"""What lies in a directory tree, read without following anything out of it, as entries of a layer."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from blobtee.errors import BlobteeError, FailedPrecondition, InvalidArgument, from_os_error
from blobtee.layers.blocks import PIECE, Blocks
from blobtee.layers.header import DIRECTORY, FILE, HARDLINK, header, shown
from blobtee.layers.whiteout import PREFIX

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

OVERLAY = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")
"""What overlay mounts keep about a file; it means nothing elsewhere, and other things in another mount."""

_KEPT = ("user.", "trusted.")
_CAPABILITY = "security.capability"
WHITEOUT = os.fsencode(PREFIX)
_SMALL = 256 << 10
_SECOND = 1_000_000_000
# Not to block in what has become a pipe meanwhile.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

_logger = logging.getLogger(__name__)

Xattrs = dict[bytes, bytes]


OpenFile = tuple[int, os.stat_result, list[str]]
"""A descriptor, its status, and the names of its extended attributes."""


class Listing(NamedTuple):
    """`names` in reverse order: the last is the first. `others` are those of them that are no regular files."""

    names: list[bytes]
    others: set[bytes]


class _Link:
    """The first name of an inode within the layer, and how many more names it has."""

    __slots__ = ("left", "path")

    def __init__(self, path: bytes, left: int) -> None:
        self.path = path
        self.left = left


class Source:
    """Writes what it is pointed at to a layer's tar.

    Kept of extended attributes: `security.capability`, `user.*`, and `trusted.*` (which only root sees), less those of
    overlay mounts. Left out: `security.selinux`, `.ima`, `.evm`, which are the host's policy and keys (containerd and
    BuildKit write `security.capability` only), and `system.*`: ACLs name the host's users. Names of owners are left
    out for the same reason. Sockets are not part of a layer.
    """

    def __init__(self, write: Callable[[Buffer], object], epoch: int | None) -> None:
        self._blocks = Blocks(write)
        self._latest = None if epoch is None else epoch * _SECOND
        self._links: dict[tuple[int, int], _Link] = {}
        self._buffer: memoryview | None = None

    def finish(self) -> None:
        self._blocks.finish()

    def whiteout(self, path: bytes) -> None:
        """Say that `path` is deleted. Time, owner and mode are zero, as containerd writes them."""
        directory, slash, name = path.rpartition(b"/")
        if name.startswith(WHITEOUT):
            raise no_name(path)
        self._blocks.put(header(directory + slash + WHITEOUT + name, FILE))

    def opaque(self, path: bytes) -> None:
        """Say that nothing of the lower layers is left in the directory `path`."""
        self._blocks.put(header(path + b"/.wh..wh..opq", FILE))

    def directory(self, path: bytes, status: os.stat_result, xattrs: Xattrs | None) -> None:
        self._blocks.put(self._header(path + b"/", DIRECTORY, status, xattrs))

    def file(self, file: OpenFile, path: bytes) -> None:
        """Write a regular file, or a hard link to it when another of its names is in the layer."""
        fd, status, names = file
        xattrs = read_xattrs(fd, names, path) if names else None
        if status.st_nlink > 1 and self._linked(path, status, xattrs):
            return
        size = status.st_size
        block = self._header(path, FILE, status, xattrs, size)
        if size > _SMALL:
            self._blocks.put(block)
            self._large(fd, status, path)
            self._blocks.pad(size)
            return
        try:
            # One call tells as well that it has not grown.
            data = os.read(fd, size + 1)
            if len(data) != size:
                data = _rest(fd, data, size, path)
        except OSError as error:
            raise problem(error, path) from error
        self._blocks.put(b"%s%s%s" % (block, data, bytes(-size % 512)))

    def special(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> bool:
        """Write what is neither file nor directory; False when it is nothing that a layer can hold."""
        type_ = stat.S_IFMT(status.st_mode)
        kind = _KINDS.get(type_)
        if kind is None:
            _logger.info("%s: a socket is not part of a layer", shown(path))
            return False
        with reading(path):
            target = os.readlink(name, dir_fd=parent) if type_ == stat.S_IFLNK else b""
        xattrs = xattrs_at(parent, name, path)
        if status.st_nlink > 1 and self._linked(path, status, xattrs):
            return True
        self._blocks.put(self._header(path, kind, status, xattrs, 0, target))
        return True

    def is_linked(self, status: os.stat_result) -> bool:
        """Whether another name of the same inode is in the layer."""
        return (status.st_dev, status.st_ino) in self._links

    def _linked(self, path: bytes, status: os.stat_result, xattrs: Xattrs | None) -> bool:
        key = (status.st_dev, status.st_ino)
        link = self._links.get(key)
        if link is None:
            self._links[key] = _Link(path, status.st_nlink - 1)
            return False
        # With everything that the file has: who sets the owner of the link takes the capabilities from both.
        self._blocks.put(self._header(path, HARDLINK, status, xattrs, 0, link.path))
        link.left -= 1
        if not link.left:
            del self._links[key]
        return True

    def _header(
        self,
        path: bytes,
        kind: bytes,
        status: os.stat_result,
        xattrs: Xattrs | None,
        size: int = 0,
        target: bytes = b"",
    ) -> bytes:
        mtime = status.st_mtime_ns
        if self._latest is not None and mtime > self._latest:
            mtime = self._latest
        mode = status.st_mode
        major = minor = 0
        if mode & 0o170000 in _DEVICES:
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        return header(
            path, kind, mode & 0o7777, status.st_uid, status.st_gid, size, mtime, target, major, minor, xattrs
        )

    def _large(self, fd: int, status: os.stat_result, path: bytes) -> None:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(PIECE))
        size = status.st_size
        may_have_holes = status.st_blocks * 512 < size
        position = 0
        while position < size:
            with reading(path):
                start, end = _data_from(fd, position, size) if may_have_holes else (position, size)
            self._blocks.zeros(start - position)
            position = start
            while position < end:
                with reading(path):
                    n = os.preadv(fd, [self._buffer[: min(end - position, PIECE)]], position)
                if not n:
                    raise changed(path)
                self._blocks.pass_on(self._buffer[:n])
                position += n
        with reading(path):
            after = os.fstat(fd)
        if after.st_size != size or after.st_mtime_ns != status.st_mtime_ns:
            raise changed(path)


def open_root(path: str | os.PathLike[str]) -> int:
    """Open the directory that a tree begins at; a symbolic link to it is followed."""
    try:
        return os.open(path, _ROOT)
    except OSError as error:
        raise from_os_error(error, f"read the directory {os.fspath(path)!r}") from error
    except ValueError as error:
        raise InvalidArgument(f"not a path: {path!r}") from error


def list_names(fd: int) -> Listing:
    names, others = [], set()
    with os.scandir(fd) as entries:
        for entry in entries:
            name = entry.name.encode(_ENCODING, _ERRORS)
            names.append(name)
            if not entry.is_file(follow_symlinks=False):
                others.add(name)
    names.sort(reverse=True)
    return Listing(names, others)


def no_name(path: bytes) -> InvalidArgument:
    return InvalidArgument(f"{shown(path)}: in a layer, a name that begins with .wh. says that something is deleted")


def open_file(parent: int, name: bytes, path: bytes) -> OpenFile:
    """Open a regular file. The caller closes `fd`. `FailedPrecondition` when it is no regular file any more."""
    fd = -1
    try:
        fd = os.open(name, _FILE, dir_fd=parent)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise changed(path)
        return fd, status, _xattr_names(fd)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise problem(error, path) from error
        raise


def check_place(fd: int, status: os.stat_result, path: bytes) -> None:
    """`FailedPrecondition` unless `fd` is the directory of `status`: a deep trail opens them anew on its way up."""
    with reading(path):
        now = os.fstat(fd)
    if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
        raise changed(path)


def status_at(parent: int, name: bytes, path: bytes) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        raise problem(error, path) from error


def xattrs_at(parent: int, name: bytes, path: bytes) -> Xattrs | None:
    """The attributes that a layer keeps of what may not be opened: links, devices, pipes, other people's files.

    There is no such call relative to a directory; the way through /proc is as safe.
    """
    place = b"/proc/self/fd/%d/%s" % (parent, name)
    try:
        names = _xattr_names(place)
    except OSError as error:
        if not os.path.isdir("/proc/self/fd"):
            raise FailedPrecondition("cannot read extended attributes without /proc; mount it") from error
        raise problem(error, path) from error
    return read_xattrs(place, names, path) if names else None


def xattrs_of(fd: int, path: bytes) -> tuple[list[str], Xattrs | None]:
    """All names of extended attributes of an open file, and the attributes that a layer keeps."""
    with reading(path):
        names = _xattr_names(fd)
    return names, read_xattrs(fd, names, path) if names else None


def read_xattrs(place: int | bytes, names: list[str], path: bytes) -> Xattrs | None:
    """Those of the attributes `names` that a layer keeps; None when there are none."""
    result: Xattrs = {}
    for name in names:
        if name == _CAPABILITY or (name.startswith(_KEPT) and not name.startswith(OVERLAY)):
            with reading(path):
                result[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=isinstance(place, int))
    return result or None


def _xattr_names(place: int | bytes) -> list[str]:
    try:
        return os.listxattr(place, follow_symlinks=isinstance(place, int))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def _rest(fd: int, data: bytes, size: int, path: bytes) -> bytes:
    """What a short read has left; some file systems give less than was asked for."""
    while len(data) <= size and (piece := os.read(fd, size + 1 - len(data))):
        data += piece
    if len(data) != size:
        raise changed(path)
    return data


def _data_from(fd: int, position: int, size: int) -> tuple[int, int]:
    """The next stretch that is no hole, half-open, within `size`."""
    try:
        start = os.lseek(fd, position, os.SEEK_DATA)
        return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno in (errno.EINVAL, errno.ENOTSUP):
            return position, size
        raise


def changed(path: bytes) -> FailedPrecondition:
    return FailedPrecondition(f"{shown(path)} changed while it was read into a layer")


def problem(error: OSError, path: bytes) -> BlobteeError:
    if isinstance(error, BlobteeError):
        return error
    if error.errno in (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ESTALE,
        errno.ENODATA,
        errno.EISDIR,
        errno.ENXIO,
    ):
        return changed(path)
    return from_os_error(error, f"read {shown(path)}")


@contextmanager
def reading(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise problem(error, path) from error
