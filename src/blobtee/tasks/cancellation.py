"""Cancellation of blocking work.

A thread that waits in a socket cannot be interrupted, but what it waits on can be shut: `Cancellation.on_cancel`
registers exactly that. Everything else calls `check()` now and then, or waits through `sleep()`.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blobtee.errors import BlobteeError, Cancelled

_logger = logging.getLogger(__name__)


class Cancellation:
    """A switch that goes from live to cancelled once. A child is cancelled with its parent, never the reverse.

    Thread-safe. Callbacks run once, in the thread that cancels (at once when already cancelled), and must not block.
    One that raises is logged; the others run all the same.
    """

    def __init__(self, parent: Cancellation | None = None) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._reason: BlobteeError | None = None
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._next = 0
        self._leave_parent: Callable[[], None] | None = None
        if parent is not None:
            self._leave_parent = parent.on_cancel(lambda: self.cancel(parent.reason))

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    @property
    def reason(self) -> BlobteeError | None:
        return self._reason

    def cancel(self, reason: BlobteeError | str | None = None) -> None:
        """Cancel; a second call changes nothing. `reason` is what `check()` raises, or its text."""
        error = reason if isinstance(reason, BlobteeError) else Cancelled(reason or "cancelled")
        with self._lock:
            if self._event.is_set():
                return
            self._reason = error
            self._event.set()
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                # The others still wait to be woken.
                _logger.exception("a callback of a cancellation failed")

    def check(self) -> None:
        """Raise the reason when cancelled, else return."""
        if self._event.is_set():
            raise self._error()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait up to `seconds` (for ever when None) for the cancellation; True when it came."""
        return self._event.wait(seconds)

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Register `callback`; the returned function takes it back and may be called more than once."""
        with self._lock:
            if not self._event.is_set():
                key = self._next
                self._next += 1
                self._callbacks[key] = callback
                return lambda: self._forget(key)
        callback()
        return lambda: None

    def detach(self) -> None:
        """Leave the parent: it no longer cancels this one, nor keeps it alive."""
        if self._leave_parent is not None:
            self._leave_parent()

    def _forget(self, key: int) -> None:
        with self._lock:
            self._callbacks.pop(key, None)

    def _error(self) -> BlobteeError:
        # A fresh object for each raise: one exception raised in several threads would share a traceback.
        reason = self._reason
        if type(reason) is Cancelled:
            return Cancelled(str(reason))
        cancelled = Cancelled(f"cancelled: {reason}")
        cancelled.__cause__ = reason
        return cancelled


_current: contextvars.ContextVar[Cancellation | None] = contextvars.ContextVar("blobtee_cancellation", default=None)
_never = Cancellation()


def current() -> Cancellation:
    """The cancellation of the running work; one that nobody cancels outside any scope."""
    return _current.get() or _never


def check() -> None:
    """Raise `Cancelled` when the running work was cancelled."""
    current().check()


def sleep(seconds: float) -> None:
    """Sleep, or raise `Cancelled` as soon as the running work is cancelled."""
    cancellation = current()
    cancellation.wait(seconds)
    cancellation.check()


@contextmanager
def scope(cancellation: Cancellation | None = None) -> Iterator[Cancellation]:
    """Run the block under `cancellation`, or under a new child of the current one."""
    outer = _current.get()
    inner = cancellation if cancellation is not None else Cancellation(outer)
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)
        if cancellation is None:
            inner.detach()


@contextmanager
def shield() -> Iterator[Cancellation]:
    """Run the block where no outer cancellation reaches: for clean-up that must finish."""
    with scope(Cancellation()) as inner:
        yield inner
