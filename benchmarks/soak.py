"""An hour of mixed load in ten minutes on blobtee serve: what it takes must not grow, and nothing read may be wrong.

    python -m benchmarks.soak [MINUTES]

Threads bring blobs, read them back (digests are compared), let go of them, list, give up writes and reads half-way, as
two tenants that share blobs. Every few seconds all of them do nothing for a while but ask again and again for what is
there, which the C core answers by itself as long as nobody commits. Another makes images of a registry known, reads
their layers by parts and whole, forgets some and collects; the limit on the store's size takes from it those that
nobody reads. The server is ended by SIGTERM and SIGKILL in turn. Its last lifetime is most of the time; of that the
last third of the samples is compared with the second (the first is warm-up). Exits with 1 when memory, descriptors,
threads or files have grown, a byte was wrong or lost, or something of all this did not happen at all.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.content.proxy import ProxyStore
from blobtee.errors import AlreadyExists, BlobteeError, ConnectionFailed, NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.client import pull_lazily
from blobtee.plugin.remembered import FILES
from blobtee.testing import ImageSource, MemoryRegistry, image
from tests.integration.daemons import Blobtee, running_blobtee, wait_for
from tests.integration.servers import free_port

LIFETIMES = (0.05, 0.05, 0.05, 0.85)
"""Parts of the time. What grows slowly shows in a long one."""

WORKERS = 8
CALM_EVERY, CALM_SECONDS = 8.0, 2.0
IMAGES = 32
LAYER_NBYTES = 2 << 20
LIMIT = 80_000_000
"""Bytes of the store: more than is alive of what was brought, less than that and all layers."""
LIVE = 200
"""Blobs that are there at once, about."""
LARGEST = 4 << 20
SAMPLE_SECONDS = 1.0
SLACK = {"MiB": 8.0, "descriptors": 8.0, "kept open": float(FILES), "threads": 8.0, "files": 60.0}
"""What is no growth, in units of each; and a tenth of what it was is none either. Up to `FILES` blobs are kept open, as
many as were asked for lately."""


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
    def taking(self, digest: Digest | None, *, back: bool = True, read: bool = False) -> Iterator[Digest | None]:
        """A block in which the blob is nobody else's; None when it is already, or there is none. It is live afterwards
        if `back`, and if the block did what it was to do, or was only to `read`."""
        with self.lock:
            if digest in self.in_hands:
                digest = None
            if digest is not None:
                self.in_hands.add(digest)
                life = self.live.pop(digest, None)
        done = False
        try:
            yield digest
            done = True
        finally:
            with self.lock:
                if digest is not None and (done or read) and back:
                    self.live[digest] = next(self.lives) if life is None else life
                self.in_hands -= {digest}

    def any(self, chance: random.Random) -> Digest | None:
        with self.lock:
            return chance.choice(list(self.live)) if self.live else None


@dataclass(frozen=True)
class Clients:
    """Of the two tenants; the second holds a blob for a moment only."""

    one: ProxyStore
    two: ProxyStore


def bring(clients: Clients, load: Load, chance: random.Random) -> None:
    data = chance.randbytes(int(LARGEST ** chance.random()))
    # The shortest ones come often: while another worker deletes one, nobody can say whether it is there.
    with load.taking(Digest.of(data)) as digest:
        if digest is None:
            return
        with suppress(AlreadyExists), clients.one.writer(f"ref {digest}", total=len(data)) as writer:
            for at in range(writer.status.offset, len(data), 1 << 20):
                writer.write(data[at : at + (1 << 20)])
            writer.commit(len(data), digest)


def read(clients: Clients, load: Load, chance: random.Random) -> None:
    with load.taking(load.any(chance), read=True) as digest:
        if digest is None:
            return
        with clients.one.reader_at(Descriptor("", digest, -1)) as reader:
            if chance.random() < 0.3:
                reader.read_at(chance.randrange(reader.size + 1), 32 << 10)
            elif Digest.of(reader.read_at(0, reader.size)) != digest:
                load.wrong.append(f"{digest} is not what it was")


def let_go(clients: Clients, load: Load, chance: random.Random) -> None:
    if len(load.live) > LIVE:
        with load.taking(load.any(chance), back=False) as digest:
            if digest is not None:
                clients.one.delete(digest)


def look(clients: Clients, load: Load, chance: random.Random) -> None:
    """Nothing that was brought before the list and not let go of may be missing from it."""
    with load.lock:
        before = set(load.live.items())
    listed = {info.digest for info in clients.one.walk()}
    with load.lock:
        lost = {digest for digest, _ in before & set(load.live.items())} - listed
    load.wrong += [f"{digest} is not listed" for digest in lost]


def give_up(clients: Clients, load: Load, chance: random.Random) -> None:
    ref = f"given up {chance.random()}"
    with clients.one.writer(ref) as writer:
        writer.write(chance.randbytes(100_000))
    clients.one.abort(ref)


def share(clients: Clients, load: Load, chance: random.Random) -> None:
    """The other tenant asks for a blob, has it, and lets go of it: it stays the first one's."""
    with load.taking(load.any(chance), read=True) as digest:
        if digest is None:
            return
        data = _all_of(clients.two, digest)
        if Digest.of(data) != digest:
            load.wrong.append(f"{digest} is not what it was, for the other tenant")
        with suppress(AlreadyExists), clients.two.writer(f"ref {digest}", expected=digest) as writer:
            writer.commit(0, digest)
        clients.two.update(digest, {"seen": str(chance.random())})
        clients.two.delete(digest)


