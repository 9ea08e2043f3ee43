"""Real servers on loopback, each with a temporary root, stopped with the test."""

from __future__ import annotations

import http.client
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_AUTH = """\
auth:
  htpasswd: {{realm: registry, path: {passwords}}}
"""
_ACCESS = re.compile(r'"(GET|HEAD|PUT|POST|PATCH|DELETE) (\S+) HTTP/1\.[01]" (\d{3}) (\d+)')

_TOLD = re.compile(r"^(?:State|Pid|voluntary_ctxt_switches|nonvoluntary_ctxt_switches):\t(\S+)", re.MULTILINE)


@dataclass
class DockerRegistry:
    """Debian's docker-registry. `host` is what goes into references. With lines of `passwords` (htpasswd, of bcrypt) it
    wants a sign-in."""

    folder: Path
    port: int
    passwords: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Start it on its port, with what its root already has, and wait until it answers."""
        config = self.folder / "config.yml"
        text = _CONFIG.format(root=self.folder / "root", port=self.port)
        if self.passwords:
            passwords = self.folder / "passwords"
            passwords.write_text(self.passwords)
            text += _AUTH.format(passwords=passwords)
        config.write_text(text)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [tool("docker-registry"), "serve", str(config)],
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"docker-registry did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def requests(self) -> list[tuple[str, str, int, int]]:
        """Method, path with query, status and body bytes of every request that has been answered so far."""
        if self._process is not None:
            settle(self._process.pid)
        found = _ACCESS.findall(self.log.read_text(errors="replace"))
        return [(method, path, int(status), int(nbytes)) for method, path, status, nbytes in found]

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == (401 if self.passwords else 200)
        except OSError:
            return False
        finally:
            connection.close()


def tool(name: str) -> str:
    """Path of a Debian tool of the same name. Without it the test is skipped, and fails in CI."""
    path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        message = f"{name} is missing; as root: apt-get install {name}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def free_port() -> int:
    """A port of loopback that nobody has, for a server that binds it later, and again when it is restarted.

    It is none of those that the kernel gives away by itself: another test's server or connection may get any of them
    before that.
    """
    low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ours = [port for port in range(10_000, 1 << 16) if not low <= port <= high]
    for port in random.SystemRandom().sample(ours, min(1000, len(ours))):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port is free outside of {low} to {high}, which the kernel gives away")


def settle(pid: int) -> None:
    """Wait until a server has nothing more to do: it writes into its log what it has answered already."""
    deadline = time.monotonic() + 30
    before: list[list[str]] | None = None
    while True:
        threads: list[list[str]] = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                threads.append(_TOLD.findall((task / "status").read_text()))
        # All sleep, and none of them was up since the look before.
        if threads == before and all(thread[0] == "S" for thread in threads):
            return
        assert time.monotonic() < deadline, f"process {pid} does not come to rest: {threads}"
        before = threads
        time.sleep(0.002)


@contextmanager
def running_registry(folder: Path, passwords: str = "") -> Iterator[DockerRegistry]:
    """A docker-registry whose root and log are below `folder`."""
    tool("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    registry = DockerRegistry(folder, free_port(), passwords)
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()
