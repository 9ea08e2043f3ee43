"""The two servers and the program that is the client of both."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.plugin.figures import Round
from tests.integration import gotools
from tests.integration.daemons import BLOBTEE, Daemon, wait_for

_SOURCE = Path(__file__).parents[2]
LABELS = {
    "bolt": "containerd's local store, labels in a bolt file that each change is synced to",
    "memory": "containerd's local store, labels in memory: lost with the process, which flatters Go",
    "metadata": "containerd's metadata in bolt over its local store: what clients of a containerd talk to",
}


def programs() -> tuple[Path, Path]:
    """The server of the other side, and the clients."""
    peer = gotools.program_of(_SOURCE / "tests" / "integration" / "containerd", ".", "peer")
    load = gotools.program_of(_SOURCE / "benchmarks" / "peers", "./load", "load")
    return peer, load


class Load:
    """The clients: one process for both sides."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, **task: Any) -> dict[str, Any]:
        """Do one task; see `load/main.go`. What fails ends the benchmark."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the clients have died"}')
        if answer.get("error"):
            raise SystemExit(f"{task}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Side:
    """One of the two servers, with a blob to read."""

    def __init__(self, daemon: Daemon, root: Path, load: Load, blob_nbytes: int) -> None:
        assert daemon.process is not None
        # The clock of another process's processor time, all threads that it had included (clock_getcpuclockid(3)).
        self._clock = ~daemon.process.pid << 3 | 2
        self._blobs = root / "blobs" / "sha256"
        self._socket = str(daemon.sockets[0])
        self._load = load
        written = load.run(
            work="write", socket=self._socket, clients=1, count=1, bytes=blob_nbytes, labels=True, keep=True
        )
        self._read = {"digest": written["digests"][0], "size": blob_nbytes}

    def cpu(self) -> float:
        """Seconds of processor time so far, in the program and in the kernel for it."""
        return time.clock_gettime(self._clock)

    def round(self, work: str, clients: int, count: int, **more: Any) -> Round:
        cpu = self.cpu()
        done = self._load.run(work=work, socket=self._socket, clients=clients, count=count, **self._read, **more)
        cpu = self.cpu() - cpu
        latencies = [each / 1e9 for each in done["latencies"]]
        return Round(done["wall"], cpu, len(latencies), done["bytes"], done["rpcs"], latencies)

    def tidy(self) -> None:
        """Delete what was written, and wait until it is gone from the disk and nothing more goes on."""
        self._load.run(work="forget", socket=self._socket, clients=1)
        wait_for("what was deleted goes", lambda: len(os.listdir(self._blobs)) <= 1)


def ours(folder: Path) -> tuple[list[str], Path, Path]:
    """Command, socket and root of blobtee's server."""
    root, socket = folder / "ours" / "root", folder / "o.sock"
    return [*BLOBTEE, "serve", "--root", str(root), "--socket", str(socket)], socket, root


def theirs(folder: Path, peer: Path, labels: str) -> tuple[list[str], Path, Path]:
    """Command, socket and root of the Go server."""
    root, socket = folder / "theirs" / "root", folder / "t.sock"
    command = [str(peer), "serve", "-socket", str(socket), "-root", str(root), "-labels", labels]
    return command, socket, root


@contextmanager
def serving(command: list[str], socket: Path) -> Iterator[Daemon]:
    daemon = Daemon(command, socket.with_suffix(""), [socket])
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()
