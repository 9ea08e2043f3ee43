"""A layer's tar put on top of a directory: what unpacking an image does, one layer at a time.

No entry reaches outside the directory: every step goes by an open directory and one name, and no step follows a
symbolic link by itself. Where a parent of an entry is a link, the link is read and followed within the directory, as
in a chroot, which real images rely on (`lib/x` where a lower layer has `lib -> usr/lib`; containerd `pkg/archive`).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from blobtee.errors import BlobteeError, CorruptData, TooLarge, from_os_error
from blobtee.layers import xattrs
from blobtee.layers.entry import Entry, EntryType
from blobtee.layers.reader import entries
from blobtee.layers.site import Site
from blobtee.layers.tarstream import drain
from blobtee.layers.whiteout import Whiteout, whiteout
from blobtee.tasks import check

MAX_SPARSE_NBYTES = 1 << 44
"""Bytes of a file with holes (16 TiB, ext4's limit): a header of some bytes may claim any number of them."""

_BUFFER = 1 << 20
_MAX_ID = 2**32 - 2
_MAX_MAJOR, _MAX_MINOR = 2**12 - 1, 2**20 - 1
_MAX_NS = 2**63 - 1
_NODES = {
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did: the tar's entries, whiteouts included; bytes of its files' content, holes included; and how
    many devices and extended attributes the user's rights or the file system did not allow."""

    entries: int
    nbytes: int
    left_out: int = 0


def apply(stream: BinaryIO | io.RawIOBase, root: str | os.PathLike[str], *, as_root: bool | None = None) -> Applied:
    """Put the layer whose uncompressed tar `stream` gives on top of the existing directory `root`.

    Afterwards `root` has what the OCI image specification (layer.md) says of applying a changeset:

    - A directory over a directory keeps what is in it and takes the entry's mode, owner, time and attributes. Anything
      else replaces what was there, a directory over a symbolic link too. An entry for the root sets the root's.
    - Whiteouts and opaque marks take away what was in `root` before this layer, never what the layer itself has
      brought, wherever in the tar they are. One whose directory does not exist says nothing.
    - A directory without an entry of its own has mode 0755, belongs to root, and is of time 0. One that was there
      before keeps its time though something in it changes: equal layers give equal trees.
    - Holes stay holes. `trusted.overlay.*` and `user.overlay.*` (orders to overlayfs), SELinux labels and NFS ACLs are
      not set. Times beyond 64 bits of nanoseconds become the nearest that is not.

    With `as_root` (None: when the process is root) owners and devices are set. Without it everything belongs to the
    user, devices are left out with what they would replace, and so are attributes that only root may set.

    The stream is read to its end, past the tar's own, so that whoever decompresses or hashes it has seen all of it.
    Nothing is synced to the disk. Nobody else may change `root` meanwhile. Memory is flat in the files' sizes; of each
    directory about 300 bytes are kept, and 100 of each file in a directory that was there before (`TooLarge` past 256
    MiB of it). Files held open are about 150 at most.

    `CorruptData`: no sound tar; a path or link that leads out, or in a circle; a hard link to a directory or to
    nothing; numbers that no Linux file can have. `TooLarge`: a file with holes beyond `MAX_SPARSE_NBYTES`, directories
    too deep. `PermissionDenied`, `StorageFull`, `StorageError`, `ResourceExhausted`, `NotFound` from the file system,
    with the path. Cancellable. After any error a part of the layer may be in `root`.
    """
    rooted = os.geteuid() == 0 if as_root is None else as_root
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"unpack into {os.fspath(root)!r}") from error
    applier = _Applier(fd, rooted)
    try:
        return applier.run(stream)
    finally:
        applier.close()


class _Applier:
    def __init__(self, root: int, as_root: bool) -> None:
        try:
            self._site = Site(root, as_root=as_root)
        except OSError as error:
            os.close(root)
            raise from_os_error(error, "unpack") from error
        self._as_root = as_root
        self._buffer = memoryview(bytearray(_BUFFER))
        self._left_out = 0

    def close(self) -> None:
        self._site.close()

    def run(self, stream: BinaryIO | io.RawIOBase) -> Applied:
        count = nbytes = 0
        for entry in entries(stream):
            try:
                self._put(entry)
            except BlobteeError:
                raise
            except OSError as error:
                raise from_os_error(error, f"unpack {entry.path[:200]!r}") from error
            count += 1
            nbytes += entry.size
        drain(stream)
        try:
            self._site.finish()
        except BlobteeError:
            raise
        except OSError as error:
            raise from_os_error(error, f"set the time of {self._site.path!r}") from error
        return Applied(count, nbytes, self._left_out)

    def _put(self, entry: Entry) -> None:
        hides = whiteout(entry.path)
        if hides is not None:
            self._hide(hides)
            return
        path = _raw(entry.path)
        parent, _, name = path.rpartition(b"/")
        if entry.type is EntryType.HARDLINK:
            self._link(entry, parent, name)
            return
        self._site.enter(parent, make=True)
        if entry.type is EntryType.DIRECTORY:
            self._directory(entry, name, path)
            return
        self._site.touch()
        if entry.type is EntryType.FILE:
            self._file(entry, name)
        elif entry.type is EntryType.SYMLINK:
            self._symlink(entry, name)
        else:
            self._node(entry, name)
        self._site.directory.put(name)

    def _hide(self, hides: Whiteout) -> None:
        if hides.path is None:
            return
        path = _raw(hides.path)
        if hides.opaque:
            if self._site.enter(path, make=False):
                self._site.purge()
            return
        parent, _, name = path.rpartition(b"/")
        if self._site.enter(parent, make=False):
            self._site.hide(name)

    def _directory(self, entry: Entry, name: bytes, path: bytes) -> None:
        site = self._site
        is_new = bool(name) and site.into(name, path)
        directory, fd = site.directory, site.fd
        directory.hold()
        directory.said = True
        directory.mtime_ns = _time(entry)
        if not is_new:
            xattrs.clear(fd, entry.xattrs, as_root=self._as_root)
        self._own(entry, fd)
        if self._as_root:
            os.fchmod(fd, entry.mode)
        else:
            directory.mode = entry.mode  # not before all is in it

    def _file(self, entry: Entry, name: bytes) -> None:
        if entry.sparse is not None and entry.size > MAX_SPARSE_NBYTES:
            raise TooLarge(f"{entry.path[:200]!r}: a file with holes of {entry.size} bytes")
        fd = self._new(name, lambda directory: os.open(name, _NEW, 0o600, dir_fd=directory))
        try:
            if entry.sparse is not None:
                self._copy_sparse(entry, fd)
            elif entry.size:
                self._copy(entry.stored(), fd, entry.size)
            self._own(entry, fd)
            os.fchmod(fd, entry.mode)
            time = _time(entry)
            os.utime(fd, ns=(time, time))
        finally:
            os.close(fd)

    def _copy(self, data: io.RawIOBase, fd: int, nbytes: int) -> None:
        while nbytes:
            check()
            n = data.readinto(self._buffer[: min(nbytes, _BUFFER)]) or 0
            if not n:
                raise CorruptData("the tar ends within a file")
            nbytes -= n
            done = 0
            while done < n:
                done += os.write(fd, self._buffer[done:n])

    def _copy_sparse(self, entry: Entry, fd: int) -> None:
        assert entry.sparse is not None
        data = entry.stored()
        for segment in entry.sparse:
            os.lseek(fd, segment.offset, os.SEEK_SET)
            self._copy(data, fd, segment.length)
        os.ftruncate(fd, entry.size)

    def _symlink(self, entry: Entry, name: bytes) -> None:
        self._new(name, lambda directory: os.symlink(_raw(entry.linkname), name, dir_fd=directory))
        self._site.links_changed()
        self._own_by_name(entry, name)

    def _node(self, entry: Entry, name: bytes) -> None:
        if entry.type is not EntryType.FIFO and not self._as_root:
            self._site.remove(name)
            self._left_out += 1
            return
        if not (0 <= entry.devmajor <= _MAX_MAJOR and 0 <= entry.devminor <= _MAX_MINOR):
            raise CorruptData(f"{entry.path[:200]!r}: device numbers {entry.devmajor}, {entry.devminor}")
        device = os.makedev(entry.devmajor, entry.devminor)
        mode = _NODES[entry.type] | 0o600
        self._new(name, lambda directory: os.mknod(name, mode, device, dir_fd=directory))
        self._own_by_name(entry, name)

    def _link(self, entry: Entry, parent: bytes, name: bytes) -> None:
        site = self._site
        target_parent, _, target = _raw(entry.linkname).rpartition(b"/")
        found = self._stat(target) if site.enter(target_parent, make=False) else None
        if found is None or stat.S_ISDIR(found.st_mode):
            raise self._bad_link(entry)
        source = os.dup(site.fd)
        try:
            site.enter(parent, make=True)
            site.touch()
            existing = self._stat(name)
            if existing is None or not os.path.samestat(existing, found):
                if existing is not None:
                    site.remove(name)
                self._join(entry, target, source, name)
        finally:
            os.close(source)
        site.directory.put(name)

    def _join(self, entry: Entry, target: bytes, source: int, name: bytes) -> None:
        """Link to `target` in the directory `source`, unless what gave way to the link was, or held, its target."""
        try:
            found = os.stat(target, dir_fd=source, follow_symlinks=False)
        except FileNotFoundError:
            raise self._bad_link(entry) from None
        if stat.S_ISDIR(found.st_mode):
            raise self._bad_link(entry)
        os.link(target, name, src_dir_fd=source, dst_dir_fd=self._site.fd, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            self._site.links_changed()

    def _stat(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._site.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    @staticmethod
    def _bad_link(entry: Entry) -> CorruptData:
        return CorruptData(f"{entry.path[:200]!r}: a hard link to {entry.linkname[:200]!r}, where there is no file")

    def _new(self, name: bytes, make: Callable[[int], _T]) -> _T:
        """Make what `make` makes in the directory it is given, in place of what is there."""
        try:
            return make(self._site.fd)
        except FileExistsError:
            self._site.remove(name)
            return make(self._site.fd)

    def _own(self, entry: Entry, fd: int) -> None:
        """Owner, then attributes: a change of owner takes capabilities away, as it does set-user-id bits."""
        if self._as_root:
            os.fchown(fd, *_owner(entry))
        if entry.xattrs:
            self._left_out += xattrs.put(fd, entry.xattrs, entry.path, as_root=self._as_root)

    def _own_by_name(self, entry: Entry, name: bytes) -> None:
        """Owner, attributes, mode and time of what cannot be opened, and has just been made: no link of somebody else's
        is at its name."""
        fd = self._site.fd
        if self._as_root:
            os.chown(name, *_owner(entry), dir_fd=fd, follow_symlinks=False)
        if entry.xattrs:
            path = b"/proc/self/fd/%d/%s" % (fd, name)
            self._left_out += xattrs.put(path, entry.xattrs, entry.path, as_root=self._as_root)
        if entry.type is not EntryType.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=fd)
        time = _time(entry)
        os.utime(name, ns=(time, time), dir_fd=fd, follow_symlinks=False)


def _raw(path: str) -> bytes:
    """The bytes that the tar had, whatever the locale's encoding is."""
    return path.encode("utf-8", "surrogateescape")


def _owner(entry: Entry) -> tuple[int, int]:
    # The highest number means "leave it" to chown(2).
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise CorruptData(f"{entry.path[:200]!r}: owner {entry.uid}, group {entry.gid}")
    return entry.uid, entry.gid


def _time(entry: Entry) -> int:
    return max(-_MAX_NS, min(entry.mtime_ns, _MAX_NS))
