"""Decoding of streams that are made of parts which say how long they are: whole parts at a time, and in parallel.

Such are the layers that blobtee writes. Nothing is believed that a part says of itself: when it does not hold, or there
is no part to be seen, the format's ordinary decoder takes over from exactly there, and its verdict counts.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from blobtee.compression.feed import Feed
from blobtee.errors import CorruptData
from blobtee.tasks import Ordered, check

MAX_PART = 8 << 20
"""Larger parts, packed or not, are left to the ordinary decoder: they are in memory whole."""

_AHEAD = 1
_AHEAD_NBYTES = 24 << 20
"""How much may be in memory of parts that were not asked for yet, packed and unpacked."""


class Part(NamedTuple):
    packed: bytes | bytearray
    nbytes: int
    """How many bytes it says it holds: 0 <= nbytes <= MAX_PART."""

    @property
    def memory(self) -> int:
        return len(self.packed) + self.nbytes


class Stream(Protocol):
    """An ordinary decoder."""

    def readinto(self, view: memoryview) -> int:
        """Fills some of `view`, which is not empty; 0 only at the end."""


class Format(Protocol):
    """What is to be known of a format. `unpack` runs in any thread, several at a time."""

    def next_part(self, feed: Feed) -> Part | None:
        """Takes the next part off `feed`; None when there is none to be seen there, and then nothing is taken."""

    def unpack(self, packed: bytes | bytearray, out: memoryview) -> None:
        """Fills `out` exactly with what `packed` holds; `CorruptData` when that cannot be."""

    def stream(self, feed: Feed, parts: int) -> Stream:
        """The decoder for what `feed` still has, `parts` parts having come before."""


class _Unpacked(NamedTuple):
    buffer: memoryview | None
    """None: the part did not hold what it said, or there was no memory for it."""
    nbytes: int


class Parts:
    """The bytes that are packed in `feed`, with up to `threads` threads, the caller's among them.

    It reads ahead at most as many parts as were taken before, so that who wants the beginning pays for little more.
    """

    def __init__(self, form: Format, feed: Feed, threads: int) -> None:
        self._form = form
        self._feed = feed
        self._most = threads + _AHEAD if threads > 1 else 1
        self._ordered: Ordered[_Unpacked] = Ordered(threads, name="blobtee-decoder")
        self._parts: deque[Part] = deque()
        self._ahead_nbytes = 0
        self._free: list[memoryview] = []
        self._buffer: memoryview | None = None
        self._rest = memoryview(b"")
        self._taken = 0
        self._more = True
        self._stream: Stream | None = None

    def readinto(self, view: memoryview) -> int:
        """Fills some of `view`, which is not empty; 0 only at the end."""
        while not self._rest:
            check()
            if self._stream is not None:
                return self._stream.readinto(view)
            self._advance()
        n = min(len(view), len(self._rest))
        view[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def close(self) -> None:
        """End the threads."""
        self._ordered.close()

    def _advance(self) -> None:
        """Have the next part in `_rest`, or the stream that goes on instead."""
        if self._buffer is not None:
            self._free.append(self._buffer)
            self._buffer = None
        while self._more and self._may_put():
            self._put()
        if self._ordered:
            unpacked = self._ordered.take()
            if unpacked.buffer is not None:
                self._ahead_nbytes -= self._parts.popleft().memory
                self._taken += 1
                self._buffer, self._rest = unpacked.buffer, unpacked.buffer[: unpacked.nbytes]
                return
            self._feed.unread(b"".join(part.packed for part in self._parts))
        self.close()
        self._free.clear()
        self._parts.clear()
        self._stream = self._form.stream(self._feed, self._taken)

    def _may_put(self) -> bool:
        if not self._ordered:
            return True
        return len(self._ordered) < min(self._most, 1 + self._taken) and self._ahead_nbytes < _AHEAD_NBYTES

    def _put(self) -> None:
        part = self._form.next_part(self._feed)
        if part is None:
            self._more = False
            return
        buffer = self._free.pop() if self._free else None
        self._parts.append(part)
        self._ahead_nbytes += part.memory
        self._ordered.put(lambda: self._unpack(part, buffer))

    def _unpack(self, part: Part, buffer: memoryview | None) -> _Unpacked:
        try:
            if buffer is None or len(buffer) < part.nbytes:
                buffer = memoryview(bytearray(part.nbytes))
            self._form.unpack(part.packed, buffer[: part.nbytes])
        except (CorruptData, MemoryError):
            return _Unpacked(None, 0)
        return _Unpacked(buffer, part.nbytes)
