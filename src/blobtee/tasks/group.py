"""Threads that live and die together."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar, cast

from blobtee.errors import Cancelled, ResourceExhausted
from blobtee.tasks.cancellation import Cancellation, current, scope

P = ParamSpec("P")
T = TypeVar("T")


class Task(Generic[T]):
    """One call in a thread of its own. `result()` may be called from any thread, any number of times."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the call; return what it returned, raise what it raised. `TimeoutError` after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError("task still running")
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def _run(self, call: Callable[[], T]) -> BaseException | None:
        try:
            self._value = call()
        except BaseException as error:
            self._error = error
        self._done.set()
        return self._error


class Group:
    """A block whose threads are all finished when it is left.

    The first error cancels the others and is the one raised when the block ends; an error in the block itself does
    the same. At most `limit` calls run at once; `spawn` waits for a place. Each call runs in a copy of the context of
    its `spawn`, under the group's cancellation.
    """

    def __init__(self, limit: int | None = None, *, name: str = "blobtee") -> None:
        if limit is not None and limit < 1:
            raise ValueError("a group needs room for one thread at least")
        self._places = threading.Semaphore(limit) if limit is not None else None
        self._name = name
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._ending: set[threading.Thread] = set()
        """Those whose calls are over; the system may take a moment longer for them."""
        self._first: BaseException | None = None
        self.cancellation = Cancellation(current())

    def spawn(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Start `function` in a thread. `Cancelled` when the group is cancelled before there is a place.

        `ResourceExhausted` when the system gives no thread; the group goes on without it.
        """
        if self._places is not None:
            while not self._places.acquire(timeout=0.1):
                self.cancellation.check()
        try:
            self.cancellation.check()
            return self._start(function, args, kwargs)
        except BaseException:
            if self._places is not None:
                self._places.release()
            raise

    def _start(self, function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]) -> Task[T]:
        task: Task[T] = Task()
        context = contextvars.copy_context()

        def call() -> T:
            with scope(self.cancellation):
                return function(*args, **kwargs)

        def body() -> None:
            error = task._run(lambda: context.run(call))
            if error is not None:
                self._fail(error)
            if self._places is not None:
                self._places.release()
            with self._lock:
                self._threads.discard(thread)
                self._ending.add(thread)

        thread = threading.Thread(
            target=body, name=f"{self._name}-{getattr(function, '__name__', 'task')}", daemon=True
        )
        with self._lock:
            self._ending = {each for each in self._ending if each.is_alive()}
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException as error:
            with self._lock:
                self._threads.discard(thread)
            if isinstance(error, RuntimeError):
                raise ResourceExhausted(f"no thread to be had: {error}") from error
            raise
        return task

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            # What a cancelled sibling says is an echo; the error that made us cancel is the one to tell.
            first = self._first is None and not (self.cancellation.cancelled and isinstance(error, Cancelled))
            if first:
                self._first = error
        if first:
            self.cancellation.cancel(str(error) or type(error).__name__)

    def join(self) -> None:
        """Wait for all threads. A KeyboardInterrupt while waiting cancels them, waits on, and is raised at the end."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                with self._lock:
                    self._ending = {each for each in self._ending if each.is_alive()}
                    thread = next(iter(self._threads | self._ending), None)
                if thread is None:
                    break
                thread.join(0.5)
            except KeyboardInterrupt as error:
                interrupt = error
                self.cancellation.cancel("interrupted")
        if interrupt is not None:
            raise interrupt

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancellation.cancel(str(error) or type(error).__name__)
        try:
            self.join()
        finally:
            self.cancellation.detach()
        if self._first is not None and (error is None or isinstance(error, Cancelled)):
            raise self._first
        if error is None:
            self.cancellation.check()
