"""Reading parts of a blob that is elsewhere."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.content import LocalStore, ReaderAt, Trust
from blobtee.errors import (
    Cancelled,
    Closed,
    ConnectionFailed,
    DigestMismatch,
    LazyUnavailable,
    OutOfRange,
    StorageError,
    Unauthenticated,
)
from blobtee.tee import Tee, tee_of
from blobtee.tee.map import CHUNK
from blobtee.tee.partial import Partial
from tests.unit.tee.support import Origin, chunks, desc_of, some_bytes

DATA = some_bytes(chunks(40) + 1000)
DESC = desc_of(DATA)


def test_a_raw_read_brings_the_chunks_it_needs_and_no_more(tee: Tee) -> None:
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        assert not origin.requests
        assert reader.read_at(chunks(3) + 5, 10) == DATA[chunks(3) + 5 : chunks(3) + 15]
        assert reader.read_at(chunks(3) + 100, 10) == DATA[chunks(3) + 100 : chunks(3) + 110]
        assert reader.read_at(chunks(9) - 1, 2) == DATA[chunks(9) - 1 : chunks(9) + 1]
        assert reader.trust is Trust.RAW
    assert origin.requests == [(chunks(3), chunks(4)), (chunks(8), chunks(10))]


def test_what_came_is_kept_for_the_next_reader_and_the_next_process(store: LocalStore) -> None:
    origin = Origin(DATA)
    for _ in range(2):
        tee = Tee(store)
        with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
            assert reader.read_at(0, 100) == DATA[:100]
            assert reader.read_at(len(DATA) - 7, 100) == DATA[-7:]
        tee.close()
    assert len(origin.requests) == 2


def test_the_default_fills_checks_and_then_serves(tee: Tee, store: LocalStore) -> None:
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source) as reader:
        assert reader.read_at(100, 10) == DATA[100:110]
        assert reader.trust is Trust.BLOB
        assert store.info(DESC.digest).size == len(DATA)
        assert reader.read_at(0, len(DATA)) == DATA
        assert [reader.read_at(at, 10) for at in (5, 5, 5)] == [DATA[5:15]] * 3
    assert origin.sent == len(DATA)
    assert not list((store.root / "partial").rglob("data"))
    with store.reader_at(DESC) as committed:
        assert committed.read_at(0, len(DATA)) == DATA


def test_a_fill_asks_only_for_what_is_missing(tee: Tee, store: LocalStore) -> None:
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        reader.read_at(chunks(5), 10)
        tee.fill(DESC, origin.source, {"a": "b"})
        assert reader.read_at(chunks(5), 10) == DATA[chunks(5) : chunks(5) + 10]
    assert origin.sent == len(DATA)
    assert store.info(DESC.digest).labels == {"a": "b"}


@pytest.mark.parametrize("nbytes", [1, 65535, 65536, 65537, chunks(3) - 1, chunks(3), chunks(3) + 1])
@pytest.mark.parametrize("trust", list(Trust))
def test_blobs_of_any_size(tee: Tee, nbytes: int, trust: Trust) -> None:
    data = some_bytes(nbytes, nbytes)
    origin = Origin(data, piece=30_000)
    with tee.reader_at(desc_of(data), origin.source, trust) as reader:
        assert b"".join(reader.read_at(at, 50_000) for at in range(0, nbytes, 50_000)) == data
        assert reader.read_at(nbytes, 10) == b""
        with pytest.raises(OutOfRange):
            reader.read_at(nbytes + 1, 1)
    assert origin.sent == nbytes


def test_the_empty_blob_is_nobody_elses(tee: Tee) -> None:
    origin = Origin(b"")
    with tee.reader_at(desc_of(b""), origin.source) as reader:
        assert reader.read_at(0, 10) == b""
    assert not origin.requests


def test_a_hundred_readers_of_one_chunk_make_one_request(tee: Tee) -> None:
    origin = Origin(DATA)
    origin.gate = threading.Event()
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        reads = [group.spawn(reader.read_at, chunks(7) + at, 10) for at in range(100)]
        while not origin.requests:
            tasks.sleep(0.001)
        origin.gate.set()
        assert [read.result() for read in reads] == [DATA[chunks(7) + at : chunks(7) + at + 10] for at in range(100)]
    # Whoever came first; the others look like one who reads in order.
    assert [start for start, _ in origin.requests] == [chunks(7)]


def test_a_reader_who_gives_up_disturbs_nobody(tee: Tee) -> None:
    origin = Origin(DATA)
    origin.gate = threading.Event()
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        impatient = tasks.Cancellation()

        def read() -> bytes:
            with tasks.scope(impatient):
                return reader.read_at(0, 10)

        def expect_cancelled() -> None:
            with pytest.raises(Cancelled):
                read()

        gone = group.spawn(expect_cancelled)
        patient = group.spawn(reader.read_at, 5, 10)
        while not tee._open or len(next(iter(tee._open)).engine._waiters) < 2:
            tasks.sleep(0.001)
        impatient.cancel()
        gone.result()
        origin.gate.set()
        assert patient.result() == DATA[5:15]
    assert len(origin.requests) == 1


def test_a_request_that_nobody_waits_for_any_more_ends(tee: Tee) -> None:
    origin = Origin(DATA)
    origin.gate = threading.Event()
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        with tasks.scope() as cancellation:
            origin.fault = lambda start, end: cancellation.cancel()
            with pytest.raises(Cancelled):
                reader.read_at(0, 10)
    assert origin.sent == 0


def test_a_source_without_ranges_is_taken_whole_once(tee: Tee) -> None:
    origin = Origin(DATA, ranges=False, piece=100_000)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        assert reader.read_at(chunks(20), 10) == DATA[chunks(20) : chunks(20) + 10]
        assert reader.read_at(chunks(2), 10) == DATA[chunks(2) : chunks(2) + 10]
        tee.fill(DESC, origin.source)
    assert origin.sent == len(DATA)
    assert len(origin.requests) == 1


def test_what_one_source_cannot_bring_another_readers_can(tee: Tee) -> None:
    locked = Origin(DATA)
    locked.error, locked.break_at = Unauthenticated("no"), 0
    locked.gate = threading.Event()
    good = Origin(DATA)
    good.gate = threading.Event()
    with tee.reader_at(DESC, locked.source, Trust.RAW) as one, tee.reader_at(DESC, good.source, Trust.RAW) as other:
        with tasks.Group() as group:

            def expect_refused() -> None:
                with pytest.raises(Unauthenticated):
                    one.read_at(0, 10)

            refused = group.spawn(expect_refused)
            while not locked.requests:
                tasks.sleep(0.001)
            read = group.spawn(other.read_at, 0, 10)
            tasks.sleep(0.02)
            locked.gate.set()
            refused.result()
            good.gate.set()
            assert read.result() == DATA[:10]


@pytest.mark.parametrize("trust", list(Trust))
def test_a_source_that_is_gone_says_so_and_the_reader_lives_on(tee: Tee, trust: Trust) -> None:
    origin = Origin(DATA, piece=20_000)
    origin.error, origin.break_at = ConnectionFailed("gone"), chunks(4) + 10
    with tee.reader_at(DESC, origin.source, trust) as reader:
        with pytest.raises(LazyUnavailable):
            reader.read_at(chunks(4), 100)
        origin.error = None
        assert reader.read_at(chunks(4), 100) == DATA[chunks(4) : chunks(4) + 100]


def test_wrong_bytes_are_never_served_as_good(tee: Tee, store: LocalStore) -> None:
    bad = bytearray(DATA)
    bad[chunks(30)] ^= 1
    origin = Origin(bytes(bad))
    with tee.reader_at(DESC, origin.source, Trust.RAW) as raw, tee.reader_at(DESC, origin.source) as reader:
        assert raw.read_at(0, 10) == DATA[:10]
        for at in (0, chunks(35)):
            with pytest.raises(DigestMismatch):
                reader.read_at(at, 10)
        with pytest.raises(DigestMismatch):
            raw.read_at(0, 10)
    assert not list((store.root / "partial").rglob("data"))
    good = Origin(DATA)
    with tee.reader_at(DESC, good.source) as reader:
        assert reader.read_at(0, len(DATA)) == DATA


def test_a_bad_mirror_then_a_good_one(tee: Tee) -> None:
    origin = Origin(bytes(len(DATA)))
    origin.others = [Origin(DATA)]
    with tee.reader_at(DESC, origin.source) as reader:
        assert reader.read_at(0, len(DATA)) == DATA
    assert origin.rejected == 1


def test_bytes_that_were_wrong_before_a_whole_body_came_are_not_taken_for_its(tee: Tee, store: LocalStore) -> None:
    """What is hashed is what is in the file: a host without ranges sends again what another sent wrong."""
    bad = bytearray(DATA)
    bad[chunks(3)] ^= 1
    with tee.reader_at(DESC, Origin(bytes(bad)).source, Trust.RAW) as raw:
        raw.read_at(chunks(3), 10)
        origin = Origin(DATA, ranges=False)
        tee.fill(DESC, origin.source)
        assert origin.sent == 2 * len(DATA), "once more, with nothing here"
    with store.reader_at(DESC) as reader:
        assert reader.read_at(0, len(DATA)) == DATA


def test_streamed_bytes_come_early_but_for_the_last_chunk(tee: Tee, store: LocalStore) -> None:
    origin = Origin(DATA, piece=10_000)
    origin.error, origin.break_at = ConnectionFailed("slow"), chunks(20)
    with tee.reader_at(DESC, origin.source, Trust.STREAMED) as reader:
        assert reader.read_at(chunks(3), 10) == DATA[chunks(3) : chunks(3) + 10]
        with pytest.raises(LazyUnavailable):
            reader.read_at(len(DATA) - 1, 1)
        origin.error = None
        assert reader.read_at(len(DATA) - 1, 1) == DATA[-1:]
    assert store.info(DESC.digest)


def test_the_end_of_a_wrong_blob_is_not_reached_by_streaming(tee: Tee) -> None:
    bad = bytearray(DATA)
    bad[5] ^= 1
    with tee.reader_at(DESC, Origin(bytes(bad)).source, Trust.STREAMED) as reader:
        with reader.open() as file, pytest.raises(DigestMismatch):
            deque(iter(lambda: file.read(100_000), b""), maxlen=0)


def test_a_closed_reader_says_so_also_to_small_reads(tee: Tee) -> None:
    origin = Origin(DATA)
    reader = tee.reader_at(DESC, origin.source, Trust.RAW)
    reader.read_at(0, 10)
    reader.read_at(0, 10)
    reader.close()
    reader.close()
    with pytest.raises(Closed):
        reader.read_at(0, 10)


def test_reading_in_order_asks_ahead(tee: Tee) -> None:
    data = some_bytes(chunks(400))
    origin = Origin(data)
    with tee.reader_at(desc_of(data), origin.source, Trust.RAW) as reader:
        for at in range(chunks(10), chunks(60), 4096):
            assert reader.read_at(at, 4096) == data[at : at + 4096]
    assert len(origin.requests) < 12


def test_a_read_over_what_others_are_fetching_and_what_is_here_comes_to_an_end(tee: Tee) -> None:
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        reader.read_at(chunks(4), 10)
        origin.gate = threading.Event()
        group.spawn(reader.read_at, chunks(6), 10)
        while len(origin.requests) < 2:
            tasks.sleep(0.001)
        wide = group.spawn(reader.read_at, chunks(2), chunks(8))
        while len(origin.requests) < 4:
            tasks.sleep(0.001)
        origin.gate.set()
        assert wide.result() == DATA[chunks(2) : chunks(10)]
    assert origin.sent <= chunks(9), "the one between that was here costs less than another request"


def test_a_fill_does_not_stand_back_for_who_waits_for_it(tee: Tee) -> None:
    origin = Origin(DATA, piece=1000)
    origin.gate = threading.Event()
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader, tasks.Group() as group:
        filled = group.spawn(tee.fill, DESC, origin.source)
        while not origin.requests:
            tasks.sleep(0.001)
        read = group.spawn(reader.read_at, len(DATA) - 5, 5)
        while not next(iter(tee._open)).engine._waiters:
            tasks.sleep(0.001)
        begun = time.monotonic()
        origin.gate.set()
        assert read.result() == DATA[-5:]
        assert filled.result().size == len(DATA)
    assert time.monotonic() - begun < 60, "two seconds for each piece"


def test_a_blob_that_comes_another_way_while_it_is_streamed_is_read_where_it_is(tee: Tee, store: LocalStore) -> None:
    """What is not in the partial blob are holes, which read as zeros."""
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, Trust.STREAMED) as reader:
        with store.writer("another way") as writer:
            writer.write(DATA)
            writer.commit()
        assert reader.read_at(chunks(3), 10) == DATA[chunks(3) : chunks(3) + 10]
        assert reader.read_at(0, len(DATA)) == DATA
    assert not origin.requests


@pytest.mark.parametrize("trust", list(Trust))
def test_who_reads_first_when_another_process_has_just_brought_the_blob_asks_for_nothing(
    tee: Tee, store: LocalStore, trust: Trust
) -> None:
    """Between the look at the store and the first read the partial blob became one of the store, and went."""
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, trust) as reader:
        other = Tee(store)
        other.fill(DESC, origin.source)
        other.close()
        assert reader.read_at(chunks(3), 10) == DATA[chunks(3) : chunks(3) + 10]
        assert reader.read_at(0, len(DATA)) == DATA
    assert origin.sent == len(DATA)
    assert not list((store.root / "partial").rglob("data"))


def test_who_gives_up_waiting_for_the_end_of_a_stream_ends_it_for_nobody(tee: Tee) -> None:
    origin = Origin(DATA)
    origin.gate = threading.Event()
    with tee.reader_at(DESC, origin.source, Trust.STREAMED) as reader, tasks.Group() as group:
        impatient = tasks.Cancellation()

        def give_up() -> None:
            with tasks.scope(impatient), pytest.raises(Cancelled):
                reader.read_at(len(DATA) - 1, 1)

        gone = group.spawn(give_up)
        patient = group.spawn(reader.read_at, len(DATA) - 5, 5)
        while not origin.requests:
            tasks.sleep(0.001)
        impatient.cancel()
        gone.result()
        origin.gate.set()
        assert patient.result() == DATA[-5:]


def test_a_fill_in_order_reads_nothing_again(tee: Tee, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_bytes(chunks(100) + 5)
    read = []
    monkeypatch.setattr(Partial, "readinto", lambda self, offset, view: read.append(view.nbytes))
    assert tee.fill(desc_of(data), Origin(data, piece=100_000).source).size == len(data)
    assert not read


def test_a_disk_that_cannot_be_read_is_one_of_our_errors(tee: Tee, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        reader.read_at(0, 10)

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(StorageError):
            reader.read_at(0, 2 * CHUNK)


def test_a_store_and_its_tee_go_together(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "another") as store:
        assert tee_of(store) is tee_of(store)
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None


def test_who_comes_while_a_fill_is_being_stopped_gets_one_of_his_own(tee: Tee) -> None:
    origin, gated = Origin(DATA), Origin(DATA)
    gated.gate = threading.Event()
    begun, go = threading.Event(), threading.Event()

    def slow_to_stop() -> None:
        begun.set()
        go.wait(10)
        tasks.check()

    with tasks.Group() as group:
        filled = group.spawn(tee.fill, DESC, gated.source)  # it has the blob open all the time
        while not gated.requests:
            tasks.sleep(0.001)
        with tee.reader_at(DESC, origin.source, Trust.STREAMED, fill=slow_to_stop) as reader:
            impatient = tasks.Cancellation()
            given_up = group.spawn(give_up, impatient, reader)
            assert begun.wait(10)
            impatient.cancel()
            given_up.result()
        with tee.reader_at(DESC, origin.source, Trust.STREAMED) as reader:
            read = group.spawn(reader.read_at, 0, len(DATA))
            tasks.sleep(0.05)
            go.set()
            tasks.sleep(0.05)
            gated.gate.set()
            assert read.result() == DATA
        assert filled.result().size == len(DATA)


def give_up(impatient: tasks.Cancellation, reader: ReaderAt) -> None:
    with tasks.scope(impatient), pytest.raises(Cancelled):
        reader.read_at(0, 10)
