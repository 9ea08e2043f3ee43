"""A call that nobody waits for, or not all the time."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

from blobtee.errors import ResourceExhausted
from blobtee.tasks.cancellation import Cancellation, check, scope


class Detached:
    """`call` in a thread of its own, in a copy of the starter's context, but under a cancellation of its own."""

    def __init__(self, call: Callable[[], object], name: str) -> None:
        """`ResourceExhausted`: the system gives no thread."""
        self.error: BaseException | None = None
        """What the call raised, once it is done."""
        self._call = call
        self._done = threading.Event()
        self._cancellation = Cancellation()
        thread = threading.Thread(target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise ResourceExhausted(f"no thread to be had: {error}") from error

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop, and so is not what it was begun for."""
        return self._cancellation.cancelled

    def stop(self, reason: str) -> None:
        """Have it cancelled; it ends soon."""
        self._cancellation.cancel(reason)

    def wait(self) -> None:
        """Until it has ended, however that was. `Cancelled` when the one who waits is."""
        while not self._done.wait(0.05):
            check()

    def _run(self) -> None:
        try:
            with scope(self._cancellation):
                self._call()
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()
