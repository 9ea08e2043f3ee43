"""Folders of ingests that have ended, for those that begin.

Making the small files of an ingest and removing them again is most of what a small blob costs the kernel: ext4, for
one, looks at each inode that was freed in the last seconds before it takes another. So a folder whose `data` has gone
is given to the next ingest by a rename, and its files are written over. Until then it has the name of no ref, and is an
ingest that never began (`content.ingests`): nobody lists it, and what a killed process leaves goes at the next opening
of the store. That may be by another process meanwhile: what is not there any more is given to nobody.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

MOST = 64
AT_REST = 4
"""Folders that stay when nobody writes."""


class Spares:
    """Of one store in one process. Thread-safe: the list's own operations are."""

    def __init__(self) -> None:
        self._folders: list[tuple[Path, Mapping[str, bytes]]] = []
        # Names that no ref has: who looks at one later must not hold the lock of a ref that comes again.
        self._own = os.urandom(24).hex()
        self._numbers = itertools.count()

    def keep(self, folder: Path, files: Mapping[str, bytes]) -> bool:
        """Keep the folder, with nothing but `files` in it, for another ingest; False when it is not wanted. The caller
        holds its lock."""
        if len(self._folders) >= MOST:
            return False
        try:
            spare = folder.with_name(f"{self._own}{next(self._numbers):016x}")
            os.rename(folder, spare)
        except OSError:
            return False
        self._folders.append((spare, files))
        return True

    def give(self, name: Path) -> Mapping[str, bytes] | None:
        """Give one the name `name`, whose lock the caller holds: the files that are in it. None when there is none, or
        something else has the name."""
        while (spare := self._pop()) is not None:
            folder, files = spare
            try:
                # What a link leads to is not ours.
                if stat.S_ISDIR(os.lstat(folder).st_mode):
                    os.rename(folder, name)
                    return files
            except FileNotFoundError:
                continue
            except OSError:
                self._folders.append(spare)
                return None
        return None

    def clear(self, remove: Callable[[Path], object], *, but: int = 0) -> None:
        """Remove all by `remove`, `but` so many."""
        while len(self._folders) > but and (spare := self._pop()) is not None:
            with suppress(OSError):  # the next opening of the store finds it
                remove(spare[0])

    def _pop(self) -> tuple[Path, Mapping[str, bytes]] | None:
        try:
            return self._folders.pop()
        except IndexError:
            return None
