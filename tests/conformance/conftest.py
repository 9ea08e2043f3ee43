"""The stores that the suite runs on. A new one needs a factory here and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore, MemoryStore, Store
from blobtee.plugin.references import References
from blobtee.plugin.tenants import Tenant


class OnlyTenant(Tenant):
    """Closes its store, as the suite expects of a store; tenants share theirs."""

    def close(self) -> None:
        self._store.close()


def tenant(path: Path) -> Store:
    store = LocalStore(path / "store")
    return OnlyTenant("one", store, References(store.metadata))


FACTORIES: dict[str, Callable[[Path], Store]] = {
    "local": lambda path: LocalStore(path / "store"),
    "memory": lambda path: MemoryStore(),
    "tenant": tenant,
}


@pytest.fixture(params=FACTORIES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with FACTORIES[request.param](tmp_path) as made:
        yield made
