"""Folders of ingests that have ended, for those that begin.

Making the small files of an ingest and removing them again is most of what a small blob costs the kernel: ext4 without
a journal, for one, looks at each inode that was freed in the last minute before it takes another (Linux,
fs/ext4/ialloc.c, `recently_deleted`). So a folder whose `data` has gone is given to the next ingest by a rename, and
its files are written over. Until then it has the name of no ref, and is an ingest that never began (`content.ingests`):
nobody lists it, and what a killed process leaves goes at the next opening of the store. Until then a lock says whose
it is: who removed its files while it is given to an ingest would take that one's `ref`, if that is not written anew,
and so all that comes of it.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blobtee.content.locks import Locks
from blobtee.errors import BlobteeError

MOST = 256
_OWN_LENGTH = 48
AT_REST = 64
"""Folders that stay when nobody writes."""


class Spare(NamedTuple):
    """A folder and the files in it."""

    folder: str
    files: Mapping[str, bytes]


def lock_of(name: str) -> str:
    """The lock that somebody holds who has a folder of this name to spare."""
    return f"spares:{name[:_OWN_LENGTH]}"


class Spares:
    """Of one store in one process. Thread-safe: the list's own operations are."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._spares: list[Spare] = []
        # Names that no ref has: who looks at one later must not hold the lock of a ref that comes again.
        self._own = os.urandom(_OWN_LENGTH // 2).hex()
        self._numbers = itertools.count()
        self._is_claimed = False
        self._ended = threading.Event()

    def keep(self, folder: Path, files: Mapping[str, bytes]) -> bool:
        """Keep the folder, with nothing but `files` in it, for another ingest; False when it is not wanted. The caller
        holds its lock."""
        if len(self._spares) >= MOST:
            return False
        try:
            if not self._is_claimed and not self._claim():
                return False
            spare = f"{folder.parent}/{self._own}{next(self._numbers):016x}"
            os.rename(folder, spare)
        except (OSError, BlobteeError):
            return False
        self._spares.append(Spare(spare, files))
        return True

    def take(self) -> Spare | None:
        """One for an ingest that begins, and is nobody else's then; None when there is none."""
        try:
            return self._spares.pop()
        except IndexError:
            return None

    def put_back(self, spare: Spare) -> None:
        """It was not needed, or could not be had: whoever finds no other gets it. It does not come back when it has
        become an ingest, or somebody has put something in its place."""
        with suppress(OSError):
            if stat.S_ISDIR(os.lstat(spare.folder).st_mode):
                self._spares.insert(0, spare)

    def end(self, remove: Callable[[Path], object]) -> None:
        """Remove all by `remove`. Nobody keeps another after this."""
        self._ended.set()
        self.clear(remove)
        self._locks.release(lock_of(self._own))

    def _claim(self) -> bool:
        """False when another thread is just about it, or the store is being closed."""
        if self._ended.is_set() or not self._locks.try_acquire(lock_of(self._own)):
            return False
        self._is_claimed = True
        if self._ended.is_set():
            self._locks.release(lock_of(self._own))
        return not self._ended.is_set()

    def clear(self, remove: Callable[[Path], object], *, but: int = 0) -> None:
        """Remove all by `remove`, `but` so many."""
        while len(self._spares) > but and (spare := self.take()) is not None:
            with suppress(OSError):  # the next opening of the store finds it
                remove(Path(spare.folder))