def again(clients: Clients, load: Load, chance: random.Random) -> None:
    """As containerd does: what it is, and parts of it, a few times over."""
    with load.taking(load.any(chance), read=True) as digest:
        if digest is None:
            return
        data = _all_of(clients.one, digest)
        for _ in range(8):
            with clients.one.reader_at(Descriptor("", digest, -1)) as reader:
                at = chance.randrange(len(data) + 1)
                if reader.read_at(at, 32 << 10) != data[at : at + (32 << 10)]:
                    load.wrong.append(f"{digest} is not what it was, at {at}")


def _all_of(store: ProxyStore, digest: Digest) -> bytes:
    with store.reader_at(Descriptor("", digest, -1)) as reader:
        return reader.read_at(0, reader.size)


Work = Callable[[Clients, Load, random.Random], None]
WORKS: dict[Work, int] = {bring: 8, read: 10, let_go: 9, look: 1, give_up: 2, share: 2, again: 2}
CALM: dict[Work, int] = {again: 1}


def work(sockets: tuple[Path, Path], load: Load, seed: int, stop: threading.Event) -> None:
    chance = random.Random(seed)
    with ProxyStore(sockets[0], timeout=30) as one, ProxyStore(sockets[1], timeout=30) as two:
        while not stop.is_set():
            works = CALM if time.monotonic() % CALM_EVERY < CALM_SECONDS else WORKS
            (kind,) = chance.choices(list(works), list(works.values()))
            _do(load, kind.__name__, lambda kind=kind: kind(Clients(one, two), load, chance))  # type: ignore[misc]


def use_images(socket: Path, root: Path, images: dict[str, ImageSource], load: Load, stop: threading.Event) -> None:
    """One after another is made known, read and left alone until the next round, or forgotten."""
    chance = random.Random("images")
    with ProxyStore(socket, timeout=30) as store:
        for name in itertools.cycle(images):
            if stop.wait(max(0.0, CALM_SECONDS - time.monotonic() % CALM_EVERY)):  # it commits
                return
            _do(load, "image", lambda name=name: _use_image(socket, store, root, name, images[name], load, chance))  # type: ignore[misc]
            if stop.wait(5.0):
                return


def _use_image(
    socket: Path, store: ProxyStore, root: Path, name: str, source: ImageSource, load: Load, chance: random.Random
) -> None:
    pull_lazily(socket, name)
    for layer in source.layers:
        digest, size = layer.descriptor.digest, len(layer.data)
        with store.reader_at(layer.descriptor) as reader:
            for _ in range(4):
                at = chance.randrange(size)
                if reader.read_at(at, 64 << 10) != layer.data[at : at + (64 << 10)]:
                    load.wrong.append(f"layer {digest} of {name} is not what it was, at {at}")
            if chance.random() < 0.7 and reader.read_at(0, size) != layer.data:
                load.wrong.append(f"layer {digest} of {name} is not what it was")
    if chance.random() < 0.3:
        with LocalStore(root) as beside:  # as `blobtee rm` and `blobtee gc`, which are other processes
            beside.layout.remove(name)
            CacheManager(beside).collect(grace=60)
        for digest in (*source.documents, *source.blobs):
            with suppress(NotFound):
                store.delete(digest)


