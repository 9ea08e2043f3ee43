"""Making room is killed at every change of disk and database, and done beside everything else that works on a store:
nothing is lost, and what went comes again."""

from __future__ import annotations

import subprocess
import sys
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
from blobtee.testing import MemoryRegistry
from blobtee.transfer.evicting import shrink
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
    works = ["make_room", "read", *WORK]
    processes = [start(work, str(root), name, "6") for work in works]
    done: Counter[str] = Counter()
    for work, process in zip(works, processes, strict=True):
        done[work] += told(process)
    assert all(done[work] for work in works), done
    with LocalStore(root) as store, Registry() as registry:
        assert transfer.verify(store).good
        transfer.pull(name, store, registry=registry).close()
        for digest, layer in LAYERS.items():
            with store.reader_at(layer.descriptor) as reader:
                assert reader.read_at(0, layer.descriptor.size) == layer.data, digest
