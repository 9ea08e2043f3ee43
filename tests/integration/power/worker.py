"""Does what `tee_crash_worker` does, once and without dying, to be recorded: `worker.py ROOT SHAPE`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from blobtee.tee import partial
from tests.integration.power.recording import note
from tests.integration.tee_crash_worker import SHAPES, prepared
from tests.unit.tee.support import OriginStream, chunks

SPACING = chunks(3)


def slow(readinto: Callable[[OriginStream, memoryview], int]) -> Callable[[OriginStream, memoryview], int]:
    """So that there are checkpoints while it comes."""

    def slowly(self: OriginStream, view: memoryview) -> int:
        time.sleep(0.004)
        return readinto(self, view)

    return slowly


if __name__ == "__main__":
    partial.CHECKPOINT_NBYTES, partial.CHECKPOINT_PAUSE = SPACING, 0
    setattr(OriginStream, "readinto", slow(OriginStream.readinto))  # noqa: B010
    with prepared(Path(sys.argv[1]), sys.argv[2]) as store:
        note("opened", 0, 0)
        SHAPES[sys.argv[2]](store, note)
    note("ended", 0, 0)
