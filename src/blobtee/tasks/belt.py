"""Slots that go round between two threads."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from blobtee.tasks.cancellation import Cancellation

T = TypeVar("T")


class Belt(Generic[T]):
    """Buffers between a thread that fills and one that empties them: at most `slots` of `nbytes` each exist.

    The filling thread does `take_empty`, `put_filled`, at last `end`; the other one `take_filled`, `put_empty`. What
    goes along with a filled slot is the caller's: `T` holds the slot itself. Waiting ends with the reason when
    `cancellation` is cancelled. `leave` unties the two; call it when all is over.
    """

    def __init__(self, cancellation: Cancellation, *, slots: int, nbytes: int) -> None:
        self._cancellation = cancellation
        self._changed = threading.Condition()
        self._unmade = slots
        self._nbytes = nbytes
        self._empty: list[bytearray] = []
        self._filled: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self.leave = cancellation.on_cancel(self._wake)

    def take_empty(self) -> bytearray:
        with self._changed:
            if not self._empty and self._unmade:
                self._unmade -= 1
                return bytearray(self._nbytes)
            while not self._empty:
                self._cancellation.check()
                self._changed.wait()
            return self._empty.pop()

    def put_empty(self, slot: bytearray) -> None:
        with self._changed:
            self._empty.append(slot)
            self._changed.notify_all()

    def put_filled(self, filled: T) -> None:
        with self._changed:
            self._filled.append(filled)
            self._changed.notify_all()

    def take_filled(self) -> T | None:
        """The next filled one; None at the end, or the error that came with it."""
        with self._changed:
            while not self._filled and not self._ended:
                self._cancellation.check()
                self._changed.wait()
            self._cancellation.check()
            if self._filled:
                return self._filled.popleft()
            if self._error is not None:
                raise self._error
            return None

    def end(self, error: BaseException | None) -> None:
        """Nothing comes after what was put; `error` is raised by `take_filled` behind the last of it."""
        with self._changed:
            self._ended = True
            self._error = error
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
