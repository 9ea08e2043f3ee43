"""From what writes to what reads, through bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

from blobtee.tasks import Group
from blobtee.tasks.belt import Belt

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer

Write = Callable[["Buffer"], object]

_SLOT = 1 << 18
_SLOTS = 4
_Filled = tuple[bytearray, int]


def pipe(produce: Callable[[Write], object], consume: Callable[[BinaryIO], object]) -> None:
    """Run `produce` in a thread; what it writes is what `consume` reads, as a file, here.

    An error of `produce` is raised by the reading that comes to its place, and by this, whatever was made of it; one of
    `consume` ends `produce`. What `consume` leaves unread is read to its end: errors may come there.
    """
    group = Group(name="blobtee-pipe")
    belt = Belt[_Filled](group.cancellation, slots=_SLOTS, nbytes=_SLOT)

    def run() -> None:
        error: BaseException | None = None
        try:
            sink = _Sink(belt)
            produce(sink.write)
            sink.flush()
        except BaseException as caught:
            error = caught
        belt.end(error)

    try:
        with group:
            group.spawn(run)
            with _Stream(belt) as stream:
                consume(cast(BinaryIO, stream))
                stream.drain()
    finally:
        belt.leave()


class _Sink:
    def __init__(self, belt: Belt[_Filled]) -> None:
        self._belt = belt
        self._slot: bytearray | None = None
        self._filled = 0

    def write(self, data: Buffer) -> int:
        with memoryview(data) as view, view.cast("B") as flat:
            at = 0
            while at < len(flat):
                if self._slot is None:
                    self._slot = self._belt.take_empty()
                n = min(len(self._slot) - self._filled, len(flat) - at)
                self._slot[self._filled : self._filled + n] = flat[at : at + n]
                self._filled += n
                at += n
                if self._filled == len(self._slot):
                    self.flush()
            return at

    def flush(self) -> None:
        if self._slot is not None:
            self._belt.put_filled((self._slot, self._filled))
            self._slot, self._filled = None, 0


class _Stream(io.RawIOBase):
    def __init__(self, belt: Belt[_Filled]) -> None:
        super().__init__()
        self._belt = belt
        self._current: _Filled | None = None
        self._at = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def drain(self) -> None:
        """Take what was not read; also after `close`, which some readers do when they have enough."""
        if self._current is not None:
            self._belt.put_empty(self._current[0])
            self._current = None
        while not self._ended and (filled := self._belt.take_filled()) is not None:
            self._belt.put_empty(filled[0])
        self._ended = True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._current is None and not self._ended:
            self._current, self._at = self._belt.take_filled(), 0
            self._ended = self._current is None
        if self._current is None:
            return 0
        slot, filled = self._current
        with memoryview(buffer) as view, view.cast("B") as flat:
            n = min(len(flat), filled - self._at)
            flat[:n] = memoryview(slot)[self._at : self._at + n]
        self._at += n
        if self._at == filled:
            self._belt.put_empty(slot)
            self._current = None
        return n
