"""The Write RPC and the RPCs about ingests (`spec/content.md` section 2), over a real socket."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.content.writer import LocalWriter
from blobtee.core import H2Call, huddle
from blobtee.plugin.observer import SILENT
from blobtee.plugin.writing import Writing
from blobtee.wire.content import messages
from tests.unit.plugin.contentclient import TIMEOUT, Client, code, digest_of, request

DATA = b"some content"


class Stream:
    """A write whose requests are sent one at a time."""

    def __init__(self, client: Client) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = client.write(iter(self._requests.get, None))

    def send(self, action: str, **fields: Any) -> Any:
        self._requests.put(request(action, **fields))
        return next(self.call)

    def half_close(self) -> None:
        self._requests.put(None)


@contextmanager
def stream(client: Client, **first: Any) -> Iterator[Stream]:
    """An open write, which is ended in good order."""
    opened = Stream(client)
    try:
        opened.send("STAT", **first)
        yield opened
    finally:
        opened.half_close()
        list(opened.call)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor is all there is")
@pytest.mark.parametrize(("total", "is_light"), [(len(DATA), True), (1 << 20, False), (0, False)])
def test_only_the_writer_of_a_small_blob_shares_its_processor(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, total: int, is_light: bool
) -> None:
    places: list[set[int]] = []
    open_writer = store.writer

    def writer(ref: str, **how: Any) -> Any:
        places.append(os.sched_getaffinity(0))
        return open_writer(ref, **how)

    def run() -> None:
        places.append(os.sched_getaffinity(0))
        while os.sched_getaffinity(0) == places[0]:
            huddle()
        first = request("WRITE", ref="a", data=DATA, total=total)
        list(Writing(store, SILENT).write(iter([first]), Mock(spec=H2Call)))

    monkeypatch.setattr(store, "writer", writer)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    before, during = places
    assert (len(during) == 1) if is_light else (during == before)


def status(client: Client, ref: str) -> Any:
    return client.one("Status", messages.StatusRequest(ref=ref)).status


def is_free(client: Client, ref: str) -> bool:
    return code(lambda: list(client.write([request("STAT", ref=ref)]))) == "OK"


def wait_until_free(client: Client, ref: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not is_free(client, ref):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_blob_is_written_in_one_stream(client: Client) -> None:
    with stream(client, ref="a", total=12) as writing:
        stat = writing.send("STAT")
        assert (stat.offset, stat.total, stat.digest) == (0, 12, digest_of(b""))
        half = writing.send("WRITE", data=DATA[:5])
        assert (half.offset, half.digest) == (5, digest_of(DATA[:5]))
        assert half.started_at == stat.started_at
        done = writing.send("COMMIT", data=DATA[5:], offset=5, expected=digest_of(DATA), labels={"k": "v"})
        assert (done.action, done.offset, done.digest) == (2, 12, digest_of(DATA))
        # Seen as committed, it is unlocked.
        assert is_free(client, "a")
    assert client.read(digest_of(DATA)) == DATA


def test_an_empty_blob(client: Client) -> None:
    assert client.put("a", b"") == digest_of(b"")


def test_the_first_message_names_the_ref(client: Client) -> None:
    assert code(lambda: list(client.write([request("STAT")]))) == "INVALID_ARGUMENT"
    assert list(client.write([])) == []


def test_any_action_may_come_first(client: Client) -> None:
    assert next(client.write([request("COMMIT", ref="a", data=DATA)])).digest == digest_of(DATA)


def test_an_unknown_action(client: Client) -> None:
    unknown = messages.WriteContentRequest(ref="a", action=7)
    assert code(lambda: list(client.write([unknown]))) == "INVALID_ARGUMENT"


def test_opening_asks_in_order_for_the_lock_the_digest_and_the_blob(client: Client) -> None:
    there = client.put("there", b"there")
    with stream(client, ref="a"):
        assert code(lambda: list(client.write([request("STAT", ref="a", expected="nonsense")]))) == "UNAVAILABLE"
    wait_until_free(client, "a")
    assert code(lambda: list(client.write([request("STAT", ref="a", expected="nonsense")]))) == "INVALID_ARGUMENT"
    assert code(lambda: list(client.write([request("STAT", ref="a", expected=there)]))) == "ALREADY_EXISTS"


def test_resuming_keeps_offset_and_times(client: Client) -> None:
    with stream(client, ref="a", total=12) as writing:
        before = writing.send("WRITE", data=DATA[:5])
    wait_until_free(client, "a")
    with stream(client, ref="a", total=12) as writing:
        resumed = writing.send("STAT")
        assert (resumed.offset, resumed.digest) == (5, digest_of(DATA[:5]))
        assert (resumed.started_at, resumed.updated_at) == (before.started_at, before.updated_at)
    wait_until_free(client, "a")
    with stream(client, ref="a", total=99) as writing:
        assert writing.send("STAT").offset == 0


def test_expected_and_total_last_for_the_stream_alone(client: Client) -> None:
    with stream(client, ref="a", total=99, expected=digest_of(b"other")) as writing:
        assert writing.send("WRITE", data=DATA).total == 99
    wait_until_free(client, "a")
    with stream(client, ref="a") as writing:
        assert writing.send("STAT").total == 0
        assert writing.send("COMMIT", offset=12).digest == digest_of(DATA)


def test_a_blob_that_came_meanwhile_ends_the_ingest(client: Client) -> None:
    writing = Stream(client)
    writing.send("WRITE", ref="a", data=DATA)
    client.put("b", DATA)
    assert code(lambda: writing.send("STAT", expected=digest_of(DATA))) == "ALREADY_EXISTS"
    assert code(lambda: status(client, "a")) == "NOT_FOUND"


def test_a_commit_of_what_is_there_ends_the_ingest(client: Client) -> None:
    client.put("b", DATA)
    assert code(lambda: client.put("a", DATA)) == "ALREADY_EXISTS"
    assert code(lambda: status(client, "a")) == "NOT_FOUND"


@pytest.mark.parametrize("action", ["WRITE", "COMMIT"])
def test_a_wrong_offset_keeps_the_data(client: Client, action: str) -> None:
    writing = Stream(client)
    writing.send("WRITE", ref="a", data=DATA)
    assert code(lambda: writing.send(action, offset=3, data=b"x")) == "OUT_OF_RANGE"
    wait_until_free(client, "a")
    assert status(client, "a").offset == 12


def test_offset_zero_starts_over_and_a_negative_one_appends(client: Client) -> None:
    with stream(client, ref="a") as writing:
        writing.send("WRITE", data=b"thrown away")
        assert writing.send("WRITE", data=b"ab").digest == digest_of(b"ab")
        assert writing.send("WRITE", data=b"cd", offset=-1).digest == digest_of(b"abcd")
        assert writing.send("COMMIT", offset=-1).digest == digest_of(b"abcd")


@pytest.mark.parametrize("wrong", [{"total": 5}, {"expected": digest_of(b"something else")}])
def test_a_commit_that_does_not_match_keeps_the_data(client: Client, wrong: dict[str, Any]) -> None:
    writing = Stream(client)
    writing.send("WRITE", ref="a", data=DATA)
    assert code(lambda: writing.send("COMMIT", offset=12, **wrong)) == "FAILED_PRECONDITION"
    with stream(client, ref="a") as again:
        assert again.send("COMMIT", offset=12).digest == digest_of(DATA)


def test_another_algorithm_is_hashed_anew(client: Client) -> None:
    wanted = "sha512:" + hashlib.sha512(DATA).hexdigest()
    with stream(client, ref="a") as writing:
        writing.send("WRITE", data=DATA)
        assert writing.send("COMMIT", offset=12, expected=wanted).digest == wanted
    assert client.read(wanted) == DATA


def test_a_cancelled_write_unlocks_the_ref_and_keeps_the_data(client: Client) -> None:
    writing = Stream(client)
    writing.send("WRITE", ref="a", data=DATA)
    writing.call.cancel()
    wait_until_free(client, "a")
    assert status(client, "a").offset == 12


def test_a_lost_connection_unlocks_the_ref_and_keeps_the_data(client: Client, tmp_path: Path) -> None:
    other = Client(tmp_path / "socket")
    writing = Stream(other)
    writing.send("WRITE", ref="a", data=DATA)
    other.channel.close()
    wait_until_free(client, "a")
    assert status(client, "a").offset == 12


@pytest.mark.parametrize("ref", ["a/b/../../c", "..", "with\0nul", "x" * 5000, "ünïcode ✓", " "])
def test_any_text_is_a_ref(client: Client, ref: str) -> None:
    with stream(client, ref=ref) as writing:
        writing.send("WRITE", data=DATA)
        assert status(client, ref).ref == ref
    listed = client.one("ListStatuses", messages.ListStatusesRequest()).statuses
    assert [(found.ref, found.offset) for found in listed] == [(ref, 12)]


def test_status_works_while_the_ref_is_locked(client: Client) -> None:
    with stream(client, ref="a", total=20, expected=digest_of(b"later")) as writing:
        writing.send("WRITE", data=DATA)
        found = status(client, "a")
        assert (found.ref, found.offset, found.total, found.expected) == ("a", 12, 20, digest_of(b"later"))
    for absent in ("", "absent"):
        assert code(lambda ref=absent: status(client, ref)) == "NOT_FOUND"  # type: ignore[misc]


def test_statuses_are_filtered_by_ref(client: Client) -> None:
    for ref in ("one", "two"):
        list(client.write([request("WRITE", ref=ref, data=DATA)]))
    asked = messages.ListStatusesRequest(filters=["ref==two"])
    assert [found.ref for found in client.one("ListStatuses", asked).statuses] == ["two"]
    bad = messages.ListStatusesRequest(filters=["ref=="])
    assert code(lambda: client.one("ListStatuses", bad)) == "INVALID_ARGUMENT"


def test_abort(client: Client) -> None:
    list(client.write([request("WRITE", ref="a", data=DATA)]))
    for _ in range(2):
        assert code(lambda: client.one("Abort", messages.AbortRequest(ref="a"))) == "OK"
    assert code(lambda: status(client, "a")) == "NOT_FOUND"


@contextmanager
def slow_opening(monkeypatch: pytest.MonkeyPatch, client: Client, store: LocalStore) -> Iterator[Stream]:
    """A writer of "a" that is being opened, which takes for ever: what is there already is read to be hashed."""
    with store.writer("a") as writer:
        writer.write(DATA)
    reading = threading.Event()

    def hashing(self: LocalWriter, algorithm: str, size: int) -> Any:
        reading.set()
        while True:
            tasks.check()
            time.sleep(0.001)

    with monkeypatch.context() as patch:
        patch.setattr(LocalWriter, "_hash_file", hashing)
        opened = Stream(client)
        opened._requests.put(request("STAT", ref="a"))
        assert reading.wait(TIMEOUT)
        yield opened
    opened.half_close()


def test_an_abort_ends_the_opening_of_a_writer(
    client: Client, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_opening(monkeypatch, client, store) as opened:
        assert code(lambda: client.one("Abort", messages.AbortRequest(ref="a"))) == "OK"
        assert code(lambda: next(opened.call)) == "FAILED_PRECONDITION"
    assert code(lambda: status(client, "a")) == "NOT_FOUND"


def test_a_ref_is_free_when_the_client_goes_while_its_writer_is_being_opened(
    client: Client, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_opening(monkeypatch, client, store) as opened:
        opened.call.cancel()
        deadline = time.monotonic() + TIMEOUT
        while store.is_locked("a"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert status(client, "a").offset == len(DATA)


def test_an_abort_takes_the_ingest_from_under_its_writer(client: Client, store: LocalStore) -> None:
    writing = Stream(client)
    writing.send("WRITE", ref="a", data=DATA)
    assert code(lambda: client.one("Abort", messages.AbortRequest(ref="a"))) == "OK"
    with stream(client, ref="a") as again:
        assert again.send("STAT").offset == 0
        assert code(lambda: writing.send("WRITE", data=b"more", offset=12)) == "FAILED_PRECONDITION"
        assert again.send("COMMIT", data=b"new").digest == digest_of(b"new")
    with store.writer("elsewhere"):
        assert code(lambda: client.one("Abort", messages.AbortRequest(ref="elsewhere"))) == "UNAVAILABLE"


def test_messages_of_sixteen_megabytes(client: Client) -> None:
    data = os.urandom(16 << 20)
    assert client.put("a", data) == digest_of(data)


def test_three_hundred_writers_at_once(client: Client) -> None:
    writers = [Stream(client) for _ in range(300)]
    for i, writing in enumerate(writers):
        writing.send("WRITE", ref=f"r{i}", data=b"%d" % i)
    for i, writing in enumerate(writers):
        assert writing.send("COMMIT", offset=len(b"%d" % i)).digest == digest_of(b"%d" % i)
        writing.half_close()
