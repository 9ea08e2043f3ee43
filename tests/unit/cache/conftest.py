"""A store on disk and a manager over it, for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "store") as store:
        yield store


@pytest.fixture
def manager(store: LocalStore) -> CacheManager:
    return CacheManager(store)
