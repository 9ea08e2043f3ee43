"""Reads of a blob whose source does everything wrong, held against what the blob really is."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from blobtee import tasks
from blobtee.content import LocalStore, Trust
from blobtee.errors import BlobteeError, Closed, ConnectionFailed, ProtocolViolation, TooManyRequests, Unauthenticated
from blobtee.tee import Tee, digests
from tests.unit.tee.support import Origin, OriginStream, chunks, desc_of, some_bytes

THREADS = 8
DATA = some_bytes(chunks(50) + 4321)
DESC = desc_of(DATA)


@dataclass
class Tally:
    """What became of the reads: how many each trust was served, failed with one of our errors, and were wrong."""

    reads: int = 0
    served: dict[Trust, int] = field(default_factory=lambda: dict.fromkeys(Trust, 0))
    failed: int = 0
    wrong: int = 0


class Hostile(Origin):
    """Breaks off, refuses, stalls a little, knows no ranges, and sends wrong bytes: each now and then."""

    def __init__(self, seed: int) -> None:
        super().__init__(DATA)
        self.draw = random.Random(seed)
        self.spoiled: set[int] = set()
        """Chunks of which wrong bytes may have been sent, since the last time that everything was thrown away."""

    def stream(self, start: int, end: int) -> OriginStream:
        with self._lock:
            chance = self.draw.random()
            whole = self.draw.random() < 0.05
            piece = self.draw.choice((1000, 65536, 70_000, 1 << 20))
            stops_at = start + self.draw.randrange(end - start) if chance < 0.2 else None
            lie = self.draw.randrange(len(DATA)) if self.draw.random() < 0.03 else None
        if 0.2 <= chance < 0.3:
            raise self.draw.choice((ConnectionFailed, TooManyRequests, Unauthenticated, ProtocolViolation))("no")
        stream = _HostileStream(self, 0 if whole else start, len(DATA) if whole else end)
        stream.piece, stream.stops_at, stream.lie = piece, stops_at, lie
        return stream


class _HostileStream(OriginStream):
    piece = 1 << 20
    stops_at: int | None = None
    lie: int | None = None

    def readinto(self, view: memoryview) -> int:
        if self.stops_at is not None and self.position >= self.stops_at:
            raise ConnectionFailed("broke off")
        end = min(self.end, self.position + min(self.piece, len(view)))
        if self.stops_at is not None:
            end = min(end, self.stops_at)
        part = bytearray(DATA[self.position : end])
        if self.lie is not None and self.position <= self.lie < end:
            part[self.lie - self.position] ^= 0x55
        view[: len(part)] = part
        self.position += len(part)
        return len(part)


def hammer(folder: Path, reads: int, *, kept: bool, seconds: float = 3000) -> Tally:
    """At least `reads` reads, of several threads, unless `seconds` are over.

    Readers of `BLOB` and the end of those of `STREAMED` are held against the truth; `RAW` readers, who may be lied to,
    fill the same files beside them. `kept`: digests of the chunks are there from an earlier time.
    """
    origin = Hostile(kept)
    tally = Tally()
    with LocalStore(folder) as store:
        if kept:
            tee = Tee(store)
            tee.fill(DESC, Origin(DATA).source)
            tee.close()
            store.delete(DESC.digest)
        deadline = time.monotonic() + seconds
        tee = Tee(store)
        lock = threading.Lock()

        def work(seed: int) -> None:
            draw = random.Random(seed)
            while tally.reads < reads and time.monotonic() < deadline:
                trust = draw.choice(list(Trust))
                try:
                    with tee.reader_at(DESC, origin.source, trust) as reader:
                        for _ in range(draw.randrange(1, 60)):
                            tally.reads += 1
                            at = draw.randrange(len(DATA))
                            n = draw.choice((1, 100, 4096, 4096, 4096, 70_000, 300_000))
                            got = reader.read_at(at, n)
                            at_end = trust is Trust.STREAMED and at + n >= len(DATA)
                            if len(got) != min(n, len(DATA) - at) or (
                                (trust in (Trust.BLOB, Trust.ATTESTED) or at_end) and got != DATA[at : at + n]
                            ):
                                tally.wrong += 1
                            tally.served[trust] += 1
                except BlobteeError as error:
                    if isinstance(error, Closed):
                        raise
                    tally.failed += 1
                if draw.random() < 0.02:
                    with lock:
                        # It is evicted, or its digests are lost: all begins anew.
                        with suppress(BlobteeError):
                            store.delete(DESC.digest)
                        if not kept and draw.random() < 0.7:
                            digests.forget(store.root, DESC.digest)

        with tasks.Group() as group:
            for number in range(THREADS):
                group.spawn(work, number)
        tee.close()
    return tally
