"""Runs both sides in turn and prints the ratios: above 1 we are faster (wall), or cheaper (CPU).

Each pair of runs gives one ratio and the median of the ratios is printed, so that a machine whose speed drifts
bends both sides alike. Each side times only the task, not its start. Size is what we stored over what Go did. Before
anything is counted, what both sides stored is decoded and compared with the input, and so are the digests they found.

The gzip and zstd layers that are read were made by the peer, except where they are said to be ours. containerd and
BuildKit run igzip or unpigz in place of Go's inflate when one is on PATH; the peer's library calls never do.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
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

import zstandard

from benchmarks.data import files_content, write_tar

HERE = Path(__file__).parent
# (title, the peer's task, our task)
ROWS = (
    ("SHA-256, one stream", "sha256 {tar}", "sha256 {tar}"),
    ("SHA-256, four buffers on one core", "sha256 {tar}", "sha256-lanes {tar}"),
    ("inflate a foreign gzip, one thread", "inflate {gz}", "inflate {gz}"),
    ("HTTP body, one connection, plain", "get {url}", "get {sized_url}"),
    ("pull to disk, verified and synced", "pull {url} {dir}", "pull {sized_url} {dir}"),
)
LAYER_ROWS = (
    ("tar -> gzip, both digests", "convert tar gzip {tar} {go_out}", "convert gzip {tar} {our_out}"),
    ("  the same, klauspost's gzip", "convert tar kgzip {tar} {go_out}", "convert gzip {tar} {our_out}"),
    ("tar -> zstd, both digests", "convert tar zstd {tar} {go_out}", "convert zstd {tar} {our_out}"),
    ("gzip -> zstd, both digests", "convert gzip zstd {gz} {go_out}", "convert zstd {gz} {our_out}"),
    ("zstd -> tar, one thread", "unpack zstd {zst}", "unpack 1 {zst}"),
    ("  the same, Go with goroutines", "unpack zstd-async {zst}", "unpack 1 {zst}"),
    ("gzip -> tar, one thread", "unpack gzip {gz}", "unpack 1 {gz}"),
    ("gzip of ours -> tar", "unpack gzip {our_gz}", "unpack 0 {our_gz}"),
    ("zstd of ours -> tar", "unpack zstd-async {our_zst}", "unpack 0 {our_zst}"),
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
    parser.add_argument("--tar", type=Path, help="the layer to pack and unpack (default: made of this machine's files)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the rows whose title has TEXT in it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("go") is None:
        raise SystemExit("the peer is a Go program: install Go 1.25 or newer and put it on PATH")

    with tempfile.TemporaryDirectory(prefix="blobtee-peers-") as temporary:
        folder = Path(temporary)
        subprocess.run(["go", "build", "-o", folder / "peer", "."], cwd=HERE, check=True)
        with (
            Side([str(folder / "peer")]) as go,
            Side([sys.executable, "-m", "benchmarks.peers.ours"]) as ours,
        ):
            comparison = Comparison(go, ours, options.runs, options.only)
            comparison.streams(folder, options.mib << 20)
            comparison.layers(folder, options.mib << 20, options.tar)
    if options.json:
        print(json.dumps(comparison.rows, indent=2))
        return
    print(f"{'Go = 1.00':38} {'wall':>6} {'(min - max)':>15} {'CPU':>6} {'(min - max)':>15} {'size':>6}")
    for row in comparison.rows:
        wall = f"({row['wall_min']:.2f} - {row['wall_max']:.2f})"
        cpu = f"({row['cpu_min']:.2f} - {row['cpu_max']:.2f})"
        size = f"{row['size']:6.3f}" if row["size"] else ""
        print(f"{row['title']:38} {row['wall']:6.2f} {wall:>15} {row['cpu']:6.2f} {cpu:>15} {size}")


class Comparison:
    """Runs rows and collects what comes out."""

    def __init__(self, go: Side, ours: Side, runs: int, only: str) -> None:
        self._go, self._ours, self._runs, self._only = go, ours, runs, only
        self.rows: list[dict[str, Any]] = []

    def streams(self, folder: Path, nbytes: int) -> None:
        """Bytes end to end: hashing, inflating, fetching."""
        if not self._wanted(ROWS):
            return
        tar, packed = folder / "sample", folder / "sample.gz"
        tar.write_bytes(files_content(nbytes))
        packed.write_bytes(gzip.compress(tar.read_bytes(), 6, mtime=0))
        with serving(tar) as url:
            sized_url = f"{url}?{tar.stat().st_size}"
            self._run(ROWS, {"tar": tar, "gz": packed, "url": url, "sized_url": sized_url, "dir": folder})

    def layers(self, folder: Path, nbytes: int, tar: Path | None) -> None:
        """A layer, packed and unpacked."""
        if not self._wanted(LAYER_ROWS):
            return
        if tar is None:
            tar = folder / "layer.tar"
            write_tar(tar, nbytes)
        names = {name: folder / name for name in ("gz", "zst", "our_gz", "our_zst", "go_out", "our_out")} | {"tar": tar}
        for task in ("convert tar gzip {tar} {gz}", "convert tar zstd {tar} {zst}"):
            self._go.run(task.format(**names))
        for task in ("convert gzip {tar} {our_gz}", "convert zstd {tar} {our_zst}"):
            self._ours.run(task.format(**names))
        with tar.open("rb") as file:
            wanted = hashlib.file_digest(file, "sha256").hexdigest()
        self._run(LAYER_ROWS, names, wanted)

    def _wanted(self, rows: tuple[tuple[str, str, str], ...]) -> list[tuple[str, str, str]]:
        return [row for row in rows if self._only in row[0]]

    def _run(self, rows: tuple[tuple[str, str, str], ...], names: dict[str, Any], diff_id: str = "") -> None:
        for title, theirs, own in self._wanted(rows):
            print(title.strip(), file=sys.stderr)
            self.rows.append(self._measure(title, theirs.format(**names), own.format(**names)))
            if "_out}" in own:
                check(names["go_out"], diff_id)
                check(names["our_out"], diff_id)

    def _measure(self, title: str, theirs: str, own: str) -> dict[str, Any]:
        self._go.run(theirs)
        self._ours.run(own)
        wall, cpu = [], []
        for _ in range(self._runs):
            a, b = self._go.run(theirs), self._ours.run(own)
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
            "cpu_min": min(cpu),
            "cpu_max": max(cpu),
            "size": b["size"] / a["size"] if a.get("size") and b.get("size") else None,
        }


def check(stored: Path, diff_id: str) -> None:
    """What was stored decodes to the layer, by decoders of neither side, and its digests were right."""
    found = Path(f"{stored}.digests").read_text().split()
    with stored.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    hasher = hashlib.sha256()
    with stored.open("rb") as file, decoder(file) as plain:
        while data := plain.read(1 << 20):
            hasher.update(data)
    if hasher.hexdigest() != diff_id:
        raise SystemExit(f"{stored.name} is not the layer")
    if found != [diff_id, digest]:
        raise SystemExit(f"{stored.name}: wrong digests were found")


def decoder(file: io.BufferedReader) -> gzip.GzipFile | io.BufferedReader:
    if file.peek(2)[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True), 1 << 20)


if __name__ == "__main__":
    main()
