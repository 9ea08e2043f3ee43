"""Hashing a blob while it comes, in order, whatever the order that it comes in."""

from __future__ import annotations

import threading
from collections import deque

from blobtee import tasks
from blobtee.errors import InvalidArgument
from blobtee.oci import Digest
from blobtee.tee.digests import ChunkHasher
from blobtee.tee.engine import BUFFER
from blobtee.tee.map import CHUNK
from blobtee.tee.partial import Partial, lost

_SLOTS = 4


class Hasher:
    """Hashes what is here of `partial` from its beginning on, each byte once, and what proves each chunk beside.

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
        self._ended = False
        self.losses = partial.map.losses
        """What `Map.losses` was before anything was hashed."""
        self._hasher = ChunkHasher(partial.digest.algorithm)
        # What the queue ends at: handed over, if not hashed yet.
        self._promised = 0
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
                if self._stopped or len(buffer) != BUFFER:
                    return buffer
                self._queue.append((buffer, nbytes))
                self._promised += nbytes
                if self._spare:
                    return self._spare.pop()
                self._unmade -= 1
            finally:
                self._coming = None
                self._changed.notify_all()
        return bytearray(BUFFER)

    def woken(self) -> None:
        """Chunks have come, by somebody's doing."""
        with self._changed:
            self._changed.notify_all()

    def ended(self) -> None:
        """All chunks have come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Let `run` end as it is."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> None:
        """Hash until the end of the blob, or `stop`. `StorageError`: a chunk that had come is not here any more."""
        leave = tasks.current().on_cancel(self.woken)
        try:
            self._run()
        finally:
            leave()

    def _run(self) -> None:
        scratch = bytearray(BUFFER)
        while self._hasher.done < self._partial.size:
            with self._changed:
                while not self._queue and not self._stopped and not self._ready():
                    tasks.check()
                    if self._ended:
                        raise lost(self._partial.digest)
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

    def finish(self) -> tuple[Digest, bytes]:
        """The blob's digest, and what proves its chunks. After `run` has come to the end."""
        if self._hasher.done != self._partial.size:
            raise InvalidArgument("a blob that was not hashed to its end has no digest")
        if self._partial.map.losses != self.losses:
            self._hash_again()
        return self._hasher.digest(), self._hasher.packed()

    def _hash_again(self) -> None:
        """A chunk that was hashed has been lost, and came again, from who knows where: what counts is what is here."""
        partial = self._partial
        self.losses = partial.map.losses
        self._hasher = ChunkHasher(partial.digest.algorithm)
        buffer = memoryview(bytearray(BUFFER))
        while self._hasher.done < partial.size:
            if not (nbytes := self._ready()):
                raise lost(partial.digest)
            with buffer[:nbytes] as view:
                partial.readinto(self._hasher.done, view)
                self._hasher.update(view)

    def _ready(self) -> int:
        """Bytes behind what is hashed that are here and not about to be handed over, up to a piece."""
        if self._coming is not None:
            return 0
        first = self._hasher.done // CHUNK
        last = min(self._partial.chunks, first + BUFFER // CHUNK)
        end = self._partial.map.next_absent(first, last)
        if end == first or not self._partial.is_here(first, end):
            return 0
        return min(end * CHUNK, self._partial.size) - self._hasher.done

    def _add(self, data: memoryview) -> None:
        self._hasher.update(data)
        with self._changed:
            self._promised = max(self._promised, self._hasher.done)
