"""Reads of a blob whose source does everything wrong, held against what the blob really is."""

from __future__ import annotations

import random
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blobtee import tasks
from blobtee.content import LocalStore, Trust
from blobtee.errors import (
    BlobteeError,
    Closed,
    ConnectionFailed,
    NotFound,
    ProtocolViolation,
    TooManyRequests,
    Unauthenticated,
)
from blobtee.tee import Source, Tee, digests
from tests.unit.tee.support import Origin, OriginStream, chunks, desc_of, some_bytes

THREADS = 8
DATA = some_bytes(chunks(50) + 4321)
DESC = desc_of(DATA)


LIFE = 200
"""Reads after which nothing is here any more."""

READS_A_REQUEST = 50
"""For so many reads that are wished, there is at least one request: where one thread is let run so long that it brings
the blob before the others have begun, a thousand reads take three requests, and show nothing. Most runs have twice as
many anyway."""


@dataclass
class Tally:
    """What became of the reads: how many each trust was served, failed with one of our errors, and were wrong; and the
    requests that they took, many reads being of what is here. Thread-safe."""

    requests: int = 0
    served: dict[Trust, int] = field(default_factory=lambda: dict.fromkeys(Trust, 0))
    failed: int = 0
    wrong: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def reads(self) -> int:
        return sum(self.served.values()) + self.failed

    def count(self, trust: Trust, at: int, n: int, got: bytes) -> None:
        """What somebody was given who asked for `n` bytes at `at`."""
        to_the_end = trust is Trust.STREAMED and at + n >= len(DATA)
        proven = trust in (Trust.BLOB, Trust.ATTESTED) or to_the_end
        with self._lock:
            self.served[trust] += 1
            self.wrong += len(got) != min(n, len(DATA) - at) or (proven and got != DATA[at : at + n])

    def fail(self) -> None:
        with self._lock:
            self.failed += 1


class Hostile(Origin):
    """Breaks off, refuses, stalls a little, knows no ranges, and sends wrong bytes: each now and then."""

    def __init__(self, seed: int) -> None:
        super().__init__(DATA)
        self.asked = 0
        self.draw = random.Random(seed)

    def stream(self, start: int, end: int) -> OriginStream:
        with self._lock:
            self.asked += 1
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


class Faulty(Protocol):
    """Whoever has `DATA`, and does everything wrong."""

    asked: int

    def source(self) -> Source: ...


def hammer(folder: Path, reads: int, *, kept: bool, origin: Faulty | None = None, seconds: float = 3000) -> Tally:
    """At least `reads` reads, of several threads, and as many requests as they call for, unless `seconds` are over.

    Readers of `BLOB` and the end of those of `STREAMED` are held against the truth; `RAW` readers, who may be lied to,
    fill the same files beside them. After some hundred reads nothing is here any more: of what is, nobody is asked.
    `kept`: what proves the chunks is there from an earlier time.
    """
    origin = Hostile(kept) if origin is None else origin
    tally = Tally()
    deadline = time.monotonic() + seconds
    draw = random.Random(reads)
    with LocalStore(folder) as store:
        if kept:
            tee = Tee(store)
            tee.fill(DESC, Origin(DATA).source)
            tee.close()
        while (tally.reads < reads or origin.asked < reads // READS_A_REQUEST) and time.monotonic() < deadline:
            with suppress(NotFound):
                store.delete(DESC.digest)
            shutil.rmtree(store.root / "partial", ignore_errors=True)
            if not kept:
                digests.forget(store.root, DESC.digest)
            tee = Tee(store)
            until = tally.reads + LIFE
            with tasks.Group() as group:
                for _ in range(THREADS):
                    group.spawn(_life, store, tee, origin, tally, until, draw.random(), kept)
            tee.close()
    tally.requests = origin.asked
    return tally


def _life(store: LocalStore, tee: Tee, origin: Faulty, tally: Tally, until: int, seed: float, kept: bool) -> None:
    """One thread's part in it."""
    draw = random.Random(seed)
    while tally.reads < until:
        trust = draw.choice(list(Trust))
        try:
            with tee.reader_at(DESC, origin.source, trust) as reader:
                for _ in range(draw.randrange(1, 60)):
                    at = draw.randrange(len(DATA))
                    n = draw.choice((1, 100, 4096, 4096, 4096, 70_000, 300_000))
                    tally.count(trust, at, n, reader.read_at(at, n))
        except BlobteeError as error:
            if isinstance(error, Closed):
                raise
            tally.fail()
        if draw.random() < 0.05:
            # It is evicted, or its digests are lost: all begins anew.
            with suppress(BlobteeError):
                store.delete(DESC.digest)
            if not kept and draw.random() < 0.7:
                digests.forget(store.root, DESC.digest)
