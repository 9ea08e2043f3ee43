"""The stream under a tar reader: exact reads and skips, with some of it read ahead and held."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from blobtee.errors import BlobteeError, Closed, CorruptData
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WINDOW = 1 << 18
"""Bytes that are held at most."""

_SKIP = 1 << 18
_UNREADABLE = (BlobteeError, OSError, EOFError, ValueError)


def drain(stream: BinaryIO | io.RawIOBase) -> None:
    """Read `stream` to its end. `CorruptData` when that fails; errors of ours pass through."""
    source = Source(stream)
    while source.read(_SKIP):
        check()


class Source:
    """Reads of a stream that counts where it is: `position` is bytes from where it was at first.

    A stream that has `skip(n)` passes over `n` bytes so, and returns how many there were, 0 only at its end; one of
    ours, it raises errors of ours. Others are read.

    `held` are the stream's bytes from `held_from` on; the position may be past their end, which is where the stream
    itself is then.
    """

    def __init__(self, stream: BinaryIO | io.RawIOBase) -> None:
        self._stream = stream
        self._readinto: Callable[[memoryview], int | None] | None = getattr(stream, "readinto", None)
        self._skip: Callable[[int], int] | None = getattr(stream, "skip", None)
        self._failure: BlobteeError | None = None
        self.position = 0
        self.held = b""
        self.held_from = 0

    def read(self, n: int) -> bytes:
        """`n` bytes, fewer only at the end of the stream."""
        at = self.position - self.held_from
        data = self.held[at : at + n]
        self.position += len(data)
        if len(data) == n:
            return data
        parts = [data]
        left = n - len(data)
        while left:
            part = self._some(left)
            if not part:
                break
            self.position += len(part)
            left -= len(part)
            parts.append(part)
        return b"".join(parts)

    def readinto(self, view: memoryview) -> int:
        """Some bytes; 0 only at the end of the stream, or when `view` is empty."""
        at = self.position - self.held_from
        n = max(min(len(self.held) - at, len(view)), 0)
        if n:
            view[:n] = memoryview(self.held)[at : at + n]
        elif len(view):
            n = self._some_into(view)
        self.position += n
        return n

    def fill(self) -> bool:
        """Hold more bytes from the position on; False when there are no more, or enough of them."""
        rest = self.held[max(self.position - self.held_from, 0) :]
        # Twice as many each time: a stream of tiny pieces is not looked through again for each of them.
        wanted = min(max(2 * len(rest), 1024), WINDOW)
        parts = [rest]
        total = len(rest)
        while total < wanted:
            try:
                part = self._some(WINDOW - total)
            except BlobteeError as error:
                # What came before it is still to be read.
                if total == 0:
                    raise
                self._failure = error
                break
            if not part:
                break
            parts.append(part)
            total += len(part)
        if len(parts) > 1 or total == 0:
            self.held = b"".join(parts)
            self.held_from = self.position
        return len(parts) > 1

    def skip_to(self, position: int, *, padded: int) -> None:
        """Read on to `position`; the last `padded` bytes of the way may be missing at the end of the stream."""
        held_to = self.held_from + len(self.held)
        self.position = max(self.position, min(position, held_to))
        while self.position < position:
            check()
            before = self.position
            if self._skip is None or self._failure is not None:
                self.read(min(position - before, _SKIP))
            else:
                # Nothing is held any more, so the stream itself is at the position.
                self.position += self._skip(position - before)
            if self.position == before:
                if position - before > padded:
                    raise CorruptData("the tar ends within a file")
                return

    def give_back(self) -> None:
        """Put the stream back to the position, if it can go back."""
        ahead = self.held_from + len(self.held) - self.position
        seekable = getattr(self._stream, "seekable", None)
        if ahead > 0 and seekable is not None and seekable():
            try:
                self._stream.seek(-ahead, io.SEEK_CUR)
            except _UNREADABLE as error:
                raise _translated(error) from error
            self.held, self.held_from = b"", self.position

    def _some(self, n: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            data = self._stream.read(n)
        except _UNREADABLE as error:
            raise _translated(error) from error
        if data is None:
            raise _no_blocking()
        return data

    def _some_into(self, view: memoryview) -> int:
        if self._readinto is None or self._failure is not None:
            data = self._some(len(view))
            view[: len(data)] = data
            return len(data)
        try:
            n = self._readinto(view)
        except _UNREADABLE as error:
            raise _translated(error) from error
        if n is None:
            raise _no_blocking()
        return n


class Data(io.RawIOBase):
    """The stored data of one entry, up to `end`, while `is_current` says so."""

    def __init__(self, source: Source, end: int, is_current: Callable[[], bool]) -> None:
        super().__init__()
        self._source = source
        self._end = end
        self._is_current = is_current

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed or not self._is_current():
            raise Closed("the tar has moved on to its next entry")
        with memoryview(buffer) as given, given.cast("B") as view:
            wanted = min(len(view), self._end - self._source.position)
            if wanted <= 0:
                return 0
            done = 0
            while done < wanted:
                with view[done:wanted] as rest:
                    n = self._source.readinto(rest)
                if not n:
                    raise CorruptData("the tar ends within a file")
                done += n
        return done


def _translated(error: Exception) -> BlobteeError:
    return error if isinstance(error, BlobteeError) else CorruptData(f"the tar cannot be read on: {error}")


def _no_blocking() -> CorruptData:
    return CorruptData("the tar comes from a stream that does not block")
