"""Bytes that one thread pushes and another one pulls."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from blobtee.tasks import Cancellation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_ROOM = 4 << 20
_PIECE = 1 << 20


class Feed:
    """`put` waits while some megabytes are there that nobody has read; `read` waits while there is nothing.

    Waiting ends with the reason when `cancellation` is cancelled. `leave` unties the two; call it when all is over.
    """

    def __init__(self, cancellation: Cancellation) -> None:
        self._cancellation = cancellation
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._nbytes = 0
        self._ended = False
        self._current = memoryview(b"")
        self.leave = cancellation.on_cancel(self._wake)

    def put(self, data: Buffer) -> int:
        """Append all of `data`, which may change as soon as this returns. Its length."""
        if isinstance(data, bytes):
            self._append(data)
            return len(data)
        with memoryview(data).cast("B") as view:
            for start in range(0, len(view), _PIECE):
                self._append(bytes(view[start : start + _PIECE]))
            return len(view)

    def _append(self, piece: bytes) -> None:
        with self._changed:
            while self._nbytes >= _ROOM:
                self._cancellation.check()
                self._changed.wait()
            self._cancellation.check()
            if piece:
                self._pieces.append(piece)
                self._nbytes += len(piece)
                self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self, n: int) -> bytes:
        """Up to `n` bytes; none only at the end."""
        if not self._current:
            self._current = memoryview(self._next())
        data = bytes(self._current[:n])
        self._current = self._current[n:]
        return data

    def skip(self, n: int) -> int:
        """Pass over up to `n` bytes; how many there were, 0 only at the end."""
        if not self._current:
            self._current = memoryview(self._next())
        skipped = min(n, len(self._current))
        self._current = self._current[skipped:]
        return skipped

    def drain(self) -> None:
        """Read to the end, and forget."""
        self._current = memoryview(b"")
        while self._next():
            pass

    def _next(self) -> bytes:
        with self._changed:
            while not self._pieces and not self._ended:
                self._cancellation.check()
                self._changed.wait()
            self._cancellation.check()
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            self._nbytes -= len(piece)
            self._changed.notify_all()
            return piece

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
