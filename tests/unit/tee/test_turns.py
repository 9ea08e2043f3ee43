"""Who goes first: readers, then who waits for a whole blob, then what comes in the background.

A second tee of the same root stands for another process: the kernel keeps their locks apart.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.content import LocalStore, Trust
from blobtee.errors import Cancelled
from blobtee.tee import Tee
from blobtee.tee.map import CHUNK
from blobtee.tee.turns import BACKGROUND, FILLING, READING, Turns
from tests.unit.tee.support import Origin, OriginStream, chunks, desc_of, some_bytes

DATA = some_bytes(chunks(60) + 1000)
DESC = desc_of(DATA)


class Trickle(Origin):
    """Its first stream brings a chunk each time that it is let; the others all that they are asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.allowed = threading.Semaphore(2)

    def stream(self, start: int, end: int) -> OriginStream:
        first = not self.requests
        stream = super().stream(start, end)
        return TrickleStream(self, start, end) if first else stream


class TrickleStream(OriginStream):
    def readinto(self, view: memoryview) -> int:
        origin = self._origin
        assert isinstance(origin, Trickle)
        while not origin.allowed.acquire(timeout=0.005):
            tasks.check()
        return super().readinto(view[:CHUNK])


@pytest.fixture
def other(store: LocalStore) -> Iterator[Tee]:
    tee = Tee(store)
    yield tee
    tee.close()


def test_who_reads_the_far_end_of_what_is_being_filled_does_not_wait_for_that(tee: Tee, store: LocalStore) -> None:
    origin = Trickle(DATA)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        filled = group.spawn(tee.fill, DESC, origin.source)
        while origin.sent < chunks(2):
            tasks.sleep(0.001)
        for chunk in (40, 20, 41, 50):
            assert reader.read_at(chunks(chunk), 10) == DATA[chunks(chunk) : chunks(chunk) + 10]
        assert origin.requests == [(0, len(DATA)), *((chunks(at), chunks(at + 1)) for at in (40, 20, 41, 50))]
        assert not filled.done
        origin.allowed.release(100)
        assert filled.result().size == len(DATA)
    assert origin.sent == len(DATA)
    with store.reader_at(DESC) as committed:
        assert committed.read_at(0, len(DATA)) == DATA


def test_what_comes_next_is_waited_for(tee: Tee) -> None:
    origin = Trickle(DATA)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        filled = group.spawn(tee.fill, DESC, origin.source)
        while origin.sent < chunks(2):
            tasks.sleep(0.001)
        read = group.spawn(reader.read_at, chunks(2), 10)
        tasks.sleep(0.02)
        origin.allowed.release(100)
        assert read.result() == DATA[chunks(2) : chunks(2) + 10]
        filled.result()
    assert len(origin.requests) == 1


def test_readers_in_another_process_need_not_wait_either(tee: Tee, other: Tee, store: LocalStore) -> None:
    """They are heard when the next piece of the fill comes."""
    origin = Trickle(DATA)
    with other.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        filled = group.spawn(tee.fill, DESC, origin.source)
        while origin.sent < chunks(2):
            tasks.sleep(0.001)
        (blob,) = tee._shared.values()
        claims = blob.partial.claims
        for chunk in (40, 20):
            read = group.spawn(reader.read_at, chunks(chunk), 10)
            while not read.done:
                # A piece only while somebody is seen to wait for the chunk: else the fill might be there first.
                if claims.wanted(chunk, chunk + 1) == chunk:
                    origin.allowed.release()
                tasks.sleep(0.05)
            assert read.result() == DATA[chunks(chunk) : chunks(chunk) + 10]
        assert origin.requests[1:] == [(chunks(at), chunks(at + 1)) for at in (40, 20)]
        origin.allowed.release(100)
        assert filled.result().size == len(DATA)
    assert origin.sent == len(DATA)
    with store.reader_at(DESC) as committed:
        assert committed.read_at(0, len(DATA)) == DATA


@pytest.mark.parametrize("by_another", [False, True])
def test_a_fill_in_the_background_makes_haste_when_somebody_waits_for_the_blob(
    tee: Tee, other: Tee, by_another: bool
) -> None:
    origin = Origin(DATA)
    begun = time.monotonic()
    with tasks.Group() as group:
        with tasks.in_background("2kB/s"):
            slow = group.spawn(tee.fill, DESC, origin.source)
        while not origin.sent:
            tasks.sleep(0.001)
        with (other if by_another else tee).reader_at(DESC, origin.source) as reader:
            assert reader.read_at(5, 10) == DATA[5:15]
        slow.result()
    assert time.monotonic() - begun < 300, "half an hour at its own pace"
    assert origin.sent == len(DATA)


def test_a_reader_hurries_what_comes_next_in_the_background(tee: Tee) -> None:
    origin = Origin(DATA)
    with tasks.in_background("2kB/s"):
        slow = tasks.Detached(lambda: tee.fill(DESC, origin.source), "blobtee-test")
    while not origin.sent:
        tasks.sleep(0.001)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        assert reader.read_at(0, chunks(5)) == DATA[: chunks(5)]
        assert not slow.done
        assert reader.read_at(len(DATA) - 5, 5) == DATA[-5:]
    assert origin.sent < len(DATA) / 2
    slow.stop("seen enough")
    slow.wait()
    assert isinstance(slow.error, Cancelled)


def test_turns_are_seen_in_other_processes(tmp_path: Path) -> None:
    here, there = Turns(tmp_path), Turns(tmp_path)
    for turns in (here, there):
        assert not turns.are_others(BACKGROUND)
        with here.waiting(READING), here.waiting(READING):
            assert turns.are_others(FILLING)
            assert turns.are_others(BACKGROUND)
            assert not turns.are_others(READING)
        with here.waiting(FILLING):
            assert turns.are_others(BACKGROUND)
            assert not turns.are_others(FILLING)
        assert not turns.are_others(BACKGROUND)
    with here.waiting(READING):
        here.close()
        assert not there.are_others(BACKGROUND), "who is closed tells nobody"
    with here.waiting(FILLING):
        pass
    there.close()


@pytest.mark.parametrize("seed", range(4))
def test_fills_and_readers_of_several_processes_come_to_the_right_blob(
    tee: Tee, other: Tee, store: LocalStore, seed: int
) -> None:
    origin = Origin(DATA, piece=20_000)
    origin.fault = lambda start, end: tasks.sleep(0.002)

    def read(of: Tee, seed: int) -> None:
        places = random.Random(seed)
        with of.reader_at(DESC, origin.source, Trust.RAW) as reader:
            for _ in range(40):
                at, n = places.randrange(len(DATA)), places.randrange(1, chunks(3))
                assert reader.read_at(at, n) == DATA[at : at + n]

    with tasks.Group() as group:
        with tasks.in_background("3MB/s" if seed % 2 else None):
            group.spawn(tee.fill, DESC, origin.source)
        for number in range(4):
            group.spawn(read, (tee, other)[number % 2], 10 * seed + number)
    tee.fill(DESC, origin.source)
    with store.reader_at(DESC) as committed:
        assert committed.read_at(0, len(DATA)) == DATA
    assert not list((store.root / "partial").rglob("data"))
    # What is cut off a body that is under way may have come already.
    assert origin.sent <= 1.1 * len(DATA)
