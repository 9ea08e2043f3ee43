"""The entries of a tar that is on its way to somewhere else."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from blobtee.conversion.feed import Feed
from blobtee.errors import BlobteeError, Cancelled
from blobtee.layers import entries
from blobtee.seeking import ListWriter
from blobtee.seeking.spanindex import MAX_LISTED
from blobtee.tasks import Group

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_LOOK = 1 << 10
"""Entries between two looks at how long the list is."""


class Lister:
    """Reads the tar that is written to it, in a thread: the reader of tars pulls. For one writer at a time.

    What is no tar, or says what no list can hold, has no list; so have more files than `spanindex.MAX_LISTED` allows.
    That is no error. `write` and `finish` raise `Cancelled` when the work is.
    """

    def __init__(self) -> None:
        self._group = Group(name="blobtee-lister")
        self._feed = Feed(self._group.cancellation)
        self._list: ListWriter | None = None
        self._reads = True
        self._started = False
        self._closed = False

    def write(self, data: Buffer) -> None:
        """The tar goes on with `data`, which may be changed afterwards."""
        if not self._started:
            self._started = True
            self._group.spawn(self._read)
        if self._reads:
            self._feed.put(data)

    def finish(self) -> ListWriter | None:
        """The tar is whole: its list, if it has one."""
        if not self._started:
            return ListWriter()  # nothing at all is an empty tar
        self._feed.end()
        self._group.__exit__(None, None, None)
        return self._list

    def close(self) -> None:
        """End the thread. Harmless after `finish()`, and when called again."""
        if self._closed:
            return
        self._closed = True
        self._reads = False
        self._group.cancellation.cancel("the lister was closed")
        self._group.join()
        self._group.cancellation.detach()
        self._feed.leave()

    def _read(self) -> None:
        try:
            self._list = self._listed()
        except Cancelled:
            raise
        except BlobteeError:
            self._list = None
        self._reads = False
        self._feed.drain()

    def _listed(self) -> ListWriter | None:
        found = ListWriter()
        for number, entry in enumerate(entries(_Pulled(self._feed))):
            found.add(entry)
            if number % _LOOK == 0 and found.nbytes > MAX_LISTED:
                return None
        return found if found.nbytes <= MAX_LISTED else None


class _Pulled(io.RawIOBase):
    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self.skip = feed.skip

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        return self._feed.read(n)

    def readinto(self, buffer: Buffer) -> int:
        with memoryview(buffer) as view:
            data = self._feed.read(len(view))
            view[: len(data)] = data
        return len(data)
