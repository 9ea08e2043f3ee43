"""Locks that hold between threads and between processes, and that die with their holder.

All locks of one store are places in one file (`kernellocks`): no lock file is ever left behind, or removed under
somebody who waits on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blobtee.content.kernellocks import ALONE, FREE, ask, place_of
from blobtee.errors import Closed

LOCK_FILE = ".blobtee.lock"

PATIENCE = 30.0
"""Seconds that closing waits for locks to be given back."""


class Locks:
    """The locks of one directory, by name. A lock is not re-entrant.

    One descriptor serves all threads of this object, so threads are kept apart here and processes by the kernel.
    After a fork the child must open its own.
    """

    def __init__(self, directory: Path) -> None:
        """Opens (creates) the lock file; raises the plain OSError when that is refused."""
        self._fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        # The kernel is asked outside of it: a call lets other threads run, and each of them would come to stand here.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._waiting = 0
        self._held: set[int] = set()
        self._closed = False

    def try_acquire(self, name: str) -> bool:
        """Take the lock called `name` if nobody holds it."""
        place = place_of(name)
        asks = False
        try:
            with self._mutex:
                self._check_open()
                if place in self._held:
                    return False
                asks = True  # first: an interrupt comes behind a call
                self._held.add(place)
            is_ours = self._ask(place, ALONE, wait=False)
        except BaseException:
            if asks:
                self.release(name)
            raise
        if not is_ours:
            self._let_go(place)
        return is_ours

    def release(self, name: str) -> None:
        """Give back a lock that this object holds; nothing happens when it does not."""
        place = place_of(name)
        if place in self._held:
            try:
                self._ask(place, FREE, wait=False)
            finally:
                self._let_go(place)

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold the lock called `name`, waiting for it. For work of milliseconds: the wait cannot be cancelled."""
        place = place_of(name)
        asks = False
        try:
            with self._mutex:
                self._check_open()
                if place in self._held:
                    self._wait(lambda: place not in self._held or self._closed)
                    self._check_open()
                asks = True
                self._held.add(place)
            self._ask(place, ALONE, wait=True)
            yield
        finally:
            if asks:
                self.release(name)

    def close(self) -> None:
        """Give out no more locks, wait until all are given back, and close. A second call does nothing.

        Who holds one is in the middle of something that another process must not see half done. After `PATIENCE`
        seconds it closes all the same: a lock may have been lost to an interrupt.
        """
        with self._mutex:
            self._closed = True
            self._changed.notify_all()
            self._wait(lambda: not self._held, PATIENCE)
            self._held.clear()
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the store is closed")

    def _let_go(self, place: int) -> None:
        with self._mutex:
            self._held.discard(place)
            if self._waiting:
                self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Until `condition` is true, for who has the mutex."""
        self._waiting += 1
        try:
            self._changed.wait_for(condition, seconds)
        finally:
            self._waiting -= 1

    def _ask(self, place: int, kind: int, *, wait: bool) -> bool:
        return ask(self._fd, kind, place, place + 1, "lock the store", wait=wait)
