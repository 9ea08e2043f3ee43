from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.tee import Tee
from tests.unit.registry.conftest import connect, serve, stack

__all__ = ["connect", "serve", "stack"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "root") as store:
        yield store


@pytest.fixture
def tee(store: LocalStore) -> Iterator[Tee]:
    tee = Tee(store)
    yield tee
    tee.close()
