"""Does anything that one can do with blobs that are read by parts, in no order, until it is killed or told to stop.

    tee_stress_worker.py ROOT SEED    a line on stdin, or its end, stops it

Exit status 0 when everything that it read was right, and every error one that this may come to.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from contextlib import suppress
from pathlib import Path

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, Trust
from blobtee.errors import DigestMismatch, LazyUnavailable, NotFound
from blobtee.tee import Tee, partial
from tests.unit.tee.support import Origin, chunks, desc_of, some_bytes

BLOBS = [some_bytes(nbytes, seed) for seed, nbytes in enumerate((chunks(20) + 99, chunks(3), chunks(40)))]
LIES = [data[: chunks(2)] + bytes(20) + data[chunks(2) + 20 :] for data in BLOBS]
"""What a bad source says, now and then: to `RAW` readers it may come."""

READS = 12


class Worker:
    def __init__(self, store: LocalStore, seed: int) -> None:
        self._store = store
        self._draw = random.Random(seed)

    def round(self) -> None:
        """A tee from its opening to its end, and some use of it."""
        tee = Tee(self._store)
        try:
            for _ in range(self._draw.randrange(1, 6)):
                self._use(tee, self._draw.randrange(len(BLOBS)))
        finally:
            tee.close()

    def _use(self, tee: Tee, number: int) -> None:
        lies = self._draw.random() < 0.1
        origin = Origin(LIES[number] if lies else BLOBS[number], piece=self._draw.choice((9_000, 65_536, 1 << 20)))
        with suppress(DigestMismatch, LazyUnavailable):
            chance = self._draw.random()
            if chance < 0.7:
                self._read(tee, origin, number, self._draw.choice(list(Trust)))
            elif chance < 0.85:
                tee.fill(desc_of(BLOBS[number]), origin.source)
            elif chance < 0.92:
                CacheManager(self._store).collect(grace=0)
            else:
                with suppress(NotFound):
                    self._store.delete(desc_of(BLOBS[number]).digest)

    def _read(self, tee: Tee, origin: Origin, number: int, trust: Trust) -> None:
        good, bad = BLOBS[number], LIES[number]
        with tee.reader_at(desc_of(good), origin.source, trust) as reader:
            for _ in range(self._draw.randrange(1, READS)):
                at = self._draw.randrange(len(good))
                got = reader.read_at(at, self._draw.choice((1, 5000, 70_000, len(good))))
                end = at + len(got)
                if got != good[at:end]:
                    proven = trust in (Trust.BLOB, Trust.ATTESTED) or (trust is Trust.STREAMED and end == len(good))
                    assert not proven, f"wrong bytes for {trust}"
                    for chunk in range(at - at % chunks(1), end, chunks(1)):
                        one = got[max(chunk - at, 0) : chunk + chunks(1) - at]
                        where = slice(max(chunk, at), max(chunk, at) + len(one))
                        assert one in (good[where], bad[where]), f"bytes of nobody for {trust}"


def main(root: Path, seed: int) -> None:
    partial.CHECKPOINT_NBYTES, partial.CHECKPOINT_PAUSE = chunks(5), 0
    stopped = threading.Event()

    def listen() -> None:
        sys.stdin.read(1)
        stopped.set()

    threading.Thread(target=listen, daemon=True).start()
    with LocalStore(root) as store:
        worker = Worker(store, seed)
        os.write(1, b"begun\n")
        while not stopped.is_set():
            worker.round()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
