"""`make bench-plugin` in its quick form: it runs, and what it counts does not depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import gotools
from tests.integration.servers import tool

MESSAGES = {"ingest": 3, "small blob": 3, "with a label": 3}
"""Sent for each operation: opened, written, committed. All others are single calls."""

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(900)  # whoever comes first builds the peer
@pytest.mark.parametrize("labels", ["bolt", "metadata"])
def test_both_sides_are_measured_and_their_syncs_are_counted(labels: str) -> None:
    gotools.go()
    tool("strace")
    command = [
        sys.executable,
        "-m",
        "benchmarks.plugin",
        "--quick",
        "--json",
        "--clients",
        "1",
        "4",
        "--labels",
        labels,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 12
    for row in found["rows"]:
        for side in ("ours", "theirs"):
            assert row[side]["rate"] > 0
            assert 0 < row[side]["p50"] <= row[side]["p99"]
            assert row[side]["cpu_each"] > 0
        assert row["ours"]["rpcs_each"] == row["theirs"]["rpcs_each"] == MESSAGES.get(row["title"].strip(), 1)
    # Data, database, directory.
    for row in found["syncs"].values():
        assert 2.9 <= row["ours"] < 3.2
        assert row["theirs"] >= 3.9  # the first and last of those that are counted may lie outside of the trace
