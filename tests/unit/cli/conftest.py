"""A registry, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blobtee.cli import main
from blobtee.testing import MemoryRegistry

FAR = "/" + "x" * 300
"""A path that cannot even be looked at, whoever looks: as one in a folder of somebody else's."""


@dataclass(frozen=True)
class Result:
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs one command line in this process, on a store below `tmp_path`, with nobody's settings."""
    monkeypatch.setenv("BLOBTEE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def call(*arguments: str) -> Result:
        capfdbinary.readouterr()
        status = main(arguments)
        captured = capfdbinary.readouterr()
        return Result(status, captured.out, captured.err.decode())

    return call
