"""Progress of long work: who measures does not know who shows.

Work opens a `meter()`; whoever wants to see it runs the work under `reporting(reporter)`.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

INTERVAL = 0.15
"""Seconds between two events of one meter, at most (`spec/remote.md` section 6)."""


@dataclass(frozen=True)
class Event:
    """How far one piece of work is. `current` and `total` are bytes (0 when unknown), the times Unix seconds.

    `completed` is set on the last event, and only when the work succeeded; `error` when it did not.
    """

    digest: str
    action: str
    current: int
    total: int
    started: float
    completed: float | None = None
    error: str | None = None

    @property
    def final(self) -> bool:
        return self.completed is not None or self.error is not None


class Reporter(Protocol):
    """Takes events, from any thread. Must be quick and must not raise."""

    def __call__(self, event: Event, /) -> None: ...


_reporter: contextvars.ContextVar[Reporter | None] = contextvars.ContextVar("blobtee_reporter", default=None)


@contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """Send the events of the block's work to `reporter`; None silences them."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def current_reporter() -> Reporter | None:
    return _reporter.get()


class Progress:
    """The counter of one `meter()`. Thread-safe."""

    def __init__(self, reporter: Reporter | None, digest: str, action: str, total: int) -> None:
        self._reporter = reporter
        self._digest = digest
        self._action = action
        self._total = total
        self._current = 0
        self._started = time.time()
        self._next = 0.0
        self._lock = threading.Lock()

    @property
    def current(self) -> int:
        return self._current

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more; an event goes out when the last one is `INTERVAL` old."""
        with self._lock:
            self._current += nbytes
            now = time.monotonic()
            due = now >= self._next
            if due:
                self._next = now + INTERVAL
        if due:
            self._send()

    def set(self, current: int) -> None:
        """Correct the counter to `current` bytes: after a resume, or when a part has to be moved again."""
        with self._lock:
            self._current = current

    def _send(self, completed: float | None = None, error: str | None = None) -> None:
        if self._reporter is not None:
            self._reporter(
                Event(self._digest, self._action, self._current, self._total, self._started, completed, error)
            )


@contextmanager
def meter(digest: str, action: str, total: int = 0) -> Iterator[Progress]:
    """Count the block's work on `digest`. First and last event always go out, the last with the real outcome."""
    progress = Progress(_reporter.get(), digest, action, total)
    progress._send()
    try:
        yield progress
    except BaseException as error:
        progress._send(error=str(error) or type(error).__name__)
        raise
    progress._send(completed=time.time())
