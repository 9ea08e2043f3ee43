"""Sweeps, gc, writers, deleters and readers of two tenants, in three processes at once on one store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.oci import Descriptor
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from tests.integration.sweep_worker import blob, digest_of

REPOSITORY = Path(__file__).parents[2]
SECONDS = float(os.environ.get("BLOBTEE_SWEEP_SECONDS", "2"))
NAMES = ("one", "two")


def start(*arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.sweep_worker", *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate("\n", timeout=SECONDS + 200)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_held_is_lost_and_nothing_let_go_of_stays(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "store"
    processes = [start("tenant", root, name, seed, SECONDS) for name in NAMES]
    collecting = start("gc", root)
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = dict(zip(NAMES, map(end, processes), strict=True))
        collected = end(collecting)
    finally:
        for process in (*processes, collecting):
            process.kill()
            process.communicate()
    assert collected["removed"] > 0
    assert any(result["removed"] for result in said.values())

    with LocalStore(root) as store:
        references = References(store.metadata)
        sweeper = Sweeper(store, references)
        sweeper.sweep()
        needed = set()
        for name in NAMES:
            tenant = Tenant(name, store, references)
            held = {int(number): label for number, label in said[name]["held"].items()}
            needed |= {digest_of(number) for number in held}
            found = {info.digest: info.labels.get("label") for info in tenant.walk()}
            assert found == {digest_of(number): label for number, label in held.items()}
            for number in held:
                with tenant.reader_at(Descriptor("", digest_of(number), -1)) as reader:
                    assert reader.read_at(0, reader.size) == blob(number)
        assert {info.digest for info in store.walk()} == needed
        for name in NAMES:
            tenant = Tenant(name, store, references)
            for info in tenant.walk():
                tenant.delete(info.digest)
        assert sweeper.sweep() == len(needed)
        assert list(store.walk()) == []
        CacheManager(store).collect(grace=0)
        assert store.statuses() == []
        with store.metadata.reading() as connection:
            for table in ("blobs", "tenant_blobs", "tenant_orphans", "cache_lease_resources"):
                assert connection.execute(f"SELECT * FROM {table}").fetchall() == [], f"left in {table}"
