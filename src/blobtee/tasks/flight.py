"""One call for many callers.

The rules are those of `spec/remote.md` section 6: callers of one key share one call; each may give up alone; the call
is cancelled only when all have; and a caller whose means are its own (its session, its credentials) cannot spoil
the call for the others.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    LazyUnavailable,
    NeedsRemoteProvider,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from blobtee.tasks.cancellation import Cancellation, current, scope
from blobtee.tasks.progress import Event, Reporter, current_reporter, reporting

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

PERSONAL = (Cancelled, Closed, LazyUnavailable, NeedsRemoteProvider, PermissionDenied, Unauthenticated)
"""Failures that say something of the caller and nothing of the work: the next waiter tries with its own means."""


class _Waiter(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.reporter: Reporter | None = current_reporter()
        self.tried = False


class _Call(Generic[T]):
    """One running call. Guarded by `lock`; `changed` is notified when it ends or a waiter must look again.

    `before` is a call of the same key that everybody gave up and that may still be cleaning up.
    """

    def __init__(self, before: _Call[T] | None) -> None:
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.cancellation = Cancellation()
        self.before = before
        self.waiters: list[_Waiter[T]] = []
        self.events: dict[tuple[str, str], Event] = {}
        self.ended = False
        self.value: T | None = None
        self.error: BaseException | None = None

    def wait_for_end(self) -> None:
        with self.changed:
            while not self.ended:
                self.changed.wait()

    def report(self, event: Event) -> None:
        with self.lock:
            self.events[event.digest, event.action] = event
            reporters = [waiter.reporter for waiter in self.waiters if waiter.reporter is not None]
        for reporter in reporters:
            reporter(event)


class SingleFlight(Generic[K, T]):
    """Runs at most one call per key at a time and hands its outcome to everybody who asked meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[K, _Call[T]] = {}

    def do(self, key: K, function: Callable[[], T]) -> T:
        """Run `function`, or join the call that runs for `key` already; return or raise the call's outcome.

        The call runs in a thread of its own with the context of the caller that provides it, but under its own
        cancellation. A caller that is cancelled leaves with `Cancelled` at once. A caller that comes after the call
        failed or was given up starts a new one. When the provider of the call fails for a personal reason (see
        `PERSONAL`), the next waiter's `function` is run, in that waiter's context. Progress is told to all waiters;
        one that comes late first gets the latest event of each piece of work.
        """
        waiter = _Waiter(function)
        call = self._join(key, waiter)
        return self._wait(call, waiter)

    def _join(self, key: K, waiter: _Waiter[T]) -> _Call[T]:
        with self._lock:
            before = self._calls.get(key)
            if before is None or before.ended or before.cancellation.cancelled:
                call = _Call(before)
                call.waiters.append(waiter)
                try:
                    threading.Thread(target=self._fly, args=(key, call), name="blobtee-flight", daemon=True).start()
                except RuntimeError as error:
                    raise ResourceExhausted(f"no thread to be had: {error}") from error
                self._calls[key] = call
                return call
            call = before
            with call.lock:
                call.waiters.append(waiter)
                replay = list(call.events.values())
        if waiter.reporter is not None:
            for event in replay:
                waiter.reporter(event)
        return call

    def _fly(self, key: K, call: _Call[T]) -> None:
        if call.before is not None:
            call.before.wait_for_end()
            call.before = None
        while True:
            self._attempt(call)
            # Both locks: who joins is either seen here, and may take over, or finds the call ended.
            with self._lock, call.changed:
                if self._may_be_taken_over(call):
                    continue
                call.ended = True
                if self._calls.get(key) is call:
                    del self._calls[key]
                call.changed.notify_all()
                return

    @staticmethod
    def _may_be_taken_over(call: _Call[T]) -> bool:
        untried = any(not waiter.tried for waiter in call.waiters)
        return untried and isinstance(call.error, PERSONAL) and not call.cancellation.cancelled

    def _attempt(self, call: _Call[T]) -> None:
        """Run the call with the next waiter's means."""
        with call.lock:
            waiter = next((w for w in call.waiters if not w.tried), None)
            if waiter is None or call.cancellation.cancelled:
                call.error = call.error or Cancelled("nobody waits for this any more")
                return
            waiter.tried = True
        try:
            call.value = waiter.context.copy().run(self._under, call, waiter.function)
        except BaseException as error:
            call.error = error
        else:
            call.error = None

    @staticmethod
    def _under(call: _Call[T], function: Callable[[], T]) -> T:
        with scope(call.cancellation), reporting(call.report):
            return function()

    def _wait(self, call: _Call[T], waiter: _Waiter[T]) -> T:
        own = current()

        def wake() -> None:
            with call.changed:
                call.changed.notify_all()

        forget = own.on_cancel(wake)
        try:
            with call.changed:
                while not call.ended and not own.cancelled:
                    call.changed.wait()
                # As of now: when this one is the last to give up, the call ends on that account, perhaps at once.
                ended = call.ended
        finally:
            forget()
            self._leave(self._lock, call, waiter)
        if not ended:
            own.check()
        if call.error is not None:
            raise _copy(call.error)
        return cast(T, call.value)

    @staticmethod
    def _leave(lock: threading.Lock, call: _Call[T], waiter: _Waiter[T]) -> None:
        # Both locks: a newcomer must either be counted here or find the call cancelled and start its own.
        with lock:
            with call.lock:
                call.waiters.remove(waiter)
                abandoned = not call.waiters and not call.ended
            if abandoned:
                call.cancellation.cancel("everybody who waited gave up")


def _copy(error: BaseException) -> BaseException:
    """The same error for one more raiser: a shared exception object would collect the tracebacks of all threads."""
    if not isinstance(error, BlobteeError):
        return error
    twin = type(error).__new__(type(error))
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error
    return twin
