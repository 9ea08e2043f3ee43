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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MOST = 64
AT_REST = 4
"""Folders that stay when nobody writes."""


class Spare(NamedTuple):
    """A folder and the files in it."""

    folder: str
    files: Mapping[str, bytes]


class Spares:
    """Of one store in one process. Thread-safe: the list's own operations are."""

    def __init__(self) -> None:
        self._spares: list[Spare] = []
        # Names that no ref has: who looks at one later must not hold the lock of a ref that comes again.
        self._own = os.urandom(24).hex()
        self._numbers = itertools.count()

    def keep(self, folder: Path, files: Mapping[str, bytes]) -> bool:
        """Keep the folder, with nothing but `files` in it, for another ingest; False when it is not wanted. The caller
        holds its lock."""
        if len(self._spares) >= MOST:
            return False
        try:
            spare = f"{folder.parent}/{self._own}{next(self._numbers):016x}"
            os.rename(folder, spare)
        except OSError:
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
        """It was not needed."""
        self._spares.append(spare)

    def clear(self, remove: Callable[[Path], object], *, but: int = 0) -> None:
        """Remove all by `remove`, `but` so many."""
        while len(self._spares) > but and (spare := self.take()) is not None:
            with suppress(OSError):  # the next opening of the store finds it
                remove(Path(spare.folder))
