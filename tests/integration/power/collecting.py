"""Is killed while an image's name goes, and another one collects then, to be recorded: `collecting.py ROOT`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, files
from tests.integration.power.evicting import NAME, prepare
from tests.integration.power.recording import note


def dies_removing(root: Path) -> None:
    """The file without the name is there, and not yet durable."""
    with LocalStore(root) as store:
        setattr(files, "sync_directory", lambda _: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
        store.layout.remove(NAME)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if sys.argv[2:] == ["dies"]:
        dies_removing(root)
    # Opened before, so that nothing is synced at that: SQLite syncs the directory when it makes its log.
    with prepare(root) as store:
        again = subprocess.run([sys.executable, "-m", "tests.integration.power.collecting", root, "dies"], check=False)
        assert again.returncode == -signal.SIGKILL
        note("killed")
        assert len(CacheManager(store).collect(grace=0).blobs) == 4
    note("ended")
