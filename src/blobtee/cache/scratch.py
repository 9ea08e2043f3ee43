"""Directories for work under way, under the store's root: gone when the work ends, or at the next start."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blobtee.content.files import os_errors
from blobtee.errors import BlobteeError, StorageError

_logger = logging.getLogger(__name__)

_ATTEMPTS = 5


class Scratch:
    """Makes directories in `root`, or among the system's temporary ones when there is no root.

    Each is locked while it is used. The kernel gives the lock of a process back that ends, however it ends: so what
    nobody holds is stale.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """An empty directory for the block, for this user alone; removed with what is in it, also after a failure.

        What cannot be removed then is tried again at the next start.
        """
        with os_errors("make a directory for work under way"):
            holder, fd = self._make()
        try:
            tree = holder / "tree"
            with os_errors("make a directory for work under way"):
                tree.mkdir(mode=0o755)
            yield tree
        finally:
            try:
                remove(holder)
            except BlobteeError as error:
                _logger.warning("%s was left behind: %s", holder, error)
            finally:
                os.close(fd)
                self._remove_root()

    def drop_stale(self) -> None:
        """Remove what processes that are gone have left."""
        if self._root is None:
            return
        try:
            names = os.listdir(self._root)
        except OSError:
            return
        for name in names:
            holder = self._root / name
            with suppress(OSError, BlobteeError):
                fd = _locked(holder)
                if fd is not None:
                    try:
                        remove(holder)
                    finally:
                        os.close(fd)
        self._remove_root()

    def _make(self) -> tuple[Path, int]:
        if self._root is None:
            holder = Path(tempfile.mkdtemp(prefix="blobtee-"))
            return holder, os.open(holder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for _ in range(_ATTEMPTS):
            # Another process may take the empty root away, or the new directory for a stale one, before it is locked.
            with suppress(FileNotFoundError):
                self._root.mkdir(mode=0o700, exist_ok=True)
                holder = self._root / secrets.token_hex(8)
                holder.mkdir(mode=0o700)
                fd = _locked(holder)
                if fd is not None:
                    if holder.is_dir():
                        return holder, fd
                    os.close(fd)
        raise StorageError(f"cannot make a directory in {self._root}: somebody keeps removing it")

    def _remove_root(self) -> None:
        if self._root is not None:
            with suppress(OSError):  # others are still in it
                self._root.rmdir()


def _locked(holder: Path) -> int | None:
    """The directory, open and locked; None when somebody else holds it."""
    fd = os.open(holder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove(holder: Path) -> None:
    """Remove a directory and everything in it, whatever its depth and its permissions; links are not followed.

    What is in a subdirectory's own subdirectories is first moved up, so paths stay short and nothing recurses.
    """
    with os_errors(f"remove {holder}"):
        moved = 0
        while True:
            subdirectories = _empty(holder)
            if not subdirectories:
                break
            for subdirectory in subdirectories:
                for inner in _empty(subdirectory):
                    moved += 1
                    os.rename(inner, holder / f".{moved}.{secrets.token_hex(8)}")
                os.rmdir(subdirectory)
        os.rmdir(holder)


def _empty(directory: Path) -> list[Path]:
    """Remove the files of a directory; its subdirectories, which may be written and moved then."""
    subdirectories = []
    with os.scandir(directory) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                subdirectories.append(directory / entry.name)
            else:
                os.unlink(entry.path)
    for subdirectory in subdirectories:
        if stat.S_IMODE(os.lstat(subdirectory).st_mode) & 0o700 != 0o700:
            os.chmod(subdirectory, 0o700)
    return subdirectories
