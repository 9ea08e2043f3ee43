"""Threads of the gRPC server: enough that no call waits for another, and none that nobody needs."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from blobtee.core import H2Call
from blobtee.plugin import serving
from blobtee.plugin.serving import Serving
from tests.unit.plugin.asking import ECHO, FAIL, HANG, SINK, TALK, Asker, Test, asking, eventually
from tests.unit.plugin.http2 import DATA, END_STREAM, RST_STREAM, frame, message, raw, request


def threads() -> int:
    return sum(thread.name == "blobtee-rpc" for thread in threading.enumerate())


def one_after_another(asker: Asker, served: Serving) -> None:
    for i in range(100):
        assert asker.ask(ECHO, b"%d" % i) == b"%d" % i
        assert served._server.wait_idle(10)  # the answer is known before its handler is through


def test_a_call_never_waits_for_another(path: Path) -> None:
    with asking(path) as (asker, test, _):
        hanging = [asker.channel.unary_unary(HANG).future(b"", timeout=20) for _ in range(50)]
        for _ in hanging:
            assert test.hanging.acquire(timeout=10)
        assert asker.ask(ECHO, b"first") == b"first"
        test.go_on.set()
        assert [bytes(each.result()) for each in hanging] == [b"late"] * 50


def test_who_asks_one_thing_after_another_needs_two_threads(path: Path) -> None:
    with asking(path) as (asker, _, served):
        one_after_another(asker, served)
        assert threads() == 2


def test_threads_that_are_just_starting_are_not_started_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, started, go_on = Serving._run, itertools.count(), threading.Event()

    def run_late(serving: Serving) -> None:
        if next(started):
            go_on.wait(10)
        run(serving)

    monkeypatch.setattr(Serving, "_run", run_late)
    with asking(path) as (asker, _, served):
        one_after_another(asker, served)
        assert threads() == 2
        go_on.set()


def test_threads_that_are_just_coming_back_are_enough(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = H2Call.close

    def close_and_linger(call: H2Call) -> None:
        close(call)
        time.sleep(0.01)

    monkeypatch.setattr(H2Call, "close", close_and_linger)
    with asking(path) as (asker, _, served):
        one_after_another(asker, served)
        assert threads() == 2


def test_threads_that_nobody_needs_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_IDLE_SECONDS", 0.1)
    with asking(path) as (asker, test, _):
        hanging = [asker.channel.unary_unary(HANG).future(b"", timeout=20) for _ in range(40)]
        for _ in hanging:
            assert test.hanging.acquire(timeout=10)
        assert threads() > 40
        test.go_on.set()
        for each in hanging:
            each.result()
        eventually(lambda: threads() <= serving._KEPT_THREADS)
        assert asker.ask(ECHO, b"here") == b"here"


def test_a_thread_that_cannot_be_started_is_said_and_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Serving) -> None:
        raise RuntimeError("can't start new thread")

    with asking(path) as (asker, test, _):
        with monkeypatch.context() as patch:
            patch.setattr(Serving, "_start_thread", refuse)
            # Two threads wait: one may run a call, and the other has to stay.
            first = asker.channel.unary_unary(HANG).future(b"", timeout=20)
            assert test.hanging.acquire(timeout=10)
            for _ in range(3):
                assert asker.status(HANG)[0] == "RESOURCE_EXHAUSTED"
            test.go_on.set()
            assert bytes(first.result()) == b"late"
        assert asker.status(HANG) == ("OK", "")


def test_a_server_that_stops_waits_for_a_thread_that_is_just_being_started(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, starting = threading.Thread.start, threading.Event()

    def start_late(thread: threading.Thread) -> None:
        if thread.name == "blobtee-rpc":
            starting.set()
            time.sleep(0.3)
        start(thread)

    with asking(path) as (asker, _, served):
        monkeypatch.setattr(threading.Thread, "start", start_late)
        calls = [asker.channel.unary_unary(HANG).future(b"", timeout=20) for _ in range(3)]
        assert starting.wait(10)
        served.stop(0)
        for call in calls:
            assert call.exception(10) is not None


# ---- processors -----------------------------------------------------------------------------------------------------

EVERYWHERE = os.sched_getaffinity(0)

several = pytest.mark.skipif(len(EVERYWHERE) < 2, reason="one processor is all there is")


def places(asker: Asker, test: Test, served: Serving, what: str, count: int) -> list[set[int]]:
    """Where the threads of so many calls at once may run."""
    test.places.clear()
    test.go_on.clear()
    answers = [asker.talk(what, iter([b""])) for _ in range(count)]
    for _ in answers:
        assert test.hanging.acquire(timeout=10)
    test.go_on.set()
    for answer in answers:
        list(answer)
    eventually(lambda: served.stats().calls == 0)
    return list(test.places)


@several
def test_handlers_that_are_light_run_on_one_processor_when_there_are_several(path: Path) -> None:
    with asking(path) as given:
        places(*given, SINK, 20)  # from here on threads wait
        alone = [place for place in places(*given, HANG, 20) if place != EVERYWHERE]
        assert alone
        assert {len(place) for place in alone} == {1}
        assert places(*given, SINK, 20) == [EVERYWHERE] * 20
        assert places(*given, HANG, 3) == [EVERYWHERE] * 3


@several
def test_calls_that_ended_are_no_crowd_however_that_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Serving) -> None:
        raise RuntimeError("can't start new thread")

    with asking(path) as given:
        asker, test, served = given
        with monkeypatch.context() as patch:
            patch.setattr(Serving, "_start_thread", refuse)
            hanging = asker.channel.unary_unary(HANG).future(b"", timeout=20)
            assert test.hanging.acquire(timeout=10)
            assert [asker.status(ECHO)[0] for _ in range(6)] == ["RESOURCE_EXHAUSTED"] * 6
            hanging.cancel()
            assert test.ended.acquire(timeout=10)
        places(*given, SINK, 20)  # from here on threads wait
        test.go_on.clear()
        for _ in range(6):
            assert asker.status(FAIL)[0] == "INVALID_ARGUMENT"
            assert asker.status(ECHO, b"no message")[0] == "INVALID_ARGUMENT"
            with raw(path) as connection:
                connection.send(request(1, HANG, (b"grpc-timeout", b"100m")), frame(DATA, 1, message(b""), END_STREAM))
                connection.end(1)
                connection.send(request(3, HANG), frame(DATA, 3, message(b""), END_STREAM))
                connection.send(request(5, TALK), frame(DATA, 5, message(b"heard")))
                connection.until(DATA, 5)
                connection.send(frame(RST_STREAM, 5, bytes(4)))
            for _ended in range(3):
                assert test.ended.acquire(timeout=10)
            while test.hanging.acquire(blocking=False):
                pass
        with monkeypatch.context() as patch:
            patch.setattr(served, "_handlers", [[Mock(side_effect=ValueError("a defect"))] * 6])
            assert [asker.status(ECHO)[0] for _ in range(6)] == ["INTERNAL"] * 6
        eventually(lambda: served.stats().calls == 0)
        assert places(*given, HANG, 5) == [EVERYWHERE] * 5
