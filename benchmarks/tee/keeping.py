"""What is kept of a blob: what promotion costs, what is fetched again after a kill or a power cut, the map's size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tee import processes
from benchmarks.tee.rig import Rig
from benchmarks.tee.rows import Row, count, mebibytes
from blobtee.content import LocalStore, Trust
from blobtee.oci import Descriptor
from blobtee.tee import Tee, digests, source_of
from blobtee.tee.engine import BUFFER
from blobtee.tee.filling import CONNECTIONS, PART
from blobtee.tee.map import CHUNK, chunks_of
from blobtee.tee.partial import CHECKPOINT_NBYTES, CHECKPOINT_SECONDS

SMALL = CHUNK
"""A blob that costs a process what all blobs do."""

LIMITED = 8 << 20
"""Bytes a second of a link on which time is what a checkpoint waits for."""


def promotion(rig: Rig, folder: Path) -> Iterator[Row]:
    """Bytes that a process reads and writes of files when it fills a blob in order, by the kernel's account: less what
    another does for one chunk, and the blob itself."""
    size = 2 * PART  # of more, several connections bring parts, and no longer in order
    small, large = rig.blob(SMALL, seed=21), rig.blob(size, seed=22)
    (of_small,) = processes.run(rig.host, folder / "small", small, "fill")
    (of_large,) = processes.run(rig.host, folder / "large", large, "fill")
    proof = digests.NBYTES * (chunks_of(size) - chunks_of(SMALL))
    copied = of_large["written"] - of_small["written"] - (size - SMALL) - proof
    again = of_large["read"] - of_small["read"]
    of = f"of {mebibytes(size)}"
    # What SQLite and the interpreter read and write is not the same in any two processes.
    yield count(f"chunks copied by promotion, {of}", max(0, copied) // CHUNK, 0)
    yield count("  read again", max(0, again) // CHUNK, 0)


def map_size(rig: Rig, folder: Path) -> Iterator[Row]:
    desc = rig.blob(1 << 30, seed=23)
    with LocalStore(folder) as store:
        tee = Tee(store)
        with tee.reader_at(desc, lambda: source_of(rig.repository(), desc), Trust.RAW) as reader:
            reader.read_at(desc.size // 2, 1)
            nbytes = (folder / "partial" / "sha256" / desc.digest.hex / "map").stat().st_size
        tee.close()
    percent = 100 * nbytes / desc.size
    yield Row("map / blob of 1 GiB", "<= 0.01 %", f"{percent:.4f} %", percent, percent <= 0.01, exact=True)


@dataclass(frozen=True)
class Waste:
    """A process that fills a blob was ended, and another went on. `nbytes`: what came twice, heads of answers too;
    `rate`: bytes a second that came when it ended."""

    nbytes: int
    rate: float

    @property
    def seconds(self) -> float:
        return self.nbytes / self.rate


def waste(rig: Rig, folder: Path, desc: Descriptor, *, rate: float | None, rebooted: bool) -> Waste:
    link = rig.link(rate=rate)
    begun = time.monotonic()
    first = processes.start(link.host, folder, desc, "fill")
    while not link.moved:
        time.sleep(0.005)
        begun = time.monotonic()
    while link.moved < 0.6 * desc.size:
        if first.poll() is not None:
            raise SystemExit("a fill was over before it could be killed")
        time.sleep(0.005)
    seen = link.moved / (time.monotonic() - begun)
    first.kill()
    first.communicate()
    processes.finish(processes.start(link.host, folder, desc, "fill", rebooted=rebooted))
    return Waste(max(0, link.moved - desc.size), seen)


def kills(rig: Rig, folder: Path, size: int) -> Iterator[Row]:
    killed = waste(rig, folder / "kill", rig.blob(size, seed=31), rate=LIMITED, rebooted=False)
    most = CONNECTIONS * BUFFER
    yield Row(
        "fetched again after kill -9",
        f"<= {mebibytes(most)}, what {CONNECTIONS} connections hold",
        mebibytes(killed.nbytes),
        killed.nbytes,
        killed.nbytes <= most,
    )
    for rate, title in ((LIMITED, f"at {mebibytes(LIMITED)}/s"), (None, "at full speed")):
        desc = rig.blob(size if rate else 4 * size, seed=32 + (rate is None))
        cut = waste(rig, folder / f"power-{rate}", desc, rate=rate, rebooted=True)
        yield Row(
            f"fetched again after a power cut, {title}",
            f"<= {mebibytes(CHECKPOINT_NBYTES)} or {CHECKPOINT_SECONDS:g} s",
            f"{mebibytes(cut.nbytes)}, {cut.seconds:.1f} s of {mebibytes(cut.rate)}/s",
            cut.nbytes,
            cut.nbytes <= CHECKPOINT_NBYTES or cut.seconds <= CHECKPOINT_SECONDS,
        )
