"""Work in the background: it stands back for others, and takes no more of the line than it was given.

Who does such work runs it `in_background`; who moves bytes asks `background()` and pays for them. Nothing is paid for
bytes that somebody else waits for meanwhile: they count, and the rest waits longer.
"""

from __future__ import annotations

import contextvars
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blobtee.errors import InvalidArgument
from blobtee.tasks.cancellation import sleep

SLOWEST = 1000.0
"""Bytes a second below which servers take a connection for dead."""

_BURST = 1.0
_LOOK = 0.05
_PIECES = 8
_PIECE_MIN, _PIECE_MAX = 64 << 10, 1 << 20
_RATE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kKMGT]i?)?(?:(B|bit)?(?:/s)?|(bps))", re.ASCII)
_PREFIXES = {"k": 1, "m": 2, "g": 3, "t": 4}


class Allowance:
    """The allowance of some work, shared by all its threads."""

    def __init__(self, bandwidth: float | None = None) -> None:
        """`bandwidth`: bytes a second, None for what there is."""
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._owed = time.monotonic()

    @property
    def limited(self) -> bool:
        """Whether there is a bandwidth to keep to."""
        return self._bandwidth is not None

    @property
    def piece(self) -> int:
        """Bytes to move at most before the next `pay`."""
        if self._bandwidth is None:
            return _PIECE_MAX
        return int(min(max(self._bandwidth / _PIECES, _PIECE_MIN), _PIECE_MAX))

    def pay(self, nbytes: int, hurried: Callable[[], bool] = lambda: False) -> None:
        """Wait as long as `nbytes` take at the bandwidth, or until somebody is in a hurry for what comes next.

        `Cancelled` when the work is.
        """
        if self._bandwidth is None:
            return
        with self._lock:
            self._owed = until = max(self._owed, time.monotonic() - _BURST) + nbytes / self._bandwidth
        while (left := until - time.monotonic()) > 0 and not hurried():
            sleep(min(left, _LOOK))


_background: contextvars.ContextVar[Allowance | None] = contextvars.ContextVar("blobtee_background", default=None)


def background() -> Allowance | None:
    """What the running work is allowed; None when it is not in the background."""
    return _background.get()


@contextmanager
def in_background(bandwidth: float | str | None = None) -> Iterator[None]:
    """Do the block's work in the background, at `bandwidth` at most (see `bandwidth_of`; None for what there is)."""
    token = _background.set(Allowance(bandwidth_of(bandwidth)))
    try:
        yield
    finally:
        _background.reset(token)


def bandwidth_of(value: float | str | None) -> float | None:
    """Bytes a second: of a number, or of a text such as `5MB/s`, `500KiB/s` or `40Mbit/s`.

    k, M, G and T count in thousands, Ki, Mi, Gi and Ti in 1024s; B are bytes, which is also meant where no unit stands,
    and bit, or bps, are bits. `InvalidArgument` for anything else, and below `SLOWEST`.
    """
    if value is None:
        return None
    rate = _parsed(value) if isinstance(value, str) else value
    if isinstance(value, bool) or not math.isfinite(rate):
        raise InvalidArgument(f"{value!r:.40} is no bandwidth")
    if rate < SLOWEST:
        raise InvalidArgument(f"{value!s:.40} is too slow: a server would hang up; at least 1 kB/s")
    return float(rate)


def _parsed(text: str) -> float:
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text[:40]!r} is no bandwidth: write 5MB/s for bytes, 40Mbit/s for bits")
    number, prefix, unit, bps = match.groups()
    base = 1024 if prefix and prefix.endswith("i") else 1000
    power = _PREFIXES[prefix[0].lower()] if prefix else 0
    return float(number) * float(base) ** power / (8 if bps or unit == "bit" else 1)
