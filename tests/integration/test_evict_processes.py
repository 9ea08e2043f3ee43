"""Making room is killed at every change of disk and database, and done beside everything else that works on a store:
nothing is lost, and what went comes again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.registry import Registry
from blobtee.tee import digests
from blobtee.tee.map import CHUNK
from blobtee.testing import Answer, MemoryRegistry, Request
from blobtee.transfer.evicting import shrink, usage
from blobtee.transfer.obtaining import HASTY, Obtaining
from tests.integration.evict_worker import SOURCE, WORK

REPOSITORY = Path(__file__).parents[2]
LAYERS = {each.descriptor.digest: each for each in SOURCE.layers}


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.integration.evict_worker", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> int:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return int(out)


def read(store: LocalStore, name: str, registry: Registry, server: MemoryRegistry) -> None:
    """Each layer is here, or can be read by parts."""
    with transfer.open_image(name, store, registry=registry) as image:
        provider = image.get_remote().provider
        for digest, layer in LAYERS.items():
            server.reset()
            with provider.reader_at(layer.descriptor) as reader:
                assert reader.read_at(CHUNK, 100) == layer.data[CHUNK : CHUNK + 100]
            if layer.descriptor.size > 1 << 20:
                assert server.counters.sent["blob"] <= 2 * CHUNK, f"{digest} came whole"


def check_whole(name: str, store: LocalStore, registry: Registry) -> None:
    """What is here is right, and what is not comes, for the same bytes."""
    assert transfer.verify(store).good
    transfer.pull(name, store, registry=registry).close()
    for digest, layer in LAYERS.items():
        with store.reader_at(layer.descriptor) as reader:
            assert reader.read_at(0, layer.descriptor.size) == layer.data, digest


def test_a_kill_at_any_change_loses_nothing(server: MemoryRegistry, tmp_path: Path) -> None:
    name = SOURCE.push(server, "team/app")
    with Registry() as registry:
        with LocalStore(tmp_path / "before") as store:
            transfer.pull(name, store, registry=registry).close()
            labels = {digest: store.info(digest).labels for digest in LAYERS}
            for digest in LAYERS:  # so that hashing is part of it
                digests.forget(store.root, digest)
        steps = told(start("crash", str(tmp_path)))
        assert steps > 15, "making room changes less than it did"
        for k in range(1, steps + 1):
            with LocalStore(tmp_path / str(k)) as store:
                assert store.problems == ()
                gone = LAYERS.keys() - {info.digest for info in store.walk()}
                assert transfer.verify(store).good, f"step {k}"
                CacheManager(store).collect(grace=0)
                for digest in LAYERS.keys() - gone:
                    assert store.info(digest).labels == labels[digest], f"step {k}"
                read(store, name, registry, server)
                with transfer.open_image(name, store, registry=registry) as image:
                    image.get_remote().unlazy()
                assert {digest: store.info(digest).labels for digest in LAYERS} == labels, f"step {k}"
                assert transfer.verify(store).good, f"step {k}"
                assert shrink(store, 0).blobs.keys() == LAYERS.keys(), f"step {k}"
                read(store, name, registry, server)


def test_beside_collecting_reading_filling_and_pulling_by_other_processes(
    server: MemoryRegistry, tmp_path: Path
) -> None:
    name = SOURCE.push(server, "team/app")
    root = tmp_path / "store"
    with LocalStore(root) as store, Registry() as registry:
        transfer.pull(name, store, registry=registry).close()
    works = ["make_room", "read", *WORK.keys() - {"keep_below"}]
    processes = [start(work, str(root), name, "6", *works) for work in works]
    done: Counter[str] = Counter()
    for work, process in zip(works, processes, strict=True):
        done[work] += told(process)
    assert all(done[work] for work in works), done
    with LocalStore(root) as store, Registry() as registry:
        check_whole(name, store, registry)


STRESS = float(os.environ.get("BLOBTEE_EVICT_STRESS", "8"))
"""Seconds."""


@pytest.mark.timeout(3600)
def test_killed_again_and_again_beside_a_registry_that_has_lost_a_layer_and_chokes(
    server: MemoryRegistry, tmp_path: Path
) -> None:
    """What it lost is only here, and may not go, whoever makes room and is killed at it; all else comes again."""
    name = SOURCE.push(server, "team/app")
    lost = min(LAYERS.values(), key=lambda layer: layer.descriptor.size)
    root = tmp_path / "store"
    draw = random.Random(int(os.environ.get("BLOBTEE_EVICT_SEED", "1")))

    def choke(request: Request) -> Answer | None:
        if request.method != "HEAD" or request.kind != "blob" or draw.random() < 0.7:
            return None
        return draw.choice(
            [
                Answer(status=500),
                Answer(status=429, headers={"Retry-After": "99999"}),
                Answer(status=401),
                Answer(status=404),
                Answer(delay=0.3),
                Answer(headers={"Content-Length": "1"}),
                Answer(headers={"Docker-Content-Digest": f"sha256:{'0' * 64}"}),
                Answer(cut=0, status=307, headers={"Location": request.target}),
            ]
        )

    with LocalStore(root) as store, Registry() as registry:
        transfer.pull(name, store, registry=registry).close()
    server.remove_blob(lost.descriptor.digest)
    server.fault(choke)
    works = ["keep_below", "keep_below", "read", "unlazy", "collect", "pull"]
    deadline = time.monotonic() + STRESS
    running = {number: start(work, str(root), name, "1000") for number, work in enumerate(works)}
    kills = 0
    try:
        while time.monotonic() < deadline or kills <= 3:
            time.sleep(draw.uniform(0.2, 1.5))
            number = draw.randrange(len(works))
            assert running[number].poll() is None, running[number].communicate()[1][-3000:]
            running[number].kill()
            running[number].communicate()
            running[number] = start(works[number], str(root), name, "1000")
            kills += 1
            path = root / "blobs" / "sha256" / lost.descriptor.digest.hex
            assert path.read_bytes() == lost.data
        for process in running.values():
            assert process.poll() is None, process.communicate()[1][-3000:]
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    server.faults.clear()
    with LocalStore(root) as store, Registry() as registry:
        check_whole(name, store, registry)
        with registry.with_settings(HASTY) as hasty:
            done = shrink(store, 0, obtaining=Obtaining(hasty))
        assert done.blobs.keys() == LAYERS.keys() - {lost.descriptor.digest}
        assert done.after == usage(store)
