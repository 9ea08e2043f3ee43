"""The names that blobtee exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import blobtee

NAMES = {
    "BlobteeError",
    "CacheManager",
    "Compression",
    "Descriptor",
    "Digest",
    "Image",
    "LocalStore",
    "MemoryStore",
    "Platform",
    "RefConfig",
    "Reference",
    "Registry",
    "Remote",
    "__version__",
    "build",
    "convert",
    "copy",
    "errors",
    "inspect",
    "open_image",
    "pull",
    "push",
    "verify",
}


def test_the_exported_names_are_these_and_each_is_there() -> None:
    assert set(blobtee.__all__) == NAMES
    for name in NAMES:
        assert getattr(blobtee, name) is not None
    assert set(dir(blobtee)) >= NAMES


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="nothing_such"):
        blobtee.nothing_such  # noqa: B018


def test_importing_blobtee_imports_neither_its_rooms_nor_its_dependencies() -> None:
    script = (
        "import sys, blobtee\n"
        "loaded = {name for name in sys.modules if name.startswith('blobtee')}\n"
        "assert loaded == {'blobtee', 'blobtee._version', 'blobtee.errors'}, loaded\n"
        "assert not {'httpx', 'zstandard', 'cffi', 'click', 'rich'} & set(sys.modules)\n"
        "blobtee.Reference\n"
        "assert 'httpx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
