"""Work that costs as much for many as for one, done by one thread for all that want it at once.

A COMMIT and the sync of a directory are such work. Who comes while nobody does it begins at once; who comes meanwhile
waits, and then one of those who wait does it for all of them. So nobody waits for company, and the more come, the less
each one costs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from blobtee.errors import Cancelled

T = TypeVar("T")


class Together(Generic[T]):
    """Thread-safe."""

    def __init__(self, work: Callable[[Sequence[T], Callable[[], None]], object]) -> None:
        """`work` is called in one of the threads at a time, with all items that came since it was called before, and
        with what lets it be called for the next ones before it is through. What becomes of each of them, it tells the
        item."""
        self._work = work
        self._lock = threading.Lock()
        self._coming: list[_Turn[T]] = []
        self._working = False

    def do(self, item: T) -> None:
        """Return when `work` was called with `item`, here or in another thread; the wait cannot be cancelled.

        What `work` raises leaves in the thread that called it; in the others it is `Cancelled`. An interrupt of a
        thread that waits takes its item back, or leaves when the work for it is over.
        """
        turn = _Turn(item)
        try:
            with self._lock:
                self._coming.append(turn)
                turn.leads = is_first = not self._working
                self._working = True
            if not is_first:
                turn.called.acquire()
            if turn.leads:
                self._lead(turn)
        except BaseException:
            self._leave(turn)
            raise
        if turn.failure is not None:
            raise Cancelled("the thread that worked for this one too was interrupted") from turn.failure

    def _lead(self, turn: _Turn[T]) -> None:
        try:
            with self._lock:
                turn.works_for, self._coming = self._coming, []
                for each in turn.works_for:
                    each.taken = True
            self._work([each.item for each in turn.works_for], lambda: self._pass_on(turn))
        except BaseException as error:
            turn.broken = error
            raise
        finally:
            self._end(turn)

    def _end(self, turn: _Turn[T]) -> None:
        """Its work is over, and nobody waits for it any more. Twice is as good as once: an interrupt may cut it off."""
        self._pass_on(turn)
        for each in turn.works_for:
            if not each.done:
                each.failure = turn.broken
                each.done = True
                each.called.release()
        turn.works_for = []

    def _pass_on(self, turn: _Turn[T]) -> None:
        """Have one of those who wait lead instead of `turn`, if that does."""
        with self._lock:
            if not turn.leads:
                return
            turn.leads = False
            if self._coming:
                self._coming[0].leads = True
                self._coming[0].called.release()
            else:
                self._working = False

    def _leave(self, turn: _Turn[T]) -> None:
        """Let no one wait for a thread that goes, and let it go only when nobody works for it any more."""
        while True:
            try:
                with self._lock:
                    if turn in self._coming:
                        self._coming.remove(turn)
                self._end(turn)
                while turn.taken and not turn.done:
                    turn.called.acquire()
                return
            except BaseException:  # one more interrupt changes nothing: it leaves with the first
                continue


class _Turn(Generic[T]):
    """One thread with its item. It `leads` when it is the one that works for all: for the turns that it `works_for`,
    until it is through with that, or `broken`."""

    __slots__ = ("broken", "called", "done", "failure", "item", "leads", "taken", "works_for")

    def __init__(self, item: T) -> None:
        self.item = item
        self.leads = False
        self.taken = False
        self.done = False
        self.failure: BaseException | None = None
        self.works_for: list[_Turn[T]] = []
        self.broken: BaseException | None = None
        self.called = threading.Lock()
        self.called.acquire()
