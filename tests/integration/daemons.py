"""blobtee serve and real containerds on it, each with a temporary root, ended with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration import gotools
from tests.integration.servers import tool

BLOBTEE = [sys.executable, "-W", "error", "-m", "blobtee.cli"]

_CONFIG = """\
version = {version}
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{folder}/containerd.sock"
"""
_REQUIRED = 'required_plugins = ["io.containerd.content.v1.blobtee", "io.containerd.metadata.v1.bolt"]\n'
_CONTENT = """\
[proxy_plugins.blobtee]
  type = "content"
  address = "{content}"
"""
_VERSIONS = {"1.6": "2", "2": "3"}
"""Of the configuration, by containerd's own."""
_SECONDS = 120.0
"""After which a process hangs: on a busy machine it may take half a minute to start."""


def wait_for(what: str, holds: Callable[[], bool], seconds: float = _SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@dataclass
class Daemon:
    """A process with a log, that is there when its socket answers."""

    command: list[str]
    folder: Path
    sockets: list[Path]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        try:
            wait_for(f"{self.command[0]} starts", self._is_up)
        except AssertionError as error:
            self.end(signal.SIGKILL)
            raise AssertionError(f"{error}\n{self.log[-3000:]}") from None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.command[0]} does not end\n{self.log[-3000:]}") from None
        return status

    def kill(self) -> None:
        """As a crash would, or the kernel when memory runs out."""
        self.end(signal.SIGKILL)

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.command[0]} ended with {self.process.returncode}")
        return all(listens(path) for path in self.sockets)


@dataclass
class Blobtee(Daemon):
    """`blobtee serve`. `socket(NAME)` is where the tenant is served."""

    root: Path = Path()

    def socket(self, tenant: str) -> Path:
        return self.folder / f"{tenant}.sock"

    def blobs(self) -> set[str]:
        """SHA-256 of every blob on disk, whoever holds it."""
        folder = self.root / "blobs" / "sha256"
        return set(os.listdir(folder)) if folder.exists() else set()


@dataclass
class Containerd(Daemon):
    """A containerd with its `ctr`."""

    ctr_path: str = ""

    @property
    def address(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def calling(self) -> list[str | Path]:
        """The beginning of a command of `ctr`, which gives up a server that it does not reach in 10 s unless told."""
        return [self.ctr_path, "--address", self.address, "--connect-timeout", f"{_SECONDS:g}s"]

    def ctr(
        self, *arguments: str | Path, timeout: float = 2 * _SECONDS, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `ctr` with `given` on its standard input; whatever comes of it."""
        return subprocess.run(
            [*self.calling, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            input=given,
            env={**os.environ, **self.environment},
        )

    def do(self, *arguments: str | Path, timeout: float = 2 * _SECONDS, given: str = "") -> str:
        """Run `ctr`, which has to succeed; its standard output."""
        done = self.ctr(*arguments, timeout=timeout, given=given)
        assert done.returncode == 0, f"{done.stderr}\n{self.log[-2000:]}"
        return done.stdout


@contextmanager
def running_blobtee(
    folder: Path, *tenants: str, options: tuple[str, ...] = (), root: Path | None = None
) -> Iterator[Blobtee]:
    """With a store of its own, unless there is one at `root`."""
    root = root or folder / "store"
    sockets = {tenant: folder / f"{tenant}.sock" for tenant in tenants}
    command = [*BLOBTEE, "serve", "--root", str(root), *options]
    for tenant, path in sockets.items():
        command += ["--socket", f"{tenant}={path}"]
    daemon = Blobtee(command, folder, list(sockets.values()), root=root)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()


@contextmanager
def running_containerd(
    folder: Path, version: str, content: Path | None, *, cri: bool = False, more: str = ""
) -> Iterator[Containerd]:
    """containerd of Debian ("1.6") or of the module proxy ("2") on the content service at `content`, or on its own.

    CRI is off without `cri`. `more` is TOML of tables that the configuration is to have too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if version == "1.6":
        program, ctr, path = tool("containerd"), tool("ctr"), os.environ["PATH"]
    else:
        programs = gotools.containerd()
        program, ctr = str(programs / "containerd"), str(programs / "ctr")
        path = f"{programs}:{os.environ['PATH']}"  # its shim is of its own version
    config = folder / "config.toml"
    disabled = [] if content is None else ["io.containerd.content.v1.content"]
    disabled += [] if cri else ["io.containerd.grpc.v1.cri"]
    text = _CONFIG.format(
        version=_VERSIONS[version], folder=folder, disabled=", ".join(f'"{name}"' for name in disabled)
    )
    if content is not None:
        text = _REQUIRED + text + _CONTENT.format(content=content)
    config.write_text(text + more)
    daemon = Containerd(
        [program, "--config", str(config)], folder, [folder / "containerd.sock"], {"PATH": path}, ctr_path=ctr
    )
    with ExitStack() as stack:
        stack.callback(_unmount_below, folder)
        daemon.start()
        stack.callback(daemon.end)
        yield daemon


def _unmount_below(folder: Path) -> None:
    with open("/proc/self/mounts") as file:
        mounts = [line.split()[1].encode().decode("unicode_escape") for line in file]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
