"""Threads of the gRPC server: enough that no call waits for another, and none that nobody needs."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pytest

from blobtee.core import H2Call
from blobtee.plugin import serving
from blobtee.plugin.serving import Serving
from tests.unit.plugin.asking import ECHO, HANG, SINK, Asker, asking, eventually


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


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor is all there is")
def test_handlers_that_are_light_run_on_one_processor_when_there_are_several(path: Path) -> None:
    everywhere = os.sched_getaffinity(0)

    def places(what: str, count: int) -> list[set[int]]:
        """Of the threads of so many calls at once."""
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

    with asking(path) as (asker, test, served):
        places(SINK, 20)  # from here on threads wait
        alone = [place for place in places(HANG, 20) if place != everywhere]
        assert alone
        assert {len(place) for place in alone} == {1}
        assert places(SINK, 20) == [everywhere] * 20
        assert places(HANG, 3) == [everywhere] * 3
