"""How fast a blob's sources are, and who goes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from blobtee import tasks

GAP_MIN, GAP_MAX = 64 << 10, 1 << 20
"""Bounds, in bytes, of what is rather fetched again than gone round by another request."""

_WEIGHT = 0.3
_YIELD = 0.005
_LONGEST_YIELD = 2.0


class Pace:
    """What is known of speed, by what was seen; a limit of bandwidth; and the precedence of readers over filling.
    Thread-safe."""

    def __init__(self, limit: float | None = None) -> None:
        """`limit`: bytes a second for everything that goes through `throttle`, None for as fast as it goes."""
        self._lock = threading.Lock()
        self._limit = limit
        self._answer = 0.0
        self._rate = 0.0
        self._waiting = 0
        self._owed = time.monotonic()

    @property
    def gap(self) -> int:
        """Bytes that come in the time of a round trip, within the bounds."""
        return int(min(max(self._answer * self._rate, GAP_MIN), GAP_MAX))

    @property
    def rate(self) -> float:
        """Bytes a second that one connection brings; 0 when nothing was seen yet."""
        return self._rate

    def answered(self, seconds: float) -> None:
        """From a request to the beginning of its answer."""
        with self._lock:
            self._answer += _WEIGHT * (seconds - self._answer) if self._answer else seconds

    def moved(self, nbytes: int, seconds: float) -> None:
        """A request brought so much in all."""
        rate = nbytes / max(seconds, 1e-6)
        with self._lock:
            self._rate += _WEIGHT * (rate - self._rate) if self._rate else rate

    @contextmanager
    def foreground(self) -> Iterator[None]:
        """Somebody waits for bytes, in this block: filling stands back."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def throttle(self, nbytes: int) -> None:
        """Called by who fills, after each piece: let those go first who wait, and keep to the limit. Not for ever: a
        connection that stands still is closed by the other side."""
        waited = 0.0
        while self._waiting and waited < _LONGEST_YIELD:
            tasks.sleep(_YIELD)
            waited += _YIELD
        if self._limit is None:
            return
        with self._lock:
            self._owed = max(self._owed, time.monotonic() - 1) + nbytes / self._limit
            pause = self._owed - time.monotonic()
        if pause > 0:
            tasks.sleep(pause)
