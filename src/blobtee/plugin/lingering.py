"""Readers that stay open a while after their last use, for who opens the same thing again and again.

A client reads a blob by one call after another. Opening what is here of a lazy one anew for each would cost more than
the reading; and what is known of how it is read, so that more is asked for ahead and in the end the rest is brought,
belongs to the reader.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from blobtee.content.api import ReaderAt
from blobtee.errors import BlobteeError, Cancelled, Closed
from blobtee.oci import Digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_logger = logging.getLogger(__name__)


class _Open:
    def __init__(self, reader: ReaderAt) -> None:
        self.reader = reader
        self.users = 0
        self.idle_since = 0.0


class Lingering:
    """Readers by digest, shared by all who read at a time. They are thread-safe, and so is this."""

    def __init__(self, seconds: float) -> None:
        """`seconds` that a reader stays open without a user; 0: not at all, and each user has his own."""
        self._seconds = seconds
        self._changed = threading.Condition()
        self._open: dict[Digest, _Open] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def reader(self, digest: Digest, make: Callable[[], ReaderAt]) -> ReaderAt:
        """A reader of the blob: that which is open, or one that `make` makes, at once. Errors are those of `make`."""
        with self._changed:
            if not self._seconds or self._closed:
                return make()
            shared = self._open.get(digest)
            if shared is None:
                shared = self._open[digest] = _Open(make())
            shared.users += 1
            return _User(self, digest, shared)

    def close(self) -> None:
        """Close what nobody uses, and from now on each reader with its last user."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def give_back(self, digest: Digest, shared: _Open) -> None:
        """A user has closed."""
        with self._changed:
            shared.users -= 1
            shared.idle_since = time.monotonic()
            current = self._open.get(digest) is shared
            if current and not self._closed and self._thread is None:
                thread = threading.Thread(target=self._run, name="blobtee-linger", daemon=True)
                with suppress(RuntimeError):  # no more threads: nothing stays open then
                    thread.start()
                    self._thread = thread
            over = not shared.users and (self._closed or not current or self._thread is None)
            if over and current:
                del self._open[digest]
        if over:
            _close(shared.reader)

    def drop(self, digest: Digest, shared: _Open) -> None:
        """It has failed: who comes now begins anew."""
        with self._changed:
            if self._open.get(digest) is shared:
                del self._open[digest]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._seconds / 2)
                latest = time.monotonic() - (0 if self._closed else self._seconds)
                over = {
                    digest: shared
                    for digest, shared in self._open.items()
                    if not shared.users and shared.idle_since <= latest
                }
                for digest in over:
                    del self._open[digest]
                ending = self._closed
            for shared in over.values():
                _close(shared.reader)
            if ending:
                return


class _User(ReaderAt):
    """One user's hold on a reader."""

    def __init__(self, lingering: Lingering, digest: Digest, shared: _Open) -> None:
        self.size = shared.reader.size
        self._lingering = lingering
        self._digest = digest
        self._shared = shared
        self._closed = threading.Lock()

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        with self._reading() as reader:
            return reader.readinto_at(offset, buffer)

    def read_at(self, offset: int, n: int) -> bytes:
        with self._reading() as reader:
            return reader.read_at(offset, n)

    def close(self) -> None:
        if self._closed.acquire(blocking=False):
            self._lingering.give_back(self._digest, self._shared)

    @contextmanager
    def _reading(self) -> Iterator[ReaderAt]:
        if self._closed.locked():
            raise Closed("the reader is closed")
        try:
            yield self._shared.reader
        except Cancelled:  # of this user alone
            raise
        except BaseException:
            self._lingering.drop(self._digest, self._shared)
            raise


def _close(reader: ReaderAt) -> None:
    try:
        reader.close()
    except Exception as error:
        defect = None if isinstance(error, BlobteeError) else error
        _logger.warning("what came of a blob could not be settled: %s", error, exc_info=defect)
