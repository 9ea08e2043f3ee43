"""How many requests run at once for one host (`spec/remote.md` section 6)."""

from __future__ import annotations

import threading
import time
from enum import Enum

from blobtee import tasks
from blobtee.registry.settings import Settings

_IDLE = 1.0
_COOL_DOWN = 60.0


class Kind(Enum):
    """What a request moves. Downloads and uploads are counted apart: an upload may wait for a download to feed it."""

    DOWNLOAD = "download"
    UPLOAD = "upload"
    DOCUMENT = "document"


class Place:
    """The right to run one request. `touch` before each piece of work, `release` at the end.

    A body that nobody reads keeps no place: after a second of rest it may be taken for somebody who waits, and
    `touch` then waits for another one. Otherwise four open files that are read in turn would block a fifth for ever.
    """

    def __init__(self, limits: Limits, kind: Kind) -> None:
        self._limits = limits
        self.kind = kind
        self.working = False
        self.used = time.monotonic()

    def touch(self) -> None:
        """Start a piece of work; `rest` ends it."""
        self._limits._resume(self)

    def rest(self) -> None:
        self.working = False
        self.used = time.monotonic()

    def release(self) -> None:
        """Give the place back. A second call does nothing."""
        self._limits._release(self)


class Limits:
    """The places of one host. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._full = {
            Kind.DOWNLOAD: settings.downloads,
            Kind.UPLOAD: settings.uploads,
            Kind.DOCUMENT: settings.documents,
        }
        self._changed = threading.Condition()
        self._held: set[Place] = set()
        self._halved_until = 0.0

    def acquire(self, kind: Kind) -> Place:
        """Wait for a place; `Cancelled` when the running work is cancelled meanwhile."""
        place = Place(self, kind)
        self._resume(place)
        return place

    def overloaded(self) -> None:
        """The host said that it has too much to do: half the places for a minute."""
        with self._changed:
            self._halved_until = time.monotonic() + _COOL_DOWN

    def _resume(self, place: Place) -> None:
        if place in self._held:
            place.working = True
            return
        cancellation = tasks.current()

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        forget = cancellation.on_cancel(wake)
        try:
            with self._changed:
                while not cancellation.cancelled and not self._free(place.kind):
                    self._changed.wait(_IDLE / 4)
                cancellation.check()
                place.working = True
                self._held.add(place)
        finally:
            forget()

    def _free(self, kind: Kind) -> bool:
        limit = self._full[kind]
        if time.monotonic() < self._halved_until:
            limit = max(1, limit // 2)
        held = [place for place in self._held if place.kind is kind]
        # Documents may also use what the downloads leave.
        if kind is Kind.DOCUMENT:
            downloads = sum(place.kind is Kind.DOWNLOAD for place in self._held)
            limit += max(0, self._full[Kind.DOWNLOAD] - downloads)
        if len(held) < limit:
            return True
        now = time.monotonic()
        for place in held:
            if not place.working and now - place.used > _IDLE:
                self._held.discard(place)
                return True
        return False

    def _release(self, place: Place) -> None:
        with self._changed:
            self._held.discard(place)
            self._changed.notify_all()
