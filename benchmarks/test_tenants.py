"""What a tenant's list and a sweep cost with the number of references: twice as many, at most twice the time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from blobtee.content import LocalStore
from blobtee.oci import Digest
from blobtee.plugin.references import Reference, References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant

BLOBS = 10_000
TENANT = "one"


def hold(store: LocalStore, count: int) -> list[Digest]:
    """Let the tenant hold so many blobs, as if they had been written one by one."""
    references = References(store.metadata)
    references.begin(TENANT, store)
    now = time.time_ns()
    digests = [Digest.of(b"%d" % number) for number in range(count)]
    for digest in digests:
        (store.root / "blobs" / "sha256" / digest.hex).write_bytes(b"")
    labels = {"containerd.io/distribution.source.registry.example": "team/app"}
    with store.metadata.transaction() as connection:
        rows = [(digest, 0, now, now, "{}", 0) for digest in digests]
        connection.executemany("INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?)", rows)
        references.take_over(TENANT, [Reference(digest, now, now, labels) for digest in digests])
    return digests


@pytest.mark.parametrize("count", [BLOBS, 2 * BLOBS])
@pytest.mark.benchmark(group="tenants: list, once and twice the references")
def test_list(benchmark: BenchmarkFixture, tmp_path: Path, count: int) -> None:
    with LocalStore(tmp_path) as store:
        hold(store, count)
        tenant = Tenant(TENANT, store, References(store.metadata))
        assert benchmark(lambda: sum(1 for _ in tenant.walk())) == count


@pytest.mark.parametrize("count", [BLOBS, 2 * BLOBS])
@pytest.mark.benchmark(group="tenants: sweep all, once and twice the references")
def test_sweep(benchmark: BenchmarkFixture, tmp_path: Path, count: int) -> None:
    with LocalStore(tmp_path) as store:
        references = References(store.metadata)

        def let_go() -> None:
            digests = hold(store, count)
            with store.metadata.transaction():
                for digest in digests:
                    references.let_go(TENANT, digest)

        swept = benchmark.pedantic(Sweeper(store, references).sweep, setup=let_go, rounds=3)  # type: ignore[no-untyped-call]
        assert swept == count
