"""Hashing a blob while it comes, in order, whatever the order that it comes in."""

from __future__ import annotations

import threading
from collections import deque

from blobtee import tasks
from blobtee.content.digester import Hash, digest_of, digester
from blobtee.core import Sha256, sha256_many, update_many
from blobtee.errors import InvalidArgument
from blobtee.oci import Digest
from blobtee.tee.digests import cut
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
        self._hash, self._done = _resumed(partial)
        self._settled: Frontier | None = None
        self._begun_at = self._done
        # What the queue ends at: handed over, if not hashed yet.
        self._promised = self._done
        self._coming: int | None = None
        self._digests: list[bytes] = []

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
        while self._done < self._partial.size:
            with self._changed:
                while not self._queue and not self._stopped and not self._ready():
                    tasks.check()
                    self._changed.wait()
                if self._stopped:
                    return
                handed = self._queue.popleft() if self._queue else None
                if handed is None:
                    nbytes = self._ready()
                    self._promised = self._done + nbytes
            if handed is not None:
                buffer, nbytes = handed
                self._add(memoryview(buffer)[:nbytes])
                with self._changed:
                    self._spare.append(buffer)
                    self._changed.notify_all()
            else:
                with memoryview(scratch)[:nbytes] as view:
                    self._partial.readinto(self._done, view)
                    self._add(view)

    def frontier(self) -> Frontier | None:
        """How far it is, for another to go on from; None where nobody could."""
        return self._settled

    def finish(self) -> tuple[Digest, bytes]:
        """The blob's digest, and those of its chunks, one behind the other. After `run` has come to the end."""
        if self._done != self._partial.size:
            raise InvalidArgument("a blob that was not hashed to its end has no digest")
        for start in range(0, self._begun_at, _PIECE):
            # What an earlier process hashed: its chunks still want their digests.
            view = memoryview(bytearray(min(_PIECE, self._begun_at - start)))
            self._partial.readinto(start, view)
            self._digests[start // CHUNK : start // CHUNK] = sha256_many(cut(view))
        return digest_of(self._partial.digest.algorithm, self._hash), b"".join(self._digests)

    def _ready(self) -> int:
        """Bytes from the frontier on that are here and not about to be handed over, up to a piece."""
        if self._coming is not None:
            return 0
        first = self._done // CHUNK
        last = min(self._partial.chunks, first + _PIECE // CHUNK)
        end = self._partial.map.next_absent(first, last)
        if end == first or not self._partial.is_here(first, end):
            return 0
        return min(end * CHUNK, self._partial.size) - self._done

    def _add(self, data: memoryview) -> None:
        chunks = cut(data)
        hashers = [Sha256() for _ in chunks]
        if isinstance(self._hash, Sha256):
            # Side by side on one core: the digests of the chunks come for next to nothing.
            update_many([(self._hash, data), *zip(hashers, chunks, strict=True)])
        else:
            self._hash.update(data)
            update_many(zip(hashers, chunks, strict=True))
        digests = [hasher.digest() for hasher in hashers]
        with self._changed:
            self._done += data.nbytes
            self._promised = max(self._promised, self._done)
            self._digests += digests
        if isinstance(self._hash, Sha256):
            self._settled = Frontier(self._done, self._hash.state())


def _resumed(partial: Partial) -> tuple[Hash, int]:
    frontier = partial.map.frontier
    if partial.digest.algorithm == "sha256" and frontier.offset and frontier.offset % CHUNK == 0:
        try:
            return Sha256.from_state(frontier.state), frontier.offset
        except InvalidArgument:
            pass
    return digester(partial.digest.algorithm), 0
