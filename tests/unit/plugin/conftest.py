"""A store, a socket and a client of the content service there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from tests.unit.plugin.contentclient import Client, serving


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "root") as store:
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a socket."""
    return tmp_path / "socket"


@pytest.fixture
def client(store: LocalStore, tmp_path: Path) -> Iterator[Client]:
    with serving(store, tmp_path / "socket") as client:
        yield client
