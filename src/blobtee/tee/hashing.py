"""Hashing a blob while it comes, in order, whatever the order that it comes in."""

from __future__ import annotations

import threading
from collections import deque

from blobtee import tasks
from blobtee.errors import InvalidArgument
from blobtee.oci import Digest
from blobtee.tee.digests import ChunkHasher
from blobtee.tee.map import CHUNK, Frontier
from blobtee.tee.partial import Partial

_SLOTS = 4
_PIECE = 1 << 20


class Hasher:
    """Hashes what is here of `partial` from its frontier on, each byte once, and a digest for each chunk beside.

    `take` hands over what has just come, while it is in memory; what comes out of order is read again from the page
    cache when its turn is there. `run` is for one thread, `take` and `woken` for any.
    """

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._changed = threading.Condition()
        self._queue: deque[tuple[bytearray, int]] = deque()
        self._spare: list[bytearray] = []
        self._unmade = _SLOTS
        self._stopped = False
        self._hasher = ChunkHasher(partial.digest.algorithm, partial.map.frontier)
        self._settled: Frontier | None = None
        self._begun_at = self._hasher.done
        # What the queue ends at: handed over, if not hashed yet.
        self._promised = self._begun_at
        self._coming: int | None = None

    def coming(self, offset: int) -> None:
        """See `engine.Sink`: what is handed over is not read from the file meanwhile."""
        with self._changed:
            if offset == self._promised:
                self._coming = offset

    def take(self, offset: int, buffer: bytearray, nbytes: int) -> bytearray:
        """See `engine.Sink`. When that is what comes next, the buffer is kept and another is given for it."""
        with self._changed:
            if offset != self._coming:
                return buffer
            try:
                while not (self._spare or self._unmade or self._stopped):
                    self._changed.wait(0.1)
                    tasks.check()
                if self._stopped or len(buffer) != _PIECE:
                    return buffer
                self._queue.append((buffer, nbytes))
                self._promised += nbytes
                if self._spare:
                    return self._spare.pop()
                self._unmade -= 1
            finally:
                self._coming = None
                self._changed.notify_all()
        return bytearray(_PIECE)

    def woken(self) -> None:
        """Chunks have come, by somebody's doing."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Let `run` end as it is."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> None:
        """Hash until the end of the blob, or `stop`."""
        leave = tasks.current().on_cancel(self.woken)
        try:
            self._run()
        finally:
            leave()

    def _run(self) -> None:
        scratch = bytearray(_PIECE)
        while self._hasher.done < self._partial.size:
            with self._changed:
                while not self._queue and not self._stopped and not self._ready():
                    tasks.check()
                    self._changed.wait()
                if self._stopped:
                    return
                handed = self._queue.popleft() if self._queue else None
                if handed is None:
                    nbytes = self._ready()
                    self._promised = self._hasher.done + nbytes
            if handed is not None:
                buffer, nbytes = handed
                self._add(memoryview(buffer)[:nbytes])
                with self._changed:
                    self._spare.append(buffer)
                    self._changed.notify_all()
            else:
                with memoryview(scratch)[:nbytes] as view:
                    self._partial.readinto(self._hasher.done, view)
                    self._add(view)

    def frontier(self) -> Frontier | None:
        """How far it is, for another to go on from; None where nobody could."""
        return self._settled

    def finish(self) -> tuple[Digest, bytes]:
        """The blob's digest, and what proves its chunks. After `run` has come to the end."""
        if self._hasher.done != self._partial.size:
            raise InvalidArgument("a blob that was not hashed to its end has no digest")
        return self._hasher.digest(), self._before() + self._hasher.packed()

    def _before(self) -> bytes:
        """What proves the chunks that an earlier process hashed."""
        earlier = ChunkHasher(self._partial.digest.algorithm)
        buffer = memoryview(bytearray(min(_PIECE, self._begun_at)))
        while left := self._begun_at - earlier.done:
            with buffer[:left] as view:
                self._partial.readinto(earlier.done, view)
                earlier.update(view)
        return earlier.packed(ended=False)

    def _ready(self) -> int:
        """Bytes from the frontier on that are here and not about to be handed over, up to a piece."""
        if self._coming is not None:
            return 0
        first = self._hasher.done // CHUNK
        last = min(self._partial.chunks, first + _PIECE // CHUNK)
        end = self._partial.map.next_absent(first, last)
        if end == first or not self._partial.is_here(first, end):
            return 0
        return min(end * CHUNK, self._partial.size) - self._hasher.done

    def _add(self, data: memoryview) -> None:
        self._hasher.update(data)
        with self._changed:
            self._promised = max(self._promised, self._hasher.done)
        self._settled = self._hasher.frontier()
