"""A tenant at work while others sweep and collect: the processes of `test_sweep_and_gc`.

    sweep_worker.py tenant ROOT NAME SEED SECONDS   three threads of a tenant, and a sweep that never rests, so long and
                                                    until a sweep and a collection have removed something
    sweep_worker.py gc ROOT                         collect without grace, until stdin ends

A tenant says at the end what it holds, as JSON: labels by the number of the blob. gc says how many blobs it removed.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.errors import AlreadyExists, NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant

THREADS = 3
BLOBS = 24
"""Few, so that everybody is at the same ones all the time. The blobs are the same for all tenants."""


@cache
def blob(number: int) -> bytes:
    return random.Random(number).randbytes(number * 997)


@cache
def digest_of(number: int) -> Digest:
    return Digest.of(blob(number))


def marker(root: Path, by: str) -> Path:
    """It is there when `by` has removed something."""
    return root.with_name(f"{root.name}-{by}")


class Worker:
    """One thread, which has every third blob of its tenant for itself: so it knows what has to be there."""

    def __init__(self, tenant: Tenant, numbers: range, chance: random.Random) -> None:
        self._tenant = tenant
        self._numbers = numbers
        self._chance = chance
        self.held: dict[int, str | None] = {}

    def work(self, enough: Callable[[], bool]) -> None:
        works: tuple[Callable[[int], None], ...] = (self.bring, self.ask, self.read, self.label, self.delete)
        while not enough():
            number = self._chance.choice(self._numbers)
            (kind,) = self._chance.choices(works, (5, 2, 5, 1, 5))
            kind(number)
            missing = {digest_of(held) for held in self.held} - {info.digest for info in self._tenant.walk()}
            assert not missing, f"{kind.__name__} {number}: {missing} is not listed"

    def bring(self, number: int) -> None:
        data, digest = blob(number), digest_of(number)
        announced = digest if self._chance.random() < 0.5 else None
        label = str(self._chance.random())
        try:
            with self._tenant.writer(f"ref {number}", total=len(data), expected=announced) as writer:
                writer.truncate(0)
                writer.write(data)
                writer.commit(len(data), digest, {"label": label})
        except AlreadyExists:
            # Held before, with the label of that time, or of another tenant: then it has none.
            self.held.setdefault(number, None)
        else:
            assert number not in self.held, f"{number} was held, and written again"
            self.held[number] = label
        self.read(number)

    def ask(self, number: int) -> None:
        try:
            info = self._tenant.info(digest_of(number))
        except NotFound:
            assert number not in self.held, f"{number} is lost"
            return
        assert info.size == len(blob(number))
        assert info.labels.get("label") == self.held.setdefault(number, None)

    def read(self, number: int) -> None:
        try:
            reader = self._tenant.reader_at(Descriptor("", digest_of(number), -1))
        except NotFound:
            assert number not in self.held, f"{number} is lost"
            return
        self.held.setdefault(number, None)
        with reader:
            if self._chance.random() < 0.2:
                self.delete(number)  # whoever has it open reads on
            assert reader.read_at(0, reader.size + 1) == blob(number)

    def label(self, number: int) -> None:
        if number in self.held:
            self.held[number] = label = str(self._chance.random())
            assert self._tenant.update(digest_of(number), {"label": label}).labels == {"label": label}

    def delete(self, number: int) -> None:
        try:
            self._tenant.delete(digest_of(number))
        except NotFound:
            assert number not in self.held, f"{number} is lost"
        else:
            del self.held[number]


def tenant(root: Path, name: str, seed: str, seconds: str) -> None:
    stop = threading.Event()
    with LocalStore(root) as store:
        references = References(store.metadata)
        sweeper = Sweeper(store, references)

        def sweep() -> int:
            removed = 0
            while not stop.is_set():
                removed += sweeper.sweep()
                if removed:
                    marker(root, "sweep").touch()
            return removed

        view = Tenant(name, store, references)
        workers = [
            Worker(view, range(first, BLOBS, THREADS), random.Random(f"{seed} {name} {first}"))
            for first in range(THREADS)
        ]
        print("ready", flush=True)
        sys.stdin.readline()
        until = time.monotonic() + float(seconds)

        def enough() -> bool:
            return time.monotonic() > until and all(marker(root, by).exists() for by in ("sweep", "gc"))

        with ThreadPoolExecutor(THREADS + 1) as pool:
            sweeping = pool.submit(sweep)
            try:
                for done in [pool.submit(worker.work, enough) for worker in workers]:
                    done.result()
            finally:
                stop.set()
            removed = sweeping.result()
    held = {number: label for worker in workers for number, label in worker.held.items()}
    print(json.dumps({"held": held, "removed": removed}), flush=True)


def gc(root: Path) -> None:
    waiting = threading.Thread(target=sys.stdin.read, daemon=True)
    removed = 0
    with LocalStore(root) as store:
        manager = CacheManager(store)
        waiting.start()
        print("ready", flush=True)
        while waiting.is_alive():
            removed += len(manager.collect(grace=0).blobs)
            if removed:
                marker(root, "gc").touch()
    print(json.dumps({"removed": removed}), flush=True)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "gc":
        gc(Path(where))
    else:
        tenant(Path(where), *rest)
