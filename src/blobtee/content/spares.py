"""Folders of ingests that have ended, for those that begin while others still write.

Making the small files of an ingest and removing them again is most of what a small blob costs the kernel: ext4, for
one, looks at each inode that was freed in the last seconds before it takes another. So a folder whose `data` has gone
is given to the next ingest by a rename, and its files are written over. Until then it has the name of no ref, and is an
ingest that never began (`content.ingests`): nobody lists it, and what a killed process leaves goes at the next opening
of the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from blobtee.content.locks import Locks

MOST = 64


class Spares:
    """Of one store in one process. Thread-safe: the list's own operations are."""

    def __init__(self, locks: Locks | None, is_busy: Callable[[], bool]) -> None:
        """`is_busy` says whether others write, so that who ends is not the last one."""
        self._locks = locks
        self._is_busy = is_busy
        self._folders: list[Path] = []

    def keep(self, folder: Path) -> bool:
        """Keep the folder, without `data`, for another ingest; False when it is not wanted. The caller holds its
        lock."""
        if self._locks is None or len(self._folders) >= MOST or not self._is_busy():
            return False
        # Under a name that no ref has: who looks at it later must not hold the lock of one that comes again.
        spare = folder.with_name(os.urandom(32).hex())
        try:
            os.rename(folder, spare)
        except OSError:
            return False
        self._folders.append(spare)
        return True

    def give(self, name: Path) -> bool:
        """Give one the name `name`, whose lock the caller holds; False when there is none."""

        def rename(folder: Path) -> bool:
            os.rename(folder, name)
            return True

        return self._with_one(rename)

    def clear(self, remove: Callable[[Path], object]) -> None:
        """Remove all by `remove`."""

        def one(folder: Path) -> bool:
            remove(folder)
            return False

        self._with_one(one)

    def _with_one(self, use: Callable[[Path], bool]) -> bool:
        """Use folders that are spare still, one after another, until `use` says that it is enough."""
        while self._locks is not None and self._folders:
            try:
                folder = self._folders.pop()
            except IndexError:  # another thread was quicker
                break
            # Another process may be removing it.
            lock = f"ingest:{folder.name}"
            if not self._locks.try_acquire(lock):
                continue
            try:
                is_folder = stat.S_ISDIR(os.lstat(folder).st_mode)  # what a link leads to is not ours
                if is_folder and not os.path.lexists(folder / "data") and use(folder):
                    return True
            except OSError:
                continue  # gone, or not to be had: the next opening of the store finds it
            finally:
                self._locks.release(lock)
        return False
