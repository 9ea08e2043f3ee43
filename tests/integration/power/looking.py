"""Is killed when a blob has its name, which is not synced, and then looks for it, to be recorded:
`looking.py ROOT LOOK`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from blobtee.content import LocalStore, arrivals
from blobtee.errors import AlreadyExists
from blobtee.oci import Digest
from tests.integration.power.recording import note

DATA = b"some bytes" * 10_000
DIGEST = Digest.of(DATA)
LABELS = {"a": "1"}


def commit_and_die(root: Path) -> None:
    setattr(arrivals, "sync_directory", lambda _: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
    with LocalStore(root) as store, store.writer("ref") as writer:
        writer.write(DATA)
        writer.commit(labels=LABELS)


def opening(store: LocalStore) -> bool:
    try:
        store.writer("another", expected=DIGEST)
    except AlreadyExists:
        return True
    return False


LOOKS = {
    "has": lambda store: store.has(DIGEST),
    "info": lambda store: store.info(DIGEST).labels == LABELS,
    "sizes": lambda store: store.sizes([DIGEST]) == {DIGEST: len(DATA)},
    "writer": opening,
}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    child = os.fork()
    if child == 0:
        commit_and_die(root)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    with LocalStore(root) as store:
        assert LOOKS[sys.argv[2]](store)
        note("told")
    note("ended")
