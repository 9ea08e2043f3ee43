"""BLOBTEE_CPU: every implementation gives the same answers, and mistakes are told at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blobtee.core import cpu_features, library_versions
from tests.unit.core.support import MASKED

HERE = Path(__file__).parent
FOUND = sorted(cpu_features().found)


def python(words: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"BLOBTEE_CPU": words, "BLOBTEE_TEST_MASKED": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, text=True, capture_output=True, check=False)


def asked_for(words: str) -> set[str]:
    if words in ("", "native"):
        return set(FOUND)
    return set() if words == "portable" else {word.strip() for word in words.split(",")} & set(FOUND)


def test_features_fit_the_environment() -> None:
    features = cpu_features()
    assert features.found <= features.known
    assert features.allowed == asked_for(os.environ.get("BLOBTEE_CPU", ""))
    assert (features.sha256 != "portable") == bool({"shani", "armv8-sha2"} & features.allowed)
    assert (features.crc32c != "portable") == bool({"sse42", "armv8-crc32"} & features.allowed)


def test_versions() -> None:
    versions = library_versions()
    assert list(versions) == ["isal", "libdeflate", "nghttp2", "cffi"]
    assert all(version[0].isdigit() for version in versions.values())


@pytest.mark.skipif(MASKED, reason="this is what these runs are")
@pytest.mark.parametrize("words", ["portable", *(word for word in FOUND if word not in {"pclmul", "armv8-pmull"})])
def test_every_implementation(words: str) -> None:
    files = [str(HERE / name) for name in ("test_sha256.py", "test_crc32c.py", "test_cpu.py")]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = python(words, "-m", "pytest", *options, *files)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(MASKED, reason="starts Pythons of its own")
@pytest.mark.parametrize("words", ["", "native", "portable", " shani , sse42", "armv8-sha2", "sse42,armv8-crc32"])
def test_words(words: str) -> None:
    script = "from blobtee.core import cpu_features as f; print(*sorted(f().allowed))"
    run = python(words, "-c", script)
    assert run.stdout.split() == sorted(asked_for(words)), run.stderr


@pytest.mark.skipif(MASKED, reason="starts Pythons of its own")
@pytest.mark.parametrize(
    ("words", "wrong"), [("avx9", "avx9"), ("shani,,sse42", ""), ("shani,sse", "sse"), ("portable,shani", "portable")]
)
def test_unknown_words(words: str, wrong: str) -> None:
    run = python(words, "-c", "import blobtee.core")
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert f"InvalidArgument: BLOBTEE_CPU={words}: unknown word {wrong!r}; use native, portable" in last


@pytest.mark.skipif(MASKED, reason="starts Pythons of its own")
def test_self_check() -> None:
    run = python("native", "-m", "blobtee.core")
    assert "known answers are right" in run.stdout, run.stderr
