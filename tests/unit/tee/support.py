"""A source that counts what it is asked for, and fails on request."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from blobtee import tasks
from blobtee.oci import Descriptor, Digest
from blobtee.tee.map import CHUNK

Fault = Callable[[int, int], None]
"""Called with the start and end of what is asked for; raises what should go wrong."""


def some_bytes(nbytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def desc_of(data: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", Digest.of(data), len(data))


class Origin:
    """A blob somewhere else. `piece` bytes come at once; `ranges` False: only ever the whole of it."""

    def __init__(self, data: bytes, *, piece: int = 1 << 30, ranges: bool = True) -> None:
        self.data = data
        self.piece = piece
        self.ranges = ranges
        self.requests: list[tuple[int, int]] = []
        self.sent = 0
        self.rejected = 0
        self.others: list[Origin] = []
        self.fault: Fault = lambda start, end: None
        self.gate: threading.Event | None = None
        """When set up, nothing is sent before it is."""
        self.break_at: int | None = None
        """Offset that no stream gets past."""
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def source(self) -> Origin:
        return self

    def stream(self, start: int, end: int) -> OriginStream:
        assert 0 <= start < end <= len(self.data)
        with self._lock:
            self.requests.append((start, end))
        self.fault(start, end)
        return OriginStream(self, start, end) if self.ranges else OriginStream(self, 0, len(self.data))

    def reject(self) -> bool:
        self.rejected += 1
        if self.others:
            self.data = self.others.pop().data
            return True
        return False


class OriginStream:
    def __init__(self, origin: Origin, start: int, end: int) -> None:
        self.position = start
        self.end = end
        self.closed = threading.Event()
        self._origin = origin

    def readinto(self, view: memoryview) -> int:
        origin = self._origin
        gate = origin.gate
        while gate is not None and not gate.wait(0.005):
            tasks.check()
        end = min(self.end, self.position + origin.piece)
        if origin.break_at is not None and origin.error is not None:
            if self.position >= origin.break_at:
                raise origin.error
            end = min(end, origin.break_at)
        part = origin.data[self.position : min(end, self.position + view.nbytes)]
        view[: len(part)] = part
        self.position += len(part)
        with origin._lock:
            origin.sent += len(part)
        return len(part)

    def close(self) -> None:
        self.closed.set()


def chunks(nchunks: int) -> int:
    return nchunks * CHUNK
