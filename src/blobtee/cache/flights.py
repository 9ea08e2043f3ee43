"""Work that callers of one store share, and work that has to take turns."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blobtee.compression import Type
from blobtee.oci import Descriptor, Digest
from blobtee.tasks import SingleFlight, current

if TYPE_CHECKING:
    from blobtee.cache.manager import MetadataStore

CreationKey = tuple[str, Type, int | None, int | None]
"""Ref, type, level, epoch: callers with other wishes must not share an error that is due to theirs."""

ConversionKey = tuple[Digest, Type, int | None]


class Turns:
    """One at a time for each key. Waiting ends with `Cancelled` when the waiter's work is cancelled."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[Hashable] = set()

    @contextmanager
    def of(self, key: Hashable) -> Iterator[None]:
        own = current()
        forget = own.on_cancel(self._wake)
        try:
            with self._changed:
                own.check()
                while key in self._taken:
                    self._changed.wait()
                    own.check()
                self._taken.add(key)
        finally:
            forget()
        try:
            yield
        finally:
            with self._changed:
                self._taken.discard(key)
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Flights:
    """The flights of one store. Those of `unlazy` and `convert` give the id of the ref whose caller did the work."""

    def __init__(self) -> None:
        self.unlazy: SingleFlight[Digest, str] = SingleFlight()
        self.create: SingleFlight[CreationKey, None] = SingleFlight()
        self.convert: SingleFlight[ConversionKey, tuple[str, Descriptor]] = SingleFlight()
        self.turns = Turns()


_flights: weakref.WeakKeyDictionary[MetadataStore, Flights] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def flights(store: MetadataStore) -> Flights:
    """The flights of a store: all managers over one store object share them."""
    with _lock:
        return _flights.setdefault(store, Flights())
