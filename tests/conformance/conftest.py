"""The stores that the suite runs on. A new one needs a factory here and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from blobtee.content import LocalStore, MemoryStore, Store
from blobtee.content.proxy import ProxyStore
from blobtee.plugin.references import References
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.tenants import Tenant


class OnlyTenant(Tenant):
    """Closes its store, as the suite expects of a store; tenants share theirs."""

    def close(self) -> None:
        self._store.close()


def tenant(path: Path) -> Store:
    store = LocalStore(path / "store")
    return OnlyTenant("one", store, References(store.metadata))


class ServedStore(ProxyStore):
    """With a server of its own, which ends after it."""

    def __init__(self, path: Path) -> None:
        self._serving = ExitStack()
        store = self._serving.enter_context(LocalStore(path / "store"))
        self._serving.enter_context(Server(store, [Listen("one", path / "socket")]))
        super().__init__(path / "socket")

    def close(self) -> None:
        super().close()
        self._serving.close()


FACTORIES: dict[str, Callable[[Path], Store]] = {
    "local": lambda path: LocalStore(path / "store"),
    "memory": lambda path: MemoryStore(),
    "tenant": tenant,
    "proxy": ServedStore,
}


@pytest.fixture(params=FACTORIES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with FACTORIES[request.param](tmp_path) as made:
        yield made
