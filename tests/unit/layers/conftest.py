"""Two trees to be compared."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.layers.trees import at, clone


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """A tree whose files have been there for long."""
    root = tmp_path / "lower"
    for directory in ("a/deep/er", "a-b", "b", "gone/sub"):
        (root / directory).mkdir(parents=True)
    for file in ("a/deep/er/file", "a/file", "a-b/file", "b/file", "gone/file", "gone/sub/file", "file"):
        (root / file).write_bytes(file.encode())
    for path in [*root.rglob("*"), root]:
        at(path, 1_000_000, nanoseconds=1)
    return root


@pytest.fixture
def upper(lower: Path) -> Path:
    clone(lower, lower.parent / "upper")
    return lower.parent / "upper"


@pytest.fixture
def reachable(lower: Path, upper: Path) -> Iterator[tuple[Path, Path]]:
    """The two trees where a user without rights gets at them, which is not so below pytest's own directory."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        for path in (lower, upper):
            clone(path, Path(directory))
        yield Path(directory, "lower"), Path(directory, "upper")
