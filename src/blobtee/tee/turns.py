"""Who goes first among all blobs of a store, in all its processes.

Who waits for bytes that he reads comes first, then who waits for a whole blob, then work in the background. That
somebody waits is a shared lock on a place in the store's lock file: the others look, nobody has to be told, and the
kernel takes back what a killed process said.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blobtee.content.files import os_errors
from blobtee.content.kernellocks import place_of
from blobtee.content.locks import LOCK_FILE
from blobtee.tee.claims import Claims

READING, FILLING, BACKGROUND = range(3)
"""Whose turn is first."""

_PLACE = place_of("turns of the tee")


class Turns:
    """Of one store, in one process. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._path = root / LOCK_FILE
        self._lock = threading.Lock()
        self._waiting = [0] * BACKGROUND
        self._claims: Claims | None = None
        self._closed = False

    @contextmanager
    def waiting(self, turn: int) -> Iterator[None]:
        """Somebody waits, in this block: for bytes (READING) or for a whole blob (FILLING)."""
        place = _PLACE + turn
        with self._lock:
            # Counted behind what may fail: nobody would ever stop standing back for one that left with an error.
            if not self._waiting[turn] and (claims := self._opened()) is not None:
                claims.take(place, place + 1, shared=True)
            self._waiting[turn] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[turn] -= 1
                if not self._waiting[turn] and self._claims is not None:
                    self._claims.give(place, place + 1)

    def are_others_here(self, turn: int) -> bool:
        """Whether anybody's turn is before `turn` in this process. Asks no kernel."""
        return any(self._waiting[:turn])

    def are_others(self, turn: int) -> bool:
        """Whether anybody's turn is before `turn`, here or in another process."""
        if self.are_others_here(turn):
            return True
        with self._lock:
            claims = self._opened()
            return claims is not None and claims.free(_PLACE, _PLACE + turn) < _PLACE + turn

    def close(self) -> None:
        """From now on nobody is told, or seen."""
        with self._lock:
            self._closed = True
            if self._claims is not None:
                self._claims.close()
                self._claims = None

    def _opened(self) -> Claims | None:
        if self._claims is None and not self._closed:
            with os_errors("open the store's locks"):
                self._claims = Claims(self._path)
        return self._claims
