"""Trying again: what is worth it, and how long to wait."""

from __future__ import annotations

import random
import time

from blobtee import tasks
from blobtee.errors import BlobteeError
from blobtee.registry.settings import Settings

_MEANINGFUL = 64 << 10


class Transient(Exception):
    """Inside this room only: `error` is what to raise when there are no more tries.

    `after` is the server's wish in seconds. `first_contact` marks a host that never answered: a wrong name, most
    likely, for which nobody should have to wait.
    """

    def __init__(self, error: BlobteeError, *, after: float | None = None, first_contact: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after
        self.first_contact = first_contact


class Retry:
    """Decides on tries of one piece of work. Not thread-safe.

    With `patient`, time without progress counts (`Settings.patience`), otherwise the number of tries.
    """

    def __init__(self, settings: Settings, *, patient: bool = False) -> None:
        self._settings = settings
        self._patient = patient
        self._failures = 0
        self._moved = 0
        self._since: float | None = None

    def progress(self, nbytes: int) -> None:
        """Count bytes that arrived. A trickle does not count: a server must not hold us for a byte a minute."""
        self._moved += nbytes
        if self._moved >= _MEANINGFUL:
            self._moved = 0
            self._failures = 0
            self._since = None

    def wait(self, failure: Transient) -> None:
        """Sleep until the next try; raise `failure.error` when there is none, `Cancelled` when cancelled."""
        tasks.check()
        self._failures += 1
        if failure.first_contact:
            raise failure.error from failure.__cause__
        delay = min(4.0, 2.0 ** (self._failures - 1)) * self._settings.backoff * random.uniform(0.8, 1.2)
        if failure.after is not None:
            delay = failure.after
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        if waited + delay > self._settings.patience if self._patient else self._failures >= self._settings.attempts:
            raise failure.error from failure.__cause__
        tasks.sleep(delay)
