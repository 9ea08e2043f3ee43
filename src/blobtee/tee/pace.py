"""How fast a blob's sources are, and standing back for others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from blobtee import tasks
from blobtee.tee.turns import BACKGROUND, FILLING, READING, Turns

GAP_MIN, GAP_MAX = 64 << 10, 1 << 20
"""Bounds, in bytes, of what is rather fetched again than gone round by another request."""

_WEIGHT = 0.3
_LOOK = 0.005
"""Seconds between two looks at what other processes want. A piece may come in a fifth of that, and each look is three
calls of the kernel."""

_YIELD = 0.005
_LONGEST_YIELD = 2.0


class Pace:
    """What is known of speed, by what was seen; and who goes first (`turns`). Thread-safe."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._lock = threading.Lock()
        self._answer = 0.0
        self._rate = 0.0

    @property
    def gap(self) -> int:
        """Bytes that come in the time of a round trip, within the bounds."""
        return int(min(max(self._answer * self._rate, GAP_MIN), GAP_MAX))

    def answered(self, seconds: float) -> None:
        """From a request to the beginning of its answer."""
        with self._lock:
            self._answer += _WEIGHT * (seconds - self._answer) if self._answer else seconds

    def moved(self, nbytes: int, seconds: float) -> None:
        """A request brought so much in all."""
        rate = nbytes / max(seconds, 1e-6)
        with self._lock:
            self._rate += _WEIGHT * (rate - self._rate) if self._rate else rate

    def foreground(self) -> AbstractContextManager[None]:
        """Somebody waits for bytes, in this block: filling stands back."""
        return self._turns.waiting(READING)

    def throttle(self, hurried: Callable[[], bool]) -> Throttle:
        """For one fill; see `Throttle`."""
        return Throttle(self._turns, hurried)


class Throttle:
    """Called by who fills, after each piece: lets those go first who wait. Not for ever: a connection that stands still
    is closed by the other side. Work in the background lets more go first, and keeps to its bandwidth, unless it is
    `hurried`: somebody waits for it. For one thread.
    """

    def __init__(self, turns: Turns, hurried: Callable[[], bool]) -> None:
        self._turns = turns
        self._hurried = hurried
        self._look_at = 0.0

    def __call__(self, nbytes: int) -> None:
        background = tasks.background()
        here = self._turns.are_others_here(FILLING if background is None else BACKGROUND)
        if here or time.monotonic() >= self._look_at:
            self._stand_back()
            self._look_at = time.monotonic() + _LOOK
        if background is not None:
            background.pay(nbytes, self._hurried)

    def _stand_back(self) -> None:
        waited = 0.0
        while waited < _LONGEST_YIELD:
            place = FILLING if self._hurried() or tasks.background() is None else BACKGROUND
            if not self._turns.are_others(place):
                break
            tasks.sleep(_YIELD)
            waited += _YIELD
