"""Who fetches which chunks, between processes (`spec/tee.md` section 1, rule 3).

A claim is a range of places in the file `lock` (`content.kernellocks`), a place a chunk. Far behind them a few stand
for the whole blob.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blobtee import tasks
from blobtee.content.kernellocks import ALONE, FREE, SHARED, ask, first_held

_FAR = 1 << 48
LIFE, USE, CHECKPOINT, FILL, HURRY = range(_FAR, _FAR + 5)
"""Places of their own: making and removing the blob's files; having them open (shared); writing the map's header;
hashing and promoting; waiting for that (shared)."""

_WANTED = 2 * _FAR
"""From here on a place a chunk again: who waits for one that another process has claimed holds it (shared)."""

_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


class Claims:
    """The locks of one blob as one process has them. What the threads of the process do among themselves is theirs."""

    def __init__(self, path: Path) -> None:
        """Opens (creates) the file; raises the plain OSError when that is refused."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @property
    def inode(self) -> int:
        return os.fstat(self._fd).st_ino

    def take(self, first: int, last: int, *, shared: bool = False) -> bool:
        """Take the places [first, last) if no other process has any of them."""
        return self._ask(SHARED if shared else ALONE, first, last)

    def give(self, first: int, last: int) -> None:
        """Give places back; those that this process does not have are left alone."""
        self._ask(FREE, first, last)

    def free(self, first: int, last: int) -> int:
        """Where the first place in [first, last) is that another process has; `last` if there is none."""
        return first_held(self._fd, first, last, "look at the locks of a partial blob")

    @contextmanager
    def wanting(self, first: int, last: int) -> Iterator[None]:
        """Tell the other processes, for the block, that the chunks [first, last) are waited for."""
        self.take(_WANTED + first, _WANTED + last, shared=True)
        try:
            yield
        finally:
            self.give(_WANTED + first, _WANTED + last)

    def wanted(self, first: int, last: int) -> int:
        """A chunk in [first, last) that another process waits for; `last` if there is none."""
        return self.free(_WANTED + first, _WANTED + last) - _WANTED

    @contextmanager
    def holding(self, place: int, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Hold a place of the whole blob, waiting for other processes; the wait can be cancelled. `meanwhile` is
        called now and then while it lasts."""
        pause = _PAUSE
        while not self.take(place, place + 1):
            meanwhile()
            tasks.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            yield
        finally:
            self.give(place, place + 1)

    def close(self) -> None:
        """Give everything back. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _ask(self, kind: int, first: int, last: int) -> bool:
        return ask(self._fd, kind, first, last, "lock a partial blob")
