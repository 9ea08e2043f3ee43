"""Making room, killed at each point, and beside others: the processes that `test_evict_processes` looks after.

evict_worker.py crash ROOTS                 in each copy of a store, ROOTS/k: die at the k-th change of disk or database
evict_worker.py WORK ROOT NAME SECONDS [WORK…]      do the work again and again, so long and until something has come of
                                                    each of the named works; how much goes to stdout as a number
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.oci import Compressed
from blobtee.plugin.known import KnownBlobs
from blobtee.plugin.limiting import Limiter
from blobtee.plugin.metrics import Metrics
from blobtee.registry import Registry
from blobtee.tee.map import CHUNK
from blobtee.testing import image, layer
from blobtee.transfer.evicting import shrink
from blobtee.transfer.obtaining import HASTY, Obtaining
from tests.integration.tenant_crash_worker import CALLS, die_at

SOURCE = image(
    [
        layer({"file": random.Random(nchunks).randbytes(nchunks * CHUNK)}, compression=Compressed.NONE)
        for nchunks in (30, 3)
    ]
)


def crash(roots: Path) -> None:
    for k in itertools.count(1):
        root = roots / str(k)
        shutil.copytree(roots / "before", root)
        child = os.fork()
        if child == 0:
            with LocalStore(root) as store:
                die_at(k, (*CALLS, "replace"))
                shrink(store, 0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            print(k)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"step {k} failed by itself: {status}"


def make_room(root: Path, name: str) -> int:
    with LocalStore(root) as store:
        return len(shrink(store, 0).blobs)


def keep_below(root: Path, name: str) -> int:
    """As a server with a limit does; of these limits there are several."""
    limit = random.choice([0, 1 << 20, 3 << 20])
    with LocalStore(root) as store, Registry(settings=HASTY) as registry:
        known = KnownBlobs(store)
        limiter = Limiter(store, limit, known, Metrics(), Obtaining(registry), spare=random.choice([0, 0.05]))
        went = 0
        for _ in range(5):
            shrunk = limiter.look()
            went += len(shrunk.blobs) if shrunk is not None else 0
            time.sleep(random.random() / 20)
    return went


def collect(root: Path, name: str) -> int:
    with LocalStore(root) as store:
        CacheManager(store).collect(grace=0)
    return 1


def read(root: Path, name: str) -> int:
    """From one of the layers, after the image was closed: nothing holds it then."""
    number = random.randrange(2)
    desc, data = SOURCE.layers[number].descriptor, SOURCE.layers[number].data
    with LocalStore(root) as store, Registry() as registry:
        with transfer.open_image(name, store, registry=registry) as opened:
            provider = opened.get_remote().provider
        with provider.reader_at(desc) as reader:
            for _ in range(5):
                at = random.randrange(desc.size - 100)
                assert reader.read_at(at, 100) == data[at : at + 100]
    return 1


def unlazy(root: Path, name: str) -> int:
    with LocalStore(root) as store, Registry() as registry:
        with transfer.open_image(name, store, registry=registry) as opened:
            remote = opened.get_remote()
        remote.unlazy()
    return 1


def pull(root: Path, name: str) -> int:
    with LocalStore(root) as store, Registry() as registry:
        transfer.pull(name, store, registry=registry).close()
    return 1


WORK = {each.__name__: each for each in (make_room, keep_below, collect, read, unlazy, pull)}


def main(work: str, root: str, name: str = "", seconds: str = "0", *works: str) -> None:
    if work == "crash":
        crash(Path(root))
        return
    done = 0
    deadline = time.monotonic() + float(seconds)
    come = [Path(f"{root}-{each}") for each in works]
    while time.monotonic() < deadline or not all(path.exists() for path in come):
        done += WORK[work](Path(root), name)
        if done and works:
            Path(f"{root}-{work}").touch()
        if work not in (make_room.__name__, keep_below.__name__):
            time.sleep(random.random() / 10)  # else there is hardly a moment in which nobody has the image open
    print(done)


if __name__ == "__main__":
    main(*sys.argv[1:])
