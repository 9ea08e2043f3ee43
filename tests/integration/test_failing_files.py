"""A file system that fails at any one call, of Python, SQLite or the C core: each RPC ends in the right status, nothing
that was there is touched, and the same works afterwards."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FAULTS = Path(__file__).parent / "faults" / "faults.c"

STEPS = {
    "rpcs": {
        "write small": 15,
        "write empty": 12,
        "write large": 20,
        "abort": 5,
        "delete": 5,
        "update": 2,
        "resume": 15,
    },
    "rpcs reads": {"read": 3, "resume": 5},
    "lives": {"serve": 30, "sweep": 50, "gc": 50, "adopt": 30, "serve without a database": 60},
    "lives reads": {"serve": 10, "sweep": 20, "gc": 20, "adopt": 20, "serve without a database": 10},
}
"""At least so many calls that can fail there are in each."""


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"]
    subprocess.run(["gcc", *flags, "-o", str(path), str(FAULTS), "-ldl"], check=True)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("scenario", "number"),
    [
        ("rpcs", errno.EIO),
        ("rpcs", errno.ENOSPC),
        ("rpcs reads", errno.EIO),
        ("lives", errno.EIO),
        ("lives", errno.ENOSPC),
        ("lives reads", errno.EIO),
    ],
)
def test_a_call_that_fails_costs_nothing_but_its_own_work(
    scenario: str, number: int, faults: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.faults.worker", scenario, str(number), str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "LD_PRELOAD": str(faults)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["problems"] == [], "\n".join(found["problems"][:10])
    assert found["steps"].keys() == STEPS[scenario].keys()
    assert all(found["steps"][name] >= least for name, least in STEPS[scenario].items()), found["steps"]
