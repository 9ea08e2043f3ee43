"""Several processes read, fill, delete and collect the same blobs, and one after the other is killed: nobody gets a
wrong byte, nobody waits for the dead, and in the end nothing is left."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.tee import Tee
from blobtee.transfer.verifying import verify
from tests.integration.tee_stress_worker import BLOBS
from tests.integration.test_tee_crash import REPOSITORY, check_collected
from tests.unit.tee.support import Origin, desc_of

SECONDS = float(os.environ.get("BLOBTEE_TEE_STRESS", "6"))
SEED = int(os.environ.get("BLOBTEE_TEE_STRESS_SEED", "1"))
WORKERS = 4


def start(root: Path, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.integration.tee_stress_worker", str(root), str(seed)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(worker: subprocess.Popen[bytes], *, kill: bool) -> None:
    """Have it end; it must not have failed by itself, and not hang."""
    if kill:
        worker.kill()
    _, said = worker.communicate(timeout=60)
    assert worker.returncode in ((0, -9) if kill else (0,)), said.decode()


@pytest.mark.timeout(3600)
def test_processes_that_do_anything_and_are_killed_at_any_time(memory_path: Path) -> None:
    root = memory_path / "root"
    LocalStore(root).close()
    draw = random.Random(SEED)
    seeds = itertools.count(SEED * 1_000_000)
    workers = [start(root, next(seeds)) for _ in range(WORKERS)]
    killed = 0
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline or not killed:
            number = draw.randrange(WORKERS)
            worker = workers[number]
            assert worker.stdout is not None
            worker.stdout.readline()  # it has begun, or said why not
            time.sleep(draw.random() / 2)
            if any(other.poll() is not None for other in workers):
                break  # one has failed by itself
            end(worker, kill=True)
            killed += 1
            workers[number] = start(root, next(seeds))
    finally:
        failures = []
        for worker in workers:
            try:
                end(worker, kill=False)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failures.append(error)
                worker.kill()
                worker.wait()
    assert not failures, "\n".join(map(str, failures))
    with LocalStore(root) as store:
        tee = Tee(store)
        for data in BLOBS:
            assert tee.fill(desc_of(data), Origin(data).source).size == len(data)
        tee.close()
        assert verify(store).good
    check_collected(root)
