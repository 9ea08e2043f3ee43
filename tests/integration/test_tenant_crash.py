"""Tenants are killed at every change of disk and database: what they hold is there, and what nobody holds goes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.errors import NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from tests.integration.tenant_crash_worker import BLOBS, put

REPOSITORY = Path(__file__).parents[2]
DIGESTS = [Digest.of(data) for data in BLOBS]


def read(tenant: Tenant, number: int) -> bytes:
    with tenant.reader_at(Descriptor("", DIGESTS[number], -1)) as reader:
        return reader.read_at(0, reader.size)


def listed(tenant: Tenant) -> set[int]:
    return {DIGESTS.index(info.digest) for info in tenant.walk()}


def check(root: Path, said: list[tuple[str, int]]) -> None:
    """`said` is what the process was told, in order; what it was in the middle of may have happened or not."""
    held: dict[str, set[int]] = defaultdict(set)
    for what, number in said:
        name = what.split()[-1]
        if what.startswith("held"):
            held[name].add(number)
        else:
            held[name].discard(number)
    with LocalStore(root) as store:
        assert store.problems == ()
        references = References(store.metadata)
        sweeper = Sweeper(store, references)
        tenants = {name: Tenant(name, store, references) for name in ("one", "two")}
        for _ in range(2):  # as it was found, and after a sweep
            for name, tenant in tenants.items():
                assert held[name] <= listed(tenant), f"{name} lost what it held"
                for number in listed(tenant):
                    assert read(tenant, number) == BLOBS[number]
            sweeper.sweep()
        for tenant in tenants.values():
            for number, data in enumerate(BLOBS):
                put(tenant, data)
                assert read(tenant, number) == data
                assert tenant.info(DIGESTS[number]).size == len(data)
        CacheManager(store).collect(grace=0)
        assert all(listed(tenant) == {0, 1, 2} for tenant in tenants.values())
        for tenant in tenants.values():
            for digest in DIGESTS:
                tenant.delete(digest)
        sweeper.sweep()
        CacheManager(store).collect(grace=0)
        assert list(store.walk()) == []
        for digest in DIGESTS:
            try:
                tenants["one"].info(digest)
            except NotFound:
                continue
            raise AssertionError(f"{digest} is there without its bytes")


def test_a_kill_at_any_change_loses_nothing_that_a_tenant_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.tenant_crash_worker", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for line in done.stdout.splitlines():
        step, what, number = json.loads(line)
        said[step].append((what, number))
    assert len(said) > 40, "the work changes less than it did"
    for step, lines in said.items():
        check(tmp_path / str(step), [line for line in lines if line[0] != "ended"])
