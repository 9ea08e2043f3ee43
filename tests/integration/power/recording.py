"""Running a module of ours with `recorder.c` preloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.integration.power.replay import Recording

REPOSITORY = Path(__file__).parents[3]
_RECORDER = Path(__file__).parent / "recorder.c"


def build(folder: Path) -> Path:
    """The library that records."""
    path = folder / "recorder.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"]
    subprocess.run(["gcc", *flags, "-o", str(path), str(_RECORDER), "-ldl", "-lpthread"], check=True)
    return path


def record(recorder: Path, folder: Path, module: str, *arguments: str, file_sync_us: int | None = None) -> Recording:
    """What `module` does to a root that it makes in `folder`; its last note is that it ended. An fsync of a file takes
    `file_sync_us`."""
    root, log = folder / "recorded", folder / "log"
    root.mkdir()
    environ = {"LD_PRELOAD": str(recorder), "BLOBTEE_RECORD_ROOT": str(root), "BLOBTEE_RECORD_LOG": str(log)}
    if file_sync_us is not None:
        environ["BLOBTEE_RECORD_FILE_SYNC_US"] = str(file_sync_us)
    command = [sys.executable, "-m", module, str(root), *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    recording = Recording(log, root)
    assert recording.notes(len(recording.events))[-1] == "ended 0 0"
    return recording


def note(what: str, start: int = 0, end: int = 0) -> None:
    """Into the recording, by the process that is recorded."""
    with suppress(FileNotFoundError):
        os.open(f"/blobtee-note/{what} {start} {end}", os.O_RDONLY)
