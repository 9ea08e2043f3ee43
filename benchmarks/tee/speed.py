"""What the tee costs: a whole blob read in order, small reads of what is here, and many threads."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.plugin.figures import Spread, is_noisy
from benchmarks.tee.rig import Rig
from benchmarks.tee.rows import Row, mebibytes
from blobtee import content
from blobtee.content import LocalStore, ReaderAt, Trust
from blobtee.oci import Descriptor
from blobtee.tee import Tee, source_of
from blobtee.tee.map import CHUNK

PIECE = 1 << 20
SMALL = 4 << 10
THREADS = 100
PASSES = 5
"""Times that each place is read by threads: what it takes to wake a hundred of them is not what is asked for."""


def in_order(rig: Rig, folder: Path, size: int, rounds: int) -> Iterator[Row]:
    """A full read through the tee beside a straight copy: the same client, the body into a file of a store, hashed on
    the way, synced, renamed; nothing of the tee. Both end with the blob in a store."""
    desc = rig.blob(size, seed=1)
    ways: dict[str, Callable[[LocalStore], None]] = {
        "copied": lambda store: copied(rig, store, desc),
        "streamed": lambda store: read_through(rig, store, desc),
        "filled": lambda store: filled(rig, store, desc),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        # In turns from either end, and what one has left to the disk is not on the other's bill.
        for name, way in sorted(ways.items(), reverse=bool(number % 2)):
            root = folder / name
            with LocalStore(root) as store:
                os.sync()
                wall, cpu = time.perf_counter(), time.process_time()
                way(store)
                if number:  # the first round warms up
                    taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            shutil.rmtree(root)
    for name, title in (("streamed", "a blob read in order through the tee"), ("filled", "  filled, nobody reading")):
        ratios = [ours[0] / theirs[0] for ours, theirs in zip(taken[name], taken["copied"], strict=True)]
        cpu = statistics.median(o[1] / t[1] for o, t in zip(taken[name], taken["copied"], strict=True))
        spread = Spread.of(ratios)
        speed = size / statistics.median(wall for wall, _ in taken[name])
        noise = ", noisy" if is_noisy([wall for wall, _ in taken["copied"]]) else ""
        note = f"{spread}, CPU {cpu:.2f}, {mebibytes(speed)}/s{noise}"
        yield Row(
            f"{title} / copied straight, {mebibytes(size)}", "<= 1.03", note, spread.middle, spread.middle <= 1.03
        )


def copied(rig: Rig, store: LocalStore, desc: Descriptor) -> None:
    content.copy(store, rig.repository(), desc)


def filled(rig: Rig, store: LocalStore, desc: Descriptor) -> None:
    tee = Tee(store)
    tee.fill(desc, lambda: source_of(rig.repository(), desc))
    tee.close()


def read_through(rig: Rig, store: LocalStore, desc: Descriptor) -> None:
    """All of it, in order, as it comes; the last of it comes when the digest was right."""
    tee = Tee(store)
    buffer = bytearray(PIECE)
    with tee.reader_at(desc, lambda: source_of(rig.repository(), desc), Trust.STREAMED) as reader:
        at = 0
        while at < desc.size:
            at += reader.readinto_at(at, buffer)
    tee.close()


def cached(rig: Rig, folder: Path, reads: int, rounds: int) -> Iterator[Row]:
    """4 KiB reads, at random, of chunks that are here of a blob of which most is not."""
    desc = rig.blob(64 << 20, seed=2)
    # Every fourth: more of it, and the rest would come too.
    chunks = range(0, desc.size // CHUNK, 4)
    chance = random.Random(3)
    places = [chance.choice(chunks) * CHUNK + chance.randrange(CHUNK - SMALL) for _ in range(reads)]
    with LocalStore(folder) as store:
        tee = Tee(store)
        with tee.reader_at(desc, lambda: source_of(rig.repository(), desc), Trust.RAW) as reader:
            for chunk in chunks:
                reader.read_at(chunk * CHUNK, SMALL)
            plain = folder / "plain"
            shutil.copyfile(folder / "partial" / "sha256" / desc.digest.hex / "data", plain)
            fd = os.open(plain, os.O_RDONLY)
            try:
                yield _beside_pread("a cached 4 KiB read", reader, fd, places, rounds)
                yield _many_threads(reader, fd, places, rounds)
                tee.fill(desc, lambda: source_of(rig.repository(), desc))
                with tee.reader_at(desc, lambda: source_of(rig.repository(), desc)) as committed:
                    yield _beside_pread("a 4 KiB read of a blob that is whole", committed, fd, places, rounds)
            finally:
                os.close(fd)
        tee.close()


def _beside_pread(title: str, reader: ReaderAt, fd: int, places: list[int], rounds: int) -> Row:
    ratios = []
    pread, read_at = os.pread, reader.read_at
    for _ in range(rounds):
        begun = time.perf_counter()
        for at in places:
            pread(fd, SMALL, at)
        plain = time.perf_counter() - begun
        begun = time.perf_counter()
        for at in places:
            read_at(at, SMALL)
        ratios.append((time.perf_counter() - begun) / plain)
    spread = Spread.of(ratios)
    return Row(f"{title} / os.pread", "<= 1.5", str(spread), spread.middle, spread.middle <= 1.5)


def _many_threads(reader: ReaderAt, fd: int, places: list[int], rounds: int) -> Row:
    """The same reads by one thread, and dealt out to many that are there already. Three others the same two ways say
    what the interpreter has of that: `os.pread`, which gives its lock away at every read; a slice of a mapping, the
    least that a read can be; and a function that does nothing. Their threads lose the lock every five milliseconds, and
    on more than one core they go on in caches that another filled: nobody does better in Python."""
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)

    def work(part: list[int]) -> None:
        read_at = reader.read_at
        for _ in range(PASSES):
            for at in part:
                read_at(at, SMALL)

    def work_plain(part: list[int]) -> None:
        pread = os.pread
        for at in part:
            pread(fd, SMALL, at)

    def work_slice(part: list[int]) -> None:
        for _ in range(PASSES):
            for at in part:
                mapping[at : at + SMALL]

    def work_nothing(part: list[int]) -> None:
        for _ in range(2 * PASSES):
            for at in part:
                _nothing(at, SMALL)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(time.sleep, [0.05] * THREADS))
        ours, plain, slices, nothing = (
            [_alone_to_dealt_out(pool, each, places) for _ in range(rounds)]
            for each in (work, work_plain, work_slice, work_nothing)
        )
    mapping.close()
    spread = Spread.of([wall for wall, _ in ours])
    title = f"throughput of such reads, {THREADS} threads / 1"
    cpu = statistics.median(cpu for _, cpu in ours)
    others = ", ".join(
        f"{name} {statistics.median(wall for wall, _ in each):.2f}"
        for name, each in (("os.pread", plain), ("mmap", slices), ("doing nothing", nothing))
    )
    note = f"{spread}, for each CPU second {cpu:.2f}; {others}"
    return Row(title, ">= 1", note, spread.middle, round(spread.middle, 2) >= 1)


def _nothing(offset: int, n: int) -> None: ...


def _alone_to_dealt_out(
    pool: ThreadPoolExecutor, work: Callable[[list[int]], None], places: list[int]
) -> tuple[float, float]:
    """Wall clock and CPU of one thread over those of many. It does what they do, part by part: dealt out in any other
    order, places that lie beside each other in memory would be the one's, or be read again sooner by the others."""
    share = -(-len(places) // THREADS)
    parts = [places[at : at + share] for at in range(0, len(places), share)]
    wall, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        work(part)
    alone = time.perf_counter() - wall, time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    list(pool.map(work, parts))
    return alone[0] / (time.perf_counter() - wall), alone[1] / (time.process_time() - cpu)
