from __future__ import annotations

import contextvars
import os
import signal
import threading
import time

import pytest

from blobtee.errors import Cancelled, NotFound, ResourceExhausted
from blobtee.tasks import Cancellation, Group, SingleFlight, scope, sleep

WAIT = 30.0


def fail() -> None:
    raise NotFound("nowhere")


def sleep_long() -> None:
    sleep(WAIT)


def test_results_come_back_and_all_threads_are_done_after_the_block() -> None:
    before = threading.active_count()
    with Group() as group:
        tasks = [group.spawn(pow, number, 2) for number in range(10)]
    assert [task.result() for task in tasks] == [number**2 for number in range(10)]
    assert all(task.done for task in tasks)
    assert threading.active_count() <= before + 10


def test_no_thread_is_left_however_long_the_system_takes_to_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = threading.Thread._delete  # type: ignore[attr-defined]

    def late(thread: threading.Thread) -> None:
        time.sleep(0.1)
        delete(thread)

    monkeypatch.setattr(threading.Thread, "_delete", late)
    with Group(name="mine") as group:
        for _ in range(3):
            group.spawn(int)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mine")]


def test_the_first_error_cancels_the_others_and_is_raised() -> None:
    started = time.monotonic()
    with pytest.raises(NotFound, match="nowhere"):  # noqa: PT012 - the block is the scenario
        with Group() as group:
            others = [group.spawn(sleep_long) for _ in range(3)]
            failing = group.spawn(fail)
    assert time.monotonic() - started < WAIT / 2
    for task in others:
        with pytest.raises(Cancelled):
            task.result()
    with pytest.raises(NotFound):
        failing.result()


def test_an_error_in_the_block_cancels_the_threads_and_is_raised() -> None:
    with pytest.raises(KeyError):  # noqa: PT012 - the block is the scenario
        with Group() as group:
            task = group.spawn(sleep_long)
            raise KeyError("mine")
    with pytest.raises(Cancelled):
        task.result()


def test_the_cause_is_raised_when_the_block_meets_only_the_cancellation() -> None:
    with pytest.raises(NotFound):  # noqa: PT012 - the block is the scenario
        with Group() as group:
            group.spawn(fail)
            while True:
                group.cancellation.wait(WAIT)
                group.cancellation.check()


def test_cancelling_outside_cancels_inside() -> None:
    outer = Cancellation()
    timer = threading.Timer(0.05, outer.cancel, args=["enough"])
    timer.start()
    with scope(outer), pytest.raises(Cancelled, match="enough"):
        with Group() as group:
            group.spawn(sleep_long)
    timer.join()


def test_a_limit_is_kept_and_everything_runs() -> None:
    lock, together = threading.Lock(), threading.Barrier(3)
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(WAIT)  # nobody ends before three run
        with lock:
            running -= 1

    with Group(3) as group:
        tasks = [group.spawn(work) for _ in range(12)]
    assert most == 3
    assert all(task.done for task in tasks)
    with pytest.raises(ValueError):
        Group(0)


def test_waiting_for_a_place_ends_when_the_group_is_cancelled() -> None:
    with pytest.raises(NotFound):  # noqa: PT012 - the block is the scenario
        with Group(2) as group:
            group.spawn(sleep_long)
            group.spawn(fail)
            for _ in range(5):
                group.spawn(sleep_long)


def test_context_travels() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    name.set("somebody")
    with Group() as group:
        task = group.spawn(name.get)
    assert task.result() == "somebody"


def test_a_result_that_takes_too_long_times_out() -> None:
    with pytest.raises(TimeoutError):
        with Group() as group:
            group.spawn(sleep_long).result(0.01)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_while_waiting_cancels_the_threads_and_is_raised() -> None:
    def interrupt() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is the scenario
        with Group() as group:
            task = group.spawn(sleep_long)
            helper.start()
    helper.join()
    assert time.monotonic() - started < WAIT / 2
    with pytest.raises(Cancelled):
        task.result()


def test_a_system_that_gives_no_thread_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, Group(limit=1) as group:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):  # a place that was not used is free again
            with pytest.raises(ResourceExhausted, match="thread"):
                group.spawn(int)
    flight: SingleFlight[str, int] = SingleFlight()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ResourceExhausted, match="thread"):
            flight.do("key", int)
    assert flight.do("key", int) == 0
