"""`make bench-tee` in its quick form: every metric is there, and counts reach their targets on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
METRICS = (
    "bytes to tell a layer's type",
    "bytes sent / bytes of a full read",
    "bytes sent / chunks of one file",
    "answers before the first byte",
    "whole pull of 1 GiB / first byte",
    "a blob read in order through the tee",
    "bytes sent / union of ranges, 256 readers",
    "4 processes",
    "a cached 4 KiB read / os.pread",
    "throughput of such reads",
    "chunks copied by promotion",
    "read again",
    "fetched again after kill -9",
    "fetched again after a power cut",
    "wrong bytes under faults",
    "map / blob",
)
"""The rows of `spec/tee.md` section 6, in what they begin with here."""


def test_every_metric_is_measured_and_the_counts_are_met() -> None:
    command = [sys.executable, "-m", "benchmarks.tee", "--quick", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    for metric in METRICS:
        assert [row for row in rows if row["metric"].strip().startswith(metric)], metric
    exact = [row for row in rows if row["exact"]]
    assert len(exact) >= 20
    assert all(row["met"] for row in exact)
    # It is some hundred times, and a link that does not slow anything down would make it nearly one.
    [sooner] = [row for row in rows if row["metric"].startswith("whole pull")]
    assert sooner["value"] > 20
