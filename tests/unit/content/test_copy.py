"""`content.copy`: from sources that behave and from sources that do not."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.content import LocalStore, MemoryStore, ReaderAt, Store, copy
from blobtee.content import copy as copy_function
from blobtee.errors import (
    Cancelled,
    ConnectionFailed,
    DigestMismatch,
    InvalidArgument,
    NotFound,
    ProtocolViolation,
    SizeMismatch,
    StorageFull,
)
from blobtee.oci import Descriptor
from tests.conformance.blobs import describe, digest_of, get, put

MIB = 1 << 20
DATA = random.Random(7).randbytes(6 * MIB + 12345)


class Source:
    """A provider of `DATA` whose streams can be told to fail. Counts what it gives."""

    def __init__(self, data: bytes = DATA, *, size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.opened: list[int] = []
        self.given = 0
        self.faults: list[tuple[int, Exception]] = []
        """Position in the blob, and what happens there; each happens once."""
        self.gate: threading.Event | None = None
        self.at_gate = threading.Event()
        self.gate_at = 0

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        if desc.digest != digest_of(DATA):
            raise NotFound(f"not {desc.digest}")
        return _SourceReader(self)


class _SourceReader(ReaderAt):
    def __init__(self, source: Source) -> None:
        self.source = source
        self.size = source.size

    def readinto_at(self, offset: int, buffer: object) -> int:
        raise AssertionError("a copy reads in order")

    def open(self, offset: int = 0) -> io.RawIOBase:
        self.source.opened.append(offset)
        return _Stream(self.source, offset)

    def close(self) -> None:
        pass


class _Stream(io.RawIOBase):
    def __init__(self, source: Source, offset: int) -> None:
        self.source = source
        self.at = offset

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        source = self.source
        end = min(len(source.data), self.at + len(buffer), self.at + 100_000)
        if source.gate is not None and self.at >= source.gate_at:
            source.at_gate.set()
            released = threading.Event()
            forget = tasks.current().on_cancel(released.set)
            while not source.gate.is_set() and not released.is_set():
                source.gate.wait(0.01)
            forget()
            tasks.check()
        for fault in source.faults:
            position, error = fault
            if self.at <= position < end or (position == self.at and end == self.at):
                if position == self.at:
                    source.faults.remove(fault)
                    raise error
                end = position
        piece = source.data[self.at : end]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        source.given += len(piece)
        return len(piece)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore() as made:
        yield made


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tasks.sleep
    monkeypatch.setattr(tasks, "sleep", lambda seconds: real(seconds / 1000))


def test_a_blob_arrives_with_its_labels(store: Store) -> None:
    source = Source()
    info = copy(store, source, describe(DATA), labels={"from": "there"})
    assert (info.digest, info.size, dict(info.labels)) == (digest_of(DATA), len(DATA), {"from": "there"})
    assert get(store, DATA) == DATA
    assert source.given == len(DATA)
    assert store.statuses() == []


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB, 5 * MIB + 1])
def test_every_size_arrives(size: int) -> None:
    data = DATA[:size]
    with MemoryStore() as there, MemoryStore() as here:
        put(there, data)
        copy(here, there, describe(data))
        assert get(here, data) == data


def test_what_is_there_is_not_asked_for(store: Store) -> None:
    put(store, DATA, {"old": "1"})
    source = Source()
    assert dict(copy(store, source, describe(DATA), labels={"new": "2"}).labels) == {"old": "1"}
    assert source.opened == []


def test_what_is_there_under_another_size_is_told(store: Store) -> None:
    put(store, DATA)
    with pytest.raises(SizeMismatch):
        copy(store, Source(), Descriptor("", digest_of(DATA), 5))


def test_a_blob_that_nobody_has_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        copy(store, Source(), describe(b"something else, and long enough" * MIB))
    with pytest.raises(InvalidArgument):
        copy(store, Source(), Descriptor("", digest_of(DATA), -1))


def test_a_partial_ingest_is_gone_on_with(store: Store) -> None:
    with store.writer(f"layer-{digest_of(DATA)}", total=len(DATA)) as writer:
        writer.write(DATA[: 5 * MIB])
    source = Source()
    copy(store, source, describe(DATA))
    assert source.opened == [5 * MIB]
    assert source.given == len(DATA) - 5 * MIB
    assert get(store, DATA) == DATA


def test_a_whole_ingest_needs_no_source(store: Store) -> None:
    with store.writer("mine", total=len(DATA)) as writer:
        writer.write(DATA)
    source = Source()
    copy(store, source, describe(DATA), ref="mine")
    assert source.opened == []


def test_a_source_that_breaks_off_is_asked_for_the_rest(store: Store) -> None:
    source = Source()
    source.faults = [(at, ConnectionFailed("broke off")) for at in (0, 10, 3 * MIB + 5, len(DATA) - 1, len(DATA))]
    copy(store, source, describe(DATA))
    assert source.opened == [0, 0, 10, 3 * MIB + 5, len(DATA) - 1]
    assert source.given == len(DATA)
    assert get(store, DATA) == DATA


def test_a_source_that_stays_broken_is_given_up_and_gone_on_with_later(store: Store) -> None:
    source = Source()
    source.faults = [(2 * MIB + 7, ConnectionFailed("broke off")) for _ in range(4)]
    with pytest.raises(ConnectionFailed):
        copy(store, source, describe(DATA))
    assert source.opened == [0, *[2 * MIB + 7] * 3]
    (status,) = store.statuses()
    assert status.offset == 2 * MIB + 7
    copy(store, source, describe(DATA))
    assert source.given == len(DATA)


def test_progress_starts_the_count_of_failures_anew(store: Store) -> None:
    source = Source()
    source.faults = [(at * MIB, ConnectionFailed("broke off")) for at in range(1, 7)]
    copy(store, source, describe(DATA))
    assert source.given == len(DATA)


def test_an_error_that_is_no_broken_connection_is_not_tried_again(store: Store) -> None:
    source = Source()
    source.faults = [(2 * MIB, ProtocolViolation("nonsense"))]
    with pytest.raises(ProtocolViolation):
        copy(store, source, describe(DATA))
    assert source.opened == [0]
    assert store.status(f"layer-{digest_of(DATA)}").offset == 2 * MIB


def test_wrong_bytes_are_told_and_leave_nothing(store: Store) -> None:
    source = Source(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(DigestMismatch):
        copy(store, source, describe(DATA))
    assert len(source.opened) == 1
    assert store.statuses() == []
    assert list(store.walk()) == []


def test_wrong_bytes_of_an_earlier_copy_are_fetched_anew_once(store: Store) -> None:
    with store.writer(f"layer-{digest_of(DATA)}", total=len(DATA)) as writer:
        writer.write(b"wrong" * 1000)
    source = Source()
    copy(store, source, describe(DATA))
    assert source.opened == [5000, 0]
    assert get(store, DATA) == DATA


def test_more_bytes_than_the_earlier_copy_should_have_are_dropped(store: Store) -> None:
    with store.writer(f"layer-{digest_of(DATA)}") as writer:
        writer.write(DATA + b"more")
    source = Source()
    copy(store, source, describe(DATA))
    assert source.opened == [0]
    assert get(store, DATA) == DATA


def test_a_source_that_does_not_end_is_stopped_at_once(store: Store) -> None:
    source = Source(DATA + bytes(50 * MIB), size=len(DATA))
    with pytest.raises(SizeMismatch):
        copy(store, source, describe(DATA))
    assert source.given <= len(DATA) + 1
    assert store.statuses() == []


def test_a_source_that_ends_early_is_told(store: Store) -> None:
    for size in (100, 3 * MIB):
        source = Source(DATA[:size], size=len(DATA))
        with pytest.raises(SizeMismatch) as caught:
            copy(store, source, describe(DATA))
        assert caught.value.actual == size
        assert store.statuses() == []


def test_a_source_that_says_another_size_is_told_before_any_byte(store: Store) -> None:
    source = Source(size=7)
    with pytest.raises(SizeMismatch):
        copy(store, source, describe(DATA))
    assert source.opened == []


def test_cancelling_stops_the_copy_and_keeps_what_came(store: Store) -> None:
    source = Source()
    source.gate = threading.Event()
    source.gate_at = 3 * MIB
    cancellation = tasks.Cancellation()

    def cancel() -> None:
        source.at_gate.wait()
        while store.status(f"layer-{digest_of(DATA)}").offset < 2 * MIB:
            threading.Event().wait(0.001)
        cancellation.cancel("enough")

    other = threading.Thread(target=cancel)
    other.start()
    with tasks.scope(cancellation), pytest.raises(Cancelled):
        copy(store, source, describe(DATA))
    other.join()
    kept = store.status(f"layer-{digest_of(DATA)}").offset
    assert 2 * MIB <= kept <= 3 * MIB + 100_000
    source.gate.set()
    copy(store, source, describe(DATA))
    assert source.opened[-1] == kept


def test_a_second_copy_waits_for_the_first_and_moves_nothing(store: Store) -> None:
    source = Source()
    source.gate = threading.Event()
    second = Source()
    with tasks.Group() as group:
        first_copy = group.spawn(copy, store, source, describe(DATA))
        source.at_gate.wait()
        waiting = group.spawn(copy, store, second, describe(DATA))
        assert not waiting.done
        source.gate.set()
        assert waiting.result() == first_copy.result()
    assert second.opened == []


def test_a_second_copy_goes_on_where_the_first_failed(store: Store) -> None:
    source = Source()
    source.gate = threading.Event()
    source.gate_at = 2 * MIB
    source.faults = [(4 * MIB, ProtocolViolation("nonsense"))]
    second = Source()
    failed: list[Exception] = []

    def first() -> None:
        try:
            copy(store, source, describe(DATA))
        except ProtocolViolation as error:
            failed.append(error)

    with tasks.Group() as group:
        group.spawn(first)
        source.at_gate.wait()
        waiting = group.spawn(copy, store, second, describe(DATA))
        source.gate.set()
        waiting.result()
    assert len(failed) == 1
    assert second.opened == [4 * MIB]


def test_waiting_for_somebody_elses_copy_can_be_cancelled(store: Store) -> None:
    cancellation = tasks.Cancellation()
    with store.writer(f"layer-{digest_of(DATA)}") as writer:
        writer.write(b"x" * 500)
        events: list[tasks.Event] = []

        def report(event: tasks.Event) -> None:
            events.append(event)
            if event.current == 500:
                cancellation.cancel("enough")

        with tasks.scope(cancellation), tasks.reporting(report), pytest.raises(Cancelled):
            copy(store, Source(), describe(DATA))
    assert any(event.current == 500 for event in events)


def test_progress_counts_every_byte_once_also_resumed_and_retried_ones(store: Store) -> None:
    with store.writer(f"layer-{digest_of(DATA)}", total=len(DATA)) as writer:
        writer.write(DATA[:MIB])
    source = Source()
    source.faults = [(3 * MIB + 1, ConnectionFailed("broke off"))]
    events: list[tasks.Event] = []
    with tasks.reporting(events.append):
        copy(store, source, describe(DATA))
    assert all(event.digest == digest_of(DATA) and event.total == len(DATA) for event in events)
    assert [event.current for event in events] == sorted(event.current for event in events)
    assert events[-1].current == len(DATA)
    assert events[-1].completed is not None


def test_a_full_disk_keeps_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= 3 * MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    with LocalStore(tmp_path) as store:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFull):
            copy(store, Source(), describe(DATA))
        monkeypatch.undo()
        assert store.status(f"layer-{digest_of(DATA)}").offset >= 2 * MIB
        source = Source()
        copy(store, source, describe(DATA))
        assert source.given <= len(DATA) - 2 * MIB
        assert get(store, DATA) == DATA


def test_a_full_disk_ends_the_copy_though_its_reader_waits_for_an_empty_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader_waits = threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread().name.startswith("blobtee-copy"):
                reader_waits.set()
            return super().wait(timeout)

    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if len(data) < 1000:  # what an ingest says of itself
            return real(fd, data, offset)
        reader_waits.wait(10)
        raise OSError(errno.ENOSPC, "No space left on device")

    outcome: list[BaseException] = []

    def run() -> None:
        try:
            copy(small, Source(), describe(DATA))
        except BaseException as error:
            outcome.append(error)

    with LocalStore(tmp_path) as small:
        monkeypatch.setattr(threading, "Condition", Watched)
        monkeypatch.setattr(os, "pwrite", full)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(20)
        monkeypatch.undo()
        assert [type(error) for error in outcome] == [StorageFull]
        assert reader_waits.is_set()


def test_a_slow_source_is_counted_and_kept_before_a_slot_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[copy_function.__module__], "INTERVAL", 0.0)
    source = Source()
    source.faults = [(250_000, ProtocolViolation("stop"))]
    with pytest.raises(ProtocolViolation):
        copy(store, source, describe(DATA))
    assert store.status(f"layer-{digest_of(DATA)}").offset == 250_000


def test_a_copy_from_a_store_leaves_the_source_alone(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "a") as a, LocalStore(tmp_path / "b") as b:
        put(a, DATA, {"a": "1"})
        copy(b, a, describe(DATA))
        assert get(b, DATA) == get(a, DATA) == DATA
        assert dict(b.info(digest_of(DATA)).labels) == {}


_FLAT = """
import resource, sys
from blobtee.content import LocalStore, ReaderAt, copy
from blobtee.content.digester import digester
from blobtee.oci import Descriptor, Digest

SIZE = int(sys.argv[2])
PATTERN = bytes(range(256)) * 4096

class Pattern(ReaderAt):
    size = SIZE
    def readinto_at(self, offset, buffer):
        n = min(len(buffer), self.size - offset)
        buffer[:n] = PATTERN[:n]
        return n
    def close(self):
        pass

class Provider:
    def reader_at(self, desc):
        return Pattern()

hashed = digester()
for _ in range(SIZE >> 20):
    hashed.update(PATTERN)
desc = Descriptor("", Digest("sha256:" + hashed.hexdigest()), SIZE)
with LocalStore(sys.argv[1]) as store:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    copy(store, Provider(), desc)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_flat_in_the_size_of_the_blob(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _FLAT, str(tmp_path), str(256 * MIB)], stdout=subprocess.PIPE, check=True
    )
    assert int(result.stdout) < 16 * 1024, "KiB more than before the copy"
