"""An hour of mixed load in ten minutes on blobtee serve: what it takes must not grow, and nothing read may be wrong.

    python -m benchmarks.soak [MINUTES]

Threads bring blobs, read them back (digests are compared), let go of them, list, give up writes and reads half-way.
The server is ended in turn by SIGTERM and SIGKILL, four lifetimes in all. In each, the last third of the samples is
compared with the second (the first is warm-up: while blobs are deleted all the time, a sweep comes every ten seconds).
Exits with 1 when memory, descriptors, threads or files have grown, or a byte was wrong or lost.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from blobtee.content.proxy import ProxyStore
from blobtee.errors import AlreadyExists, BlobteeError, ConnectionFailed
from blobtee.oci import Descriptor, Digest
from tests.integration.daemons import Blobtee, running_blobtee, wait_for

LIFETIMES = 4
WORKERS = 8
LIVE = 200
"""Blobs that are there at once, about."""
LARGEST = 4 << 20
SAMPLE_SECONDS = 1.0
SLACK = {"MiB": 8.0, "descriptors": 8.0, "threads": 8.0, "files": 60.0}
"""What is no growth, in units of each; and a tenth of what it was is none either."""


@dataclass
class Load:
    """What the workers share: blobs that the server was told to keep, each with the number of its life, and what they
    have done."""

    live: dict[Digest, int] = field(default_factory=dict)
    lives: Iterator[int] = field(default_factory=itertools.count)
    in_hands: set[Digest] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def taking(self, digest: Digest | None, *, back: bool = True) -> Iterator[Digest | None]:
        """A block in which the blob is nobody else's; None when it is already, or there is none. It is live afterwards
        if `back`, and if the block did what it was to do."""
        with self.lock:
            if digest in self.in_hands:
                digest = None
            if digest is not None:
                self.in_hands.add(digest)
                life = self.live.pop(digest, None)
        try:
            yield digest
            if digest is not None and back:
                with self.lock:
                    self.live[digest] = next(self.lives) if life is None else life
        finally:
            with self.lock:
                self.in_hands -= {digest}

    def any(self, chance: random.Random) -> Digest | None:
        with self.lock:
            return chance.choice(list(self.live)) if self.live else None


def bring(store: ProxyStore, load: Load, chance: random.Random) -> None:
    data = chance.randbytes(int(LARGEST ** chance.random()))
    # The shortest ones come often: while another worker deletes one, nobody can say whether it is there.
    with load.taking(Digest.of(data)) as digest:
        if digest is None:
            return
        with suppress(AlreadyExists), store.writer(f"ref {digest}", total=len(data)) as writer:
            for at in range(writer.status.offset, len(data), 1 << 20):
                writer.write(data[at : at + (1 << 20)])
            writer.commit(len(data), digest)


def read(store: ProxyStore, load: Load, chance: random.Random) -> None:
    with load.taking(load.any(chance)) as digest:
        if digest is None:
            return
        with store.reader_at(Descriptor("", digest, -1)) as reader:
            if chance.random() < 0.3:
                reader.read_at(chance.randrange(reader.size + 1), 32 << 10)
            elif Digest.of(reader.read_at(0, reader.size)) != digest:
                load.wrong.append(f"{digest} is not what it was")


def let_go(store: ProxyStore, load: Load, chance: random.Random) -> None:
    if len(load.live) > LIVE:
        with load.taking(load.any(chance), back=False) as digest:
            if digest is not None:
                store.delete(digest)


def look(store: ProxyStore, load: Load, chance: random.Random) -> None:
    """Nothing that was brought before the list and not let go of may be missing from it."""
    with load.lock:
        before = set(load.live.items())
    listed = {info.digest for info in store.walk()}
    with load.lock:
        lost = {digest for digest, _ in before & set(load.live.items())} - listed
    load.wrong += [f"{digest} is not listed" for digest in lost]


def give_up(store: ProxyStore, load: Load, chance: random.Random) -> None:
    ref = f"given up {chance.random()}"
    with store.writer(ref) as writer:
        writer.write(chance.randbytes(100_000))
    store.abort(ref)


WORKS: tuple[tuple[Callable[[ProxyStore, Load, random.Random], None], int], ...] = (
    (bring, 8),
    (read, 12),
    (let_go, 9),
    (look, 1),
    (give_up, 2),
)


def work(socket: Path, load: Load, seed: int, stop: threading.Event) -> None:
    chance = random.Random(seed)
    with ProxyStore(socket, timeout=30) as store:
        while not stop.is_set():
            (kind,) = chance.choices([kind for kind, _ in WORKS], [weight for _, weight in WORKS])
            try:
                kind(store, load, chance)
                load.done[kind.__name__] += 1
            except ConnectionFailed:  # it is being restarted
                load.done["not connected"] += 1
                time.sleep(0.05)
            except BlobteeError as error:
                load.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                time.sleep(0.05)


def sample(blobtee: Blobtee) -> dict[str, float]:
    assert blobtee.process is not None
    process = Path(f"/proc/{blobtee.process.pid}")
    pages = int((process / "statm").read_text().split()[1])
    return {
        "MiB": pages * os.sysconf("SC_PAGESIZE") / (1 << 20),
        "descriptors": float(len(os.listdir(process / "fd"))),
        "threads": float(len(os.listdir(process / "task"))),
        "files": float(len(blobtee.blobs())),
    }


def lifetime(blobtee: Blobtee, seconds: float) -> dict[str, tuple[float, float]]:
    """The medians of the second and the last third."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(SAMPLE_SECONDS)
        samples.append(sample(blobtee))
    third = len(samples) // 3
    return {
        name: (
            statistics.median(each[name] for each in samples[third : 2 * third]),
            statistics.median(each[name] for each in samples[2 * third :]),
        )
        for name in SLACK
    }


def soak(minutes: float) -> int:
    load, stop = Load(), threading.Event()
    grown = []
    with tempfile.TemporaryDirectory() as folder, running_blobtee(Path(folder), "one") as blobtee:
        socket = blobtee.socket("one")
        with ThreadPoolExecutor(WORKERS) as pool:
            workers = [pool.submit(work, socket, load, seed, stop) for seed in range(WORKERS)]
            try:
                for number in range(LIFETIMES):
                    for name, (before, after) in lifetime(blobtee, minutes * 60 / LIFETIMES).items():
                        print(f"lifetime {number + 1}: {name:12} {before:8.1f} then {after:8.1f}", flush=True)
                        if after > before * 1.1 + SLACK[name]:
                            grown.append(f"{name} in lifetime {number + 1}: {before:.1f} to {after:.1f}")
                    blobtee.end(signal.SIGKILL if number % 2 else signal.SIGTERM)
                    blobtee.start()
            finally:
                stop.set()
        for worker in workers:
            worker.result()
        with ProxyStore(socket) as store:
            for digest in {info.digest for info in store.walk()}:
                store.delete(digest)
            for status in store.statuses():
                store.abort(status.ref)
        wait_for("all files go", lambda: not blobtee.blobs())
        traces = blobtee.log.count("Traceback")
    print(", ".join(f"{name} {count}" for name, count in sorted(load.done.items())))
    for line in [*grown, *load.wrong[:20], *([f"{traces} tracebacks in the log"] if traces else [])]:
        print(f"FAILED: {line}")
    return 1 if grown or load.wrong or traces else 0


if __name__ == "__main__":
    sys.exit(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0))
