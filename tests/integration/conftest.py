"""A real registry, a client that loses no time, and a store, for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.registry import Hosts, NoCredentials, Registry, Settings
from tests.integration.images import busybox_archive
from tests.integration.power.recording import build
from tests.integration.servers import DockerRegistry, running_registry


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DockerRegistry]:
    with running_registry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def client() -> Iterator[Registry]:
    settings = Settings(backoff=0.1, patience=120)
    with Registry(hosts=Hosts(()), credentials=NoCredentials(), settings=settings, environ={}) as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI archive of an image that runs."""
    return busybox_archive(tmp_path_factory.mktemp("busybox"))


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that records what a process does to files."""
    return build(tmp_path_factory.mktemp("recorder"))
