"""Runs both sides in turn and prints the ratios: above 1 we are faster (wall), or cheaper (CPU).

Each pair of runs gives one ratio and the median of the ratios is printed, so that a machine whose speed drifts
bends both sides alike. Each side times only the task, not its start.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data import files_content

HERE = Path(__file__).parent
# (title, the peer's task, our task)
ROWS = (
    ("SHA-256, one stream", "sha256 {tar}", "sha256 {tar}"),
    ("SHA-256, four buffers on one core", "sha256 {tar}", "sha256-lanes {tar}"),
    ("inflate a foreign gzip, one thread", "inflate {gz}", "inflate {gz}"),
    ("HTTP body, one connection, plain", "get {url}", "get {sized_url}"),
    ("pull to disk, verified and synced", "pull {url} {dir}", "pull {sized_url} {dir}"),
)


class Side:
    """One of the two processes."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(self, task: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} died during {task!r}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("error"):
            raise SystemExit(f"{task!r}: {answer['error']}")
        return answer

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """Serve one file as a blob from a process of its own; yields its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.serve", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin
        assert server.stdout
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="input size before compression (default 256)")
    parser.add_argument("--runs", type=int, default=7, help="counted pairs of runs a row (default 7)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("go") is None:
        raise SystemExit("the peer is a Go program: install Go 1.22 or newer and put it on PATH")

    with tempfile.TemporaryDirectory(prefix="blobtee-peers-") as temporary:
        folder = Path(temporary)
        subprocess.run(["go", "build", "-o", folder / "peer", "."], cwd=HERE, check=True)
        tar, packed = folder / "sample", folder / "sample.gz"
        tar.write_bytes(files_content(options.mib << 20))
        packed.write_bytes(gzip.compress(tar.read_bytes(), 6, mtime=0))
        with (
            serving(tar) as url,
            Side([str(folder / "peer")]) as go,
            Side([sys.executable, "-m", "benchmarks.peers.ours"]) as ours,
        ):
            names = {"tar": tar, "gz": packed, "url": url, "sized_url": f"{url}?{tar.stat().st_size}", "dir": folder}
            rows = [
                measure(title, go, theirs.format(**names), ours, own.format(**names), options.runs)
                for title, theirs, own in ROWS
            ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'Go standard library = 1.00':38} {'wall':>6} {'(min - max)':>15} {'CPU':>6}")
    for row in rows:
        spread = f"({row['wall_min']:.2f} - {row['wall_max']:.2f})"
        print(f"{row['title']:38} {row['wall']:6.2f} {spread:>15} {row['cpu']:6.2f}")


def measure(title: str, go: Side, theirs: str, ours: Side, own: str, runs: int) -> dict[str, Any]:
    go.run(theirs)
    ours.run(own)
    wall, cpu = [], []
    for _ in range(runs):
        a, b = go.run(theirs), ours.run(own)
        if a["bytes"] != b["bytes"]:
            raise SystemExit(f"{title}: the peer moved {a['bytes']} bytes, we {b['bytes']}")
        wall.append(a["wall"] / b["wall"])
        cpu.append(a["cpu"] / b["cpu"])
    return {
        "title": title,
        "wall": statistics.median(wall),
        "wall_min": min(wall),
        "wall_max": max(wall),
        "cpu": statistics.median(cpu),
    }


if __name__ == "__main__":
    main()
