"""Calls side by side, their results in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from blobtee.errors import Closed, InvalidArgument, ResourceExhausted
from blobtee.tasks.cancellation import current, shield
from blobtee.tasks.group import Group

T = TypeVar("T")

MAX_THREADS = 8
"""More would wait for what feeds them, and each has pieces in memory."""


def usable_threads(threads: int | None) -> int:
    """`threads`, or for None as many as there are processors, up to `MAX_THREADS`. `InvalidArgument` below one."""
    if threads is None:
        return min(MAX_THREADS, len(os.sched_getaffinity(0)))
    if threads < 1:
        raise InvalidArgument(f"somebody has to do the work: one thread at least, not {threads}")
    return threads


class _Job(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call
        self.done = False
        self.value: T | None = None
        self.error: BaseException | None = None


class Ordered(Generic[T]):
    """Runs calls in up to `threads` threads and hands their results out in the order in which they were put.

    For pieces of work of some milliseconds that drop the GIL. Whoever takes a result is one of the threads: instead of
    waiting it does what nobody has begun. So one thread means none besides the caller's, few calls start no thread, and
    a system that has no more threads to give costs time, not an error.

    `put` and `take` are for one thread at a time; the calls must not use this object. How many calls wait is the
    caller's to bound, by taking. The calls get no context: they are work, not waiting.
    """

    def __init__(self, threads: int | None, *, name: str = "blobtee-ordered") -> None:
        threads = usable_threads(threads)
        with shield():  # who takes is cancelled, and then closes; the threads outlive a scope that this is made in
            self._group = Group(name=name)
        lock = threading.Lock()
        self._put = threading.Condition(lock)
        self._done = threading.Condition(lock)
        self._jobs: deque[_Job[T]] = deque()
        self._waiting: deque[_Job[T]] = deque()
        self._may_start = threads - 1
        self._idle = 0
        self._closed = False

    def __len__(self) -> int:
        """How many results are still to be taken."""
        return len(self._jobs)

    def put(self, call: Callable[[], T]) -> None:
        """Have `call` run soon. `Closed` after `close()`."""
        job = _Job(call)
        with self._put:
            if self._closed:
                raise Closed("no more calls: closed")
            self._jobs.append(job)
            self._waiting.append(job)
            # One that waits alone is for whoever takes, unless a thread is there anyway.
            starts = self._may_start > 0 and len(self._waiting) > max(1, self._idle)
            self._put.notify()
            if starts:
                self._may_start -= 1
        if starts:
            try:
                self._group.spawn(self._work)
            except ResourceExhausted:
                self._may_start = 0

    def take(self) -> T:
        """The oldest result, waited for; raises what its call raised, and `Cancelled` when the caller's work is.

        `IndexError` when there is none.
        """
        job = self._jobs[0]
        while not job.done:
            current().check()
            mine = self._next(job)
            if mine is not None:
                self._run(mine)
        self._jobs.popleft()
        if job.error is not None:
            raise job.error
        return cast(T, job.value)

    def close(self) -> None:
        """Forget what has not begun, and wait for what has. Nothing runs any more then. May be called again."""
        with self._put:
            self._closed = True
            self._waiting.clear()
            self._jobs.clear()
            self._put.notify_all()
        self._group.join()

    def _next(self, wanted: _Job[T]) -> _Job[T] | None:
        """A call to run meanwhile; None when `wanted` is done, or the caller was cancelled."""
        own = current()

        def wake() -> None:
            with self._done:
                self._done.notify_all()

        with self._put:
            if self._waiting:
                return self._waiting.popleft()
        forget = own.on_cancel(wake)
        try:
            with self._done:
                while not wanted.done and not own.cancelled:
                    self._done.wait()
        finally:
            forget()
        return None

    def _work(self) -> None:
        while True:
            with self._put:
                while not self._waiting:
                    if self._closed:
                        return
                    self._idle += 1
                    self._put.wait()
                    self._idle -= 1
                job = self._waiting.popleft()
            self._run(job)

    def _run(self, job: _Job[T]) -> None:
        try:
            job.value = job.call()
        except BaseException as error:
            job.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            with self._done:
                job.done = True
                self._done.notify_all()
