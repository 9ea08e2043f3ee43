"""Moving in, killed at each point: the process that `test_adopt_crash` looks after.

adopt_crash_worker.py ROOT (links|copies|in-place)    ROOT/K/containerd is there; die at the K-th change of disk
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from blobtee.content import LocalStore
from blobtee.plugin.adopting import adopt
from blobtee.plugin.adopting.taking import CONTENT
from tests.integration.tenant_crash_worker import die_at

CALLS = ("fsync", "rename", "unlink", "rmdir", "mkdir", "link", "chmod", "pwrite", "ftruncate")


def store_of(folder: Path, way: str) -> Path:
    return folder / "containerd" / CONTENT if way == "in-place" else folder / "store"


def no_link(*_: object, **__: object) -> None:
    """`os.link` between file systems."""
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def steps(root: Path, way: str) -> int:
    """How many changes the whole of it makes."""
    for k in itertools.count(1):
        folder = root / str(k)
        shutil.copytree(root / "before", folder / "containerd", symlinks=True)
        child = os.fork()
        if child == 0:
            if way == "copies":
                os.link = no_link
            with LocalStore(store_of(folder, way)) as store:
                die_at(k, CALLS)
                adopt(folder / "containerd", store, "default")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return k
        assert os.WTERMSIG(status) == signal.SIGKILL, f"step {k} failed by itself: {status}"
    raise AssertionError


if __name__ == "__main__":
    print(steps(Path(sys.argv[1]), sys.argv[2]))
