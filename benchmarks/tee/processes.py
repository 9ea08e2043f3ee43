"""Workers (`tee.worker`): started, waited for, and killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from blobtee.oci import Descriptor

PATIENCE = 600.0
"""Seconds after which a worker hangs."""


def start(
    host: str, root: Path, desc: Descriptor, work: str, *, readers: int = 1, seed: int = 0, rebooted: bool = False
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.tee.worker", work, host, str(root), desc.digest, str(desc.size)]
    command += ["--readers", str(readers), "--seed", str(seed), *(["--rebooted"] if rebooted else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says at its end. Any other end than a good one ends the benchmark."""
    said, _ = worker.communicate(timeout=PATIENCE)
    if worker.returncode:
        raise SystemExit(f"a worker ended with {worker.returncode}")
    answer: dict[str, Any] = json.loads(said)
    return answer


def run(host: str, root: Path, desc: Descriptor, work: str, number: int = 1, readers: int = 1) -> list[dict[str, Any]]:
    """So many at once, to their end."""
    workers = [start(host, root, desc, work, readers=readers, seed=each) for each in range(number)]
    return [finish(worker) for worker in workers]
