"""Does what `tee_crash_worker` does, once and without dying, to be recorded: `worker.py ROOT SHAPE`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from blobtee.tee import partial
from tests.integration.tee_crash_worker import SHAPES, prepared
from tests.unit.tee.support import OriginStream, chunks

SPACING = chunks(3)


def note(what: str, start: int, end: int) -> None:
    """Into the recording."""
    with suppress(FileNotFoundError):
        os.open(f"/blobtee-note/{what} {start} {end}", os.O_RDONLY)


def slow(readinto):  # type: ignore[no-untyped-def]
    def slowly(self: OriginStream, view: memoryview) -> int:
        time.sleep(0.004)
        return int(readinto(self, view))

    return slowly


if __name__ == "__main__":
    partial.CHECKPOINT_NBYTES, partial.CHECKPOINT_PAUSE = SPACING, 0
    OriginStream.readinto = slow(OriginStream.readinto)  # type: ignore[method-assign]
    with prepared(Path(sys.argv[1]), sys.argv[2]) as store:
        note("opened", 0, 0)
        SHAPES[sys.argv[2]](store, note)
    note("ended", 0, 0)