def _do(load: Load, name: str, what: Callable[[], None]) -> None:
    try:
        what()
        load.done[name] += 1
    except ConnectionFailed:  # it is being restarted
        load.done["not connected"] += 1
        time.sleep(0.05)
    except BlobteeError as error:
        load.wrong.append(f"{name}: {type(error).__name__}: {error}")
        time.sleep(0.05)


def sample(blobtee: Blobtee) -> dict[str, float]:
    assert blobtee.process is not None
    process = Path(f"/proc/{blobtee.process.pid}")
    pages = int((process / "statm").read_text().split()[1])
    opened = []
    for name in os.listdir(process / "fd"):
        with suppress(FileNotFoundError):
            opened.append(os.readlink(process / "fd" / name))
    kept = sum(path.startswith(f"{blobtee.root}/blobs/") for path in opened)
    return {
        "MiB": pages * os.sysconf("SC_PAGESIZE") / (1 << 20),
        "descriptors": float(len(opened) - kept),
        "kept open": float(kept),
        "threads": float(len(os.listdir(process / "task"))),
        "files": float(len(blobtee.blobs())),
    }


def samples(blobtee: Blobtee, seconds: float) -> list[dict[str, float]]:
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(SAMPLE_SECONDS)
        taken.append(sample(blobtee))
    return taken


def total(metrics: str, name: str) -> float:
    """The sum over all labels of a metric of Prometheus."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.M))


def soak(minutes: float) -> int:
    load, stop, failed = Load(), threading.Event(), list[str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        registry = stack.enter_context(MemoryRegistry())
        images = {}
        for number in range(IMAGES):
            layers = [{f"file {at}": random.Random(f"{number} {at}").randbytes(LAYER_NBYTES)} for at in range(2)]
            source = image(layers)
            images[source.push(registry, f"soak/{number}")] = source
        port = free_port()
        options = ("--metrics", f"127.0.0.1:{port}", "--max-size", str(LIMIT))
        blobtee = stack.enter_context(running_blobtee(folder, "one", "two", options=options))
        sockets = (blobtee.socket("one"), blobtee.socket("two"))
        with ThreadPoolExecutor(WORKERS + 1) as pool:
            workers = [pool.submit(work, sockets, load, seed, stop) for seed in range(WORKERS)]
            workers.append(pool.submit(use_images, sockets[0], blobtee.root, images, load, stop))
            try:
                for number, part in enumerate(LIFETIMES):
                    taken = samples(blobtee, minutes * 60 * part)
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                        metrics = answer.read().decode()
                    blobtee.end(signal.SIGKILL if number % 2 else signal.SIGTERM)
                    blobtee.start()
            finally:
                stop.set()
        for worker in workers:
            worker.result()
        third = len(taken) // 3
        for name in SLACK:
            before, after = (
                statistics.median(each[name] for each in taken[at : at + third]) for at in (third, len(taken) - third)
            )
            print(f"{name:12} {before:8.1f} then {after:8.1f}")
            if after > before * 1.1 + SLACK[name]:
                failed.append(f"{name} grew from {before:.1f} to {after:.1f}")
        counts = {name: total(metrics, f"blobtee_{name}_total") for name in ("rpcs", "fetched_bytes", "evictions")}
        print("last lifetime: " + ", ".join(f"{name} {count:.0f}" for name, count in counts.items()))
        print(", ".join(f"{name} {count}" for name, count in sorted(load.done.items())))
        failed += [f"no {name}" for name, count in counts.items() if not count and minutes >= 8]
        failed += [
            f"nothing was done of {kind}"
            for kind in ("image", *(each.__name__ for each in WORKS))
            if not load.done[kind]
        ]
        with LocalStore(blobtee.root) as beside:
            for name in images:
                with suppress(NotFound):
                    beside.layout.remove(name)
            CacheManager(beside).collect(grace=0)
        for socket in sockets:
            with ProxyStore(socket) as store:
                for digest in {info.digest for info in store.walk()}:
                    store.delete(digest)
                for status in store.statuses():
                    store.abort(status.ref)
        wait_for("all files go", lambda: not blobtee.blobs())
        traces = blobtee.log.count("Traceback")
    failed += [*load.wrong[:20], *([f"{traces} tracebacks in the log"] if traces else [])]
    for line in failed:
        print(f"FAILED: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0))
