"""A registry in this process, a client for it, and a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.registry import Hosts, NoCredentials, Registry, Settings
from blobtee.testing import MemoryRegistry


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


@pytest.fixture
def client() -> Iterator[Registry]:
    settings = Settings(backoff=0.01, patience=3, attempts=2, stall=2, answer=5)
    with Registry(hosts=Hosts(()), credentials=NoCredentials(), settings=settings, environ={}) as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "store") as opened:
        yield opened
