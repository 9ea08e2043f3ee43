"""What import-linter cannot see: an extension module, and files that grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import blobtee

SOURCE = Path(blobtee.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def users(module: str) -> set[str]:
    """The files that import `module` or something in it."""
    return {
        str(path.relative_to(SOURCE))
        for path in FILES
        if any(f"{name}.".startswith(f"{module}.") for name in imported(path))
    }


def test_only_core_knows_the_extension() -> None:
    assert users("blobtee._core") == {"core/native.py"}


def test_only_the_transport_knows_httpx() -> None:
    assert users("httpx") == {"registry/transport.py"}


def test_only_the_client_side_knows_grpcio() -> None:
    assert users("grpc") == {"content/proxy/connection.py"}


@pytest.mark.parametrize("module", ["grpc", "google.protobuf"])
def test_only_who_speaks_to_containerd_needs_its_extra(module: str) -> None:
    """`pip install blobtee` brings neither, so no other room may ask for them."""
    assert [user for user in users(module) if not user.startswith(("wire/", "plugin/", "content/proxy/"))] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_that_outgrows_its_size_becomes_two(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600
