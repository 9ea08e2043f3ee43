"""Programs in Go that the tests need, built once into `.cache/go` of the working tree.

The modules are named with their versions, and come from the module proxy that the machine's Go is set up for.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONTAINERD = "github.com/containerd/containerd/v2"
CONTAINERD_VERSION = "v2.4.2"
BUILDKIT = "github.com/moby/buildkit"
BUILDKIT_VERSION = "v0.34.2"

_CACHE = Path(__file__).parents[2] / ".cache" / "go"
_BUILD_SECONDS = 900


def go() -> str:
    """Path of Go. Debian's is too old for what containerd needs, so it is not installed here."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is None:
        message = "Go is missing: install Go 1.25 or newer (https://go.dev/dl) and put it on PATH"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def installed(module: str, version: str, *commands: str) -> Path:
    """Folder with the programs `commands` (packages of `module`) in the given version."""
    folder = _CACHE / f"{Path(module.removesuffix('/v2')).name}-{version}"
    with _alone(folder):
        missing = [command for command in commands if not (folder / Path(command).name).exists()]
        if missing:
            packages = [f"{module}/{command}@{version}" for command in missing]
            _run([go(), "install", *packages], {"GOBIN": str(folder)})
    return folder


def built_in_place(module: str, version: str, *commands: str) -> Path:
    """As `installed`, for a module that replaces others: Go installs no such module, and builds it in its folder."""
    folder = _CACHE / f"{Path(module).name}-{version}"
    with _alone(folder):
        missing = [command for command in commands if not (folder / Path(command).name).exists()]
        if missing:
            downloaded = json.loads(_run([go(), "mod", "download", "-json", f"{module}@{version}"]))
            folder.mkdir(exist_ok=True)
            packages = [f"./{command}" for command in missing]
            _run([go(), "build", "-mod=readonly", "-o", f"{folder}/", *packages], cwd=Path(downloaded["Dir"]))
    return folder


def tests_of(source: Path, package: str, name: str) -> Path:
    """The tests of `package` in the module at `source`, as a program; Go builds what has changed."""
    target = _CACHE / name
    with _alone(target):
        _run([go(), "test", "-c", "-o", str(target), package], cwd=source)
    return target


def program_of(source: Path, package: str, name: str) -> Path:
    """The program `package` of the module at `source`; Go builds what has changed."""
    target = _CACHE / name
    with _alone(target):
        _run([go(), "build", "-o", str(target), package], cwd=source)
    return target


def containerd() -> Path:
    """Folder with containerd 2.x, its shim and `ctr`."""
    return installed(CONTAINERD, CONTAINERD_VERSION, "cmd/containerd", "cmd/ctr", "cmd/containerd-shim-runc-v2")


def buildkit() -> Path:
    """Folder with `buildkitd` and `buildctl`."""
    return built_in_place(BUILDKIT, BUILDKIT_VERSION, "cmd/buildkitd", "cmd/buildctl")


@contextmanager
def _alone(what: Path) -> Iterator[None]:
    """Tests run in several processes, and building twice at once takes twice as long."""
    what.parent.mkdir(parents=True, exist_ok=True)
    with open(what.with_name(f".{what.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], extra: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(extra or {})},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
