"""Where a layer is being put: the directory that work goes on in, how it is found, and what whiteouts take away."""

from __future__ import annotations

import errno
import os

from blobtee.errors import CorruptData
from blobtee.layers import xattrs
from blobtee.layers.brought import Budget, Directory
from blobtee.layers.trail import Trail, open_directory, open_widened, remove, widen
from blobtee.tasks import check

MAX_LINKS = 40
"""Symbolic links that are followed for one path, as Linux does."""

_BATCH = 1024
_CHECK_EVERY = 256


class Site:
    """One directory at a time below a root, and what the layer has brought so far. Not thread-safe."""

    def __init__(self, root: int, *, as_root: bool) -> None:
        """`root` is an open directory, which the site takes over. Unless `as_root`, directories that their owner may
        not change are made so when they are entered, until `finish`."""
        self._trail = Trail(root)
        self._as_root = as_root
        self._parent: bytes | None = None
        with os.scandir(root) as found:
            has_lower = next(found, None) is not None
        self.directory = Directory(Budget(), None, has_lower=has_lower)
        if not as_root:
            self.directory.mode = widen(root)

    @property
    def fd(self) -> int:
        """The directory that work goes on in, open; good until the site moves."""
        return self._trail.fd

    @property
    def path(self) -> str:
        """The real path of that directory, for people."""
        return b"/".join(self._trail.names)[:200].decode("utf-8", "replace") or "/"

    def close(self) -> None:
        self._trail.close()

    def enter(self, path: bytes, *, make: bool) -> bool:
        """Go to the directory at `path`, following symbolic links within the root. `..` at the root stays there.

        With `make`, directories that are missing are made (mode 0755, root's, of time 0), and what else is in their
        place is taken away; the layer has brought the directory then. Otherwise False when there is no such directory.
        `CorruptData` for links in a circle, `TooLarge` for too deep directories.
        """
        if path != self._parent:
            self._parent = None  # looking moves the site, also when nothing is found
            missing = self._find(path)
            if missing and not make:
                return False
            for name in missing:
                self._make(name)
                self._imply()
            self._parent = path
        if make:
            self.directory.hold()
        return True

    def into(self, name: bytes, path: bytes) -> bool:
        """Go down to the directory `name`, made anew where there is none; what else is there is taken away, a symbolic
        link to a directory too (as containerd does). Whether it was made. `path` is that of the entry."""
        existing = self._open_existing(name)
        if existing is None:
            self._make(name)
        else:
            self._step(name, *existing)
        self._parent = path
        return existing is None

    def touch(self) -> None:
        """Say that something in the directory is about to change: its own time must not show it."""
        if self.directory.mtime_ns is None:
            self.directory.mtime_ns = os.fstat(self.fd).st_mtime_ns

    def remove(self, name: bytes) -> None:
        """Take away what is at `name`, with all that is in it. Nothing happens when nothing is there."""
        self.touch()
        remove(name, self.fd, as_root=self._as_root)
        self.directory.children.pop(name, None)
        self.directory.files.discard(name)
        self.links_changed()

    def links_changed(self) -> None:
        """Say that paths may lead elsewhere from now on."""
        self._parent = None

    def hide(self, name: bytes) -> None:
        """Take away what lower layers have at `name`; what this layer has there stays."""
        here = self.directory
        if not here.has_lower or name in here.files:
            return
        child = here.children.get(name)
        if child is None or not child.holds:
            self.remove(name)
            return
        existing = self._open_existing(name)
        assert existing is not None
        self._step(name, *existing)
        self.links_changed()
        self.purge()
        if not child.said:
            xattrs.clear(self.fd, (), as_root=self._as_root)
            self._imply()

    def purge(self) -> None:
        """Take away what lower layers have below the directory; what this layer has there stays."""
        self.links_changed()
        top = self._trail.level
        due = [self._purge_here()]
        while True:
            check()
            if due[-1]:
                name = due[-1].pop()
                self._step(name, open_directory(name, self.fd), None)
                due.append(self._purge_here())
            elif self._trail.level == top:
                return
            else:
                due.pop()
                self._climb(self._trail.level - 1)

    def finish(self) -> None:
        """Give all directories the modes and times that they are to have, those below before those above."""
        self._climb(0)
        for count in range(1 << 62):
            if count % _CHECK_EVERY == 0:
                check()
            here = self.directory
            if here.children:
                name, child = here.children.popitem()
                self._trail.push(name, open_directory(name, self.fd))
                self.directory = child
                continue
            if here.mode is not None:
                os.fchmod(self.fd, here.mode)
            if here.mtime_ns is not None:
                os.utime(self.fd, ns=(here.mtime_ns, here.mtime_ns))
            if here.parent is None:
                return
            self._climb(self._trail.level - 1)

    def _find(self, path: bytes) -> list[bytes]:
        """Go to the deepest directory of `path` that exists; the names that are missing below it."""
        trail = self._trail
        pending = path.split(b"/")
        pending.reverse()
        missing: list[bytes] = []
        level = links = steps = 0
        while pending:
            steps += 1
            if steps % _CHECK_EVERY == 0:
                check()
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if missing:
                    missing.pop()
                else:
                    level = max(level - 1, 0)
            elif missing:
                missing.append(name)
            elif level < trail.level and trail.names[level + 1] == name:
                level += 1
            else:
                found = self._look(name, trail.at(level))
                if found is None:
                    missing.append(name)
                elif isinstance(found, bytes):
                    links += 1
                    if links > MAX_LINKS:
                        raise CorruptData(f"{os.fsdecode(path[:200])!r}: symbolic links that lead in a circle")
                    if found.startswith(b"/"):
                        level = 0
                    pending += reversed(found.split(b"/"))
                else:
                    self._climb(level)
                    self._step(name, *found)
                    level += 1
        self._climb(level)
        return missing

    def _look(self, name: bytes, parent: int) -> tuple[int, int | None] | bytes | None:
        """What is at `name`: a directory, open, and the mode it had before; a link's text; None for all else."""
        try:
            return self._open(name, parent)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            pass
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return None

    def _open(self, name: bytes, parent: int) -> tuple[int, int | None]:
        return (open_directory(name, parent), None) if self._as_root else open_widened(name, parent)

    def _open_existing(self, name: bytes) -> tuple[int, int | None] | None:
        try:
            return self._open(name, self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _step(self, name: bytes, fd: int, mode: int | None) -> None:
        """Go down to `name`, open as `fd`. `mode` is what it is to have in the end, when that is not what it has."""
        self._trail.push(name, fd)
        self.directory = self.directory.child(name)
        if self.directory.mode is None:
            self.directory.mode = mode

    def _make(self, name: bytes) -> None:
        """Make a directory, for now open to its owner alone, and go down to it."""
        self.touch()
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
        except FileExistsError:
            self.remove(name)
            os.mkdir(name, 0o700, dir_fd=self.fd)
        self._trail.push(name, open_directory(name, self.fd))
        self.directory = self.directory.made(name)

    def _imply(self) -> None:
        """Give the directory what one has that no entry speaks of."""
        self.directory.mtime_ns = 0
        if self._as_root:
            os.fchown(self.fd, 0, 0)
            os.fchmod(self.fd, 0o755)
        else:
            self.directory.mode = 0o755

    def _climb(self, level: int) -> None:
        for _ in range(self._trail.level - level):
            assert self.directory.parent is not None
            self.directory = self.directory.parent
        self._trail.cut(level)

    def _purge_here(self) -> list[bytes]:
        """Purge one directory, but not those in it that the layer has brought too: their names."""
        here = self.directory
        if not here.has_lower:
            return []
        self.touch()
        kept = [name for name, child in here.children.items() if child.holds]
        stays = here.files.union(kept)
        while self._remove_some(stays):
            pass
        here.children = {name: here.children[name] for name in kept}
        here.forget_lower()
        return kept

    def _remove_some(self, stays: set[bytes]) -> bool:
        """Remove what is not in `stays`. Whether there may be more of it."""
        directories: list[bytes] = []
        fd = self.fd
        with os.scandir(fd) as found:
            for position, entry in enumerate(found):
                if position % _CHECK_EVERY == 0:
                    check()
                name = os.fsencode(entry.name)
                if name in stays:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(name, dir_fd=fd)
                    continue
                directories.append(name)
                if len(directories) == _BATCH:
                    break
        for name in directories:
            remove(name, fd, as_root=self._as_root)
        return len(directories) == _BATCH
