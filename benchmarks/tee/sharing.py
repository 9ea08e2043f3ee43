"""Many readers of one blob: what is sent to them all beside what they wanted, taken together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.tee import processes
from benchmarks.tee.rig import Rig
from benchmarks.tee.rows import Row, share
from benchmarks.tee.worker import SPACING, scatter
from blobtee.content import LocalStore
from blobtee.tee import Tee, source_of
from blobtee.tee.map import CHUNK

READERS = (1, 16, 256)
PROCESSES, READERS_EACH = 4, 16


def sharing(rig: Rig, folder: Path, size: int) -> Iterator[Row]:
    for readers in READERS:
        desc = rig.blob(size, seed=readers)
        with LocalStore(folder / f"{readers}") as store:
            tee = Tee(store)
            rig.reset()
            wanted = scatter(tee, desc, source_of(rig.repository(), desc), readers, 0)
            tee.close()
        yield share(f"bytes sent / union of ranges, {readers} readers", rig.count().nbytes, len(wanted) * CHUNK)
    for work, title in (("scatter", f"of {READERS_EACH} readers"), ("fill", "that fill")):
        desc = rig.blob(size, seed=1000 + len(work))
        rig.reset()
        processes.run(rig.host, folder / work, desc, work, PROCESSES, READERS_EACH)
        wanted_nbytes = size if work == "fill" else len(range(0, size // CHUNK, SPACING)) * CHUNK
        yield share(f"  {PROCESSES} processes {title}", rig.count().nbytes, wanted_nbytes, 1.01)
