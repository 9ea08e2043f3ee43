"""Single flight: who shares what, who may give up, and who takes over."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from blobtee.errors import Cancelled, Closed, DigestMismatch, NotFound, PermissionDenied, Unauthenticated
from blobtee.tasks import Cancellation, Event, SingleFlight, check, meter, reporting, scope, sleep

WAIT = 30.0


def start(
    function: Callable[[], object], cancellation: Cancellation | None = None
) -> tuple[threading.Thread, list[Any]]:
    """Run `function` in a thread; the list gets what it returned or raised."""
    outcome: list[Any] = []

    def body() -> None:
        try:
            with scope(cancellation or Cancellation()):
                outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, outcome


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def waiting(flight: SingleFlight[str, Any], count: int) -> Callable[[], bool]:
    def told() -> bool:
        call = flight._calls.get("key")
        return call is not None and len(call.waiters) == count

    return told


class Work:
    """Runs until it is let go; counts its runs and how they were cancelled."""

    def __init__(self, result: object = "result") -> None:
        self.result = result
        self.runs = 0
        self.cancelled = 0
        self.begun = threading.Event()
        self.finish = threading.Event()

    def __call__(self) -> object:
        self.runs += 1
        self.begun.set()
        try:
            while not self.finish.is_set():
                sleep(0.002)
        except Cancelled:
            self.cancelled += 1
            raise
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def test_one_caller_gets_what_the_function_gives() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    assert flight.do("key", lambda: 7) == 7
    assert flight.do("key", lambda: 8) == 8
    with pytest.raises(NotFound, match="nowhere"):
        flight.do("key", lambda: (_ for _ in ()).throw(NotFound("nowhere")))
    assert flight._calls == {}


def test_keys_do_not_wait_for_each_other() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work()
    thread, outcome = start(lambda: flight.do("key", work))
    assert work.begun.wait(WAIT)
    assert flight.do("other", lambda: 1) == 1
    work.finish.set()
    join(thread)
    assert outcome == ["result"]


def shared(work: Work) -> list[Any]:
    """What five callers of one call get."""
    flight: SingleFlight[str, Any] = SingleFlight()
    started = [start(lambda: flight.do("key", work)) for _ in range(5)]
    wait_for(waiting(flight, 5))
    work.finish.set()
    join(*(thread for thread, _ in started))
    assert work.runs == 1
    return [outcome[0] for _, outcome in started]


def test_those_who_wait_share_one_result() -> None:
    assert shared(Work("result")) == ["result"] * 5


def test_those_who_wait_share_one_error_each_with_an_object_of_its_own() -> None:
    error = DigestMismatch("blob", "sha256:a", "sha256:b")
    outcomes = shared(Work(error))
    assert {(type(each), str(each), each.expected) for each in outcomes} == {(DigestMismatch, str(error), "sha256:a")}
    assert len({id(each) for each in outcomes}) == 5


def test_the_leader_gives_up_and_the_other_gets_the_result() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work()
    switch = Cancellation()
    leader, led = start(lambda: flight.do("key", work), switch)
    assert work.begun.wait(WAIT)
    follower, followed = start(lambda: flight.do("key", work))
    wait_for(waiting(flight, 2))
    switch.cancel("Ctrl-C")
    join(leader)
    assert isinstance(led[0], Cancelled)
    assert str(led[0]) == "Ctrl-C"
    work.finish.set()
    join(follower)
    assert (followed, work.runs, work.cancelled) == (["result"], 1, 0)


def test_who_gives_up_gets_its_own_cancellation_however_quick_the_call_ends_on_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = SingleFlight._leave

    def leave(lock: Any, call: Any, waiter: Any) -> None:
        real(lock, call, waiter)
        call.wait_for_end()

    def work() -> None:
        begun.set()
        try:
            sleep(WAIT)
        except Cancelled:
            raise NotFound("what a call says that was cut short") from None

    monkeypatch.setattr(SingleFlight, "_leave", staticmethod(leave))
    flight: SingleFlight[str, Any] = SingleFlight()
    begun = threading.Event()
    switch = Cancellation()
    thread, outcome = start(lambda: flight.do("key", work), switch)
    assert begun.wait(WAIT)
    switch.cancel("Ctrl-C")
    join(thread)
    assert [(type(error), str(error)) for error in outcome] == [(Cancelled, "Ctrl-C")]


def test_a_follower_gives_up_and_the_leader_gets_the_result() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work()
    leader, led = start(lambda: flight.do("key", work))
    assert work.begun.wait(WAIT)
    switch = Cancellation()
    follower, followed = start(lambda: flight.do("key", work), switch)
    wait_for(waiting(flight, 2))
    switch.cancel()
    join(follower)
    assert isinstance(followed[0], Cancelled)
    work.finish.set()
    join(leader)
    assert (led, work.cancelled) == (["result"], 0)


def test_when_both_give_up_the_call_is_cancelled_and_a_newcomer_starts_afresh() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work()
    switches = [Cancellation(), Cancellation()]
    started = [start(lambda: flight.do("key", work), switch) for switch in switches]
    wait_for(waiting(flight, 2))
    assert work.begun.wait(WAIT)
    for switch in switches:
        switch.cancel()
    join(*(thread for thread, _ in started))
    assert all(isinstance(outcome[0], Cancelled) for _, outcome in started)
    assert flight.do("key", lambda: "fresh") == "fresh"
    assert work.cancelled == 1


def test_a_newcomer_waits_for_an_abandoned_call_to_clean_up() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    begun, clean = threading.Event(), threading.Event()
    order: list[str] = []

    def slow() -> None:
        begun.set()
        try:
            sleep(WAIT)
        finally:
            clean.wait(WAIT)
            order.append("cleaned up")

    switch = Cancellation()
    first, _ = start(lambda: flight.do("key", slow), switch)
    assert begun.wait(WAIT)
    switch.cancel()
    join(first)
    second, outcome = start(lambda: flight.do("key", lambda: order.append("fresh")))
    wait_for(waiting(flight, 1))
    assert order == []
    clean.set()
    join(second)
    assert order == ["cleaned up", "fresh"]
    assert outcome == [None]


def test_a_caller_that_is_cancelled_already_leaves_at_once() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    switch = Cancellation()
    switch.cancel()
    work = Work()
    thread, outcome = start(lambda: flight.do("key", work), switch)
    join(thread)
    assert isinstance(outcome[0], Cancelled)
    wait_for(lambda: flight._calls == {})


@pytest.mark.parametrize("failure", [Unauthenticated, PermissionDenied, Closed])
def test_a_waiter_takes_over_when_the_leader_fails_for_a_reason_of_its_own(failure: type[Exception]) -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work(failure("not you"))
    leader, led = start(lambda: flight.do("key", work))
    assert work.begun.wait(WAIT)
    follower, followed = start(lambda: flight.do("key", lambda: "with other means"))
    wait_for(waiting(flight, 2))
    work.finish.set()
    join(leader, follower)
    assert (led, followed) == (["with other means"], ["with other means"])


def test_when_nobodys_means_will_do_all_get_the_last_refusal() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    works = [Work(Unauthenticated(f"refused {number}")) for number in range(3)]
    works[1].finish.set()
    works[2].finish.set()
    started = [start(lambda: flight.do("key", works[0]))]
    assert works[0].begun.wait(WAIT)
    for number in (1, 2):
        started.append(start(lambda number=number: flight.do("key", works[number])))  # type: ignore[misc]
        wait_for(waiting(flight, number + 1))
    works[0].finish.set()
    join(*(thread for thread, _ in started))
    assert [str(outcome[0]) for _, outcome in started] == ["refused 2"] * 3
    assert [work.runs for work in works] == [1, 1, 1]


def test_other_failures_are_everybodys() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work(NotFound("gone"))
    second = Work()
    leader, led = start(lambda: flight.do("key", work))
    assert work.begun.wait(WAIT)
    follower, followed = start(lambda: flight.do("key", second))
    wait_for(waiting(flight, 2))
    work.finish.set()
    join(leader, follower)
    assert isinstance(led[0], NotFound)
    assert isinstance(followed[0], NotFound)
    assert second.runs == 0
    assert flight.do("key", lambda: "fresh") == "fresh"


def test_the_one_who_takes_over_works_in_its_own_context() -> None:
    session: contextvars.ContextVar[str] = contextvars.ContextVar("session")
    flight: SingleFlight[str, Any] = SingleFlight()
    gate = threading.Event()
    begun = threading.Event()

    def work() -> str:
        if session.get() == "expired":
            begun.set()
            gate.wait(WAIT)
            raise Unauthenticated("expired")
        return session.get()

    def ask(name: str) -> Callable[[], object]:
        def call() -> object:
            session.set(name)
            return flight.do("key", work)

        return call

    leader, led = start(ask("expired"))
    assert begun.wait(WAIT)
    follower, followed = start(ask("valid"))
    wait_for(waiting(flight, 2))
    gate.set()
    join(leader, follower)
    assert (led, followed) == (["valid"], ["valid"])


def test_the_call_outlives_the_cancellation_of_the_caller_it_runs_for() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    switch = Cancellation()
    work = Work()

    def checked() -> object:
        result = work()
        check()
        return result

    leader, _ = start(lambda: flight.do("key", checked), switch)
    assert work.begun.wait(WAIT)
    follower, followed = start(lambda: flight.do("key", checked))
    wait_for(waiting(flight, 2))
    switch.cancel()
    join(leader)
    work.finish.set()
    join(follower)
    assert followed == ["result"]


def test_progress_is_told_to_all_and_replayed_to_who_comes_late() -> None:
    flight: SingleFlight[str, Any] = SingleFlight()
    work = Work()
    told: list[list[Event]] = [[], []]

    def measured() -> object:
        with meter("sha256:x", "pull", 100) as progress, meter("sha256:y", "pull", 5):
            progress.advance(40)
            return work()

    def ask(number: int) -> object:
        with reporting(told[number].append):
            return flight.do("key", measured)

    first, _ = start(lambda: ask(0))
    assert work.begun.wait(WAIT)
    second, _ = start(lambda: ask(1))
    wait_for(waiting(flight, 2))
    wait_for(lambda: len(told[1]) == 2)
    assert [(event.digest, event.current) for event in told[1]] == [("sha256:x", 40), ("sha256:y", 0)]
    work.finish.set()
    join(first, second)
    for events in told:
        assert {event.digest for event in events if event.completed} == {"sha256:x", "sha256:y"}


def test_race_of_giving_up_and_coming_anew() -> None:
    """However the two interleave, a caller who did not give up never sees a cancellation."""
    flight: SingleFlight[str, int] = SingleFlight()

    def work() -> int:
        sleep(0.0005)
        return 1

    for _ in range(200):
        switch = Cancellation()
        first, _outcome = start(lambda: flight.do("key", work), switch)
        second, outcome = start(lambda: flight.do("key", work))
        switch.cancel()
        join(first, second)
        assert outcome == [1]
    wait_for(lambda: flight._calls == {})


def test_massively_parallel_callers_share_few_calls_and_none_is_lost() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    lock = threading.Lock()
    runs = running = 0
    all_began = threading.Event()  # else a busy machine may run each call before the next caller has begun

    def work() -> int:
        nonlocal runs, running
        with lock:
            runs += 1
            running += 1
            assert running == 1
        try:
            assert all_began.wait(WAIT)
            sleep(0.02)
        finally:
            with lock:
                running -= 1
        return runs

    switches = [Cancellation() for _ in range(200)]
    started = [start(lambda: flight.do("key", work), switch) for switch in switches]
    all_began.set()
    for switch in switches[::3]:
        switch.cancel()
    join(*(thread for thread, _ in started))
    for number, (_, outcome) in enumerate(started):
        if number % 3:
            assert isinstance(outcome[0], int)
        else:
            assert isinstance(outcome[0], int | Cancelled)
    assert runs < 150


def test_a_newcomer_never_gets_the_refusal_of_a_call_it_did_not_share() -> None:
    """A refusal that has no more takers settles the call; who comes a moment later tries with means of its own."""
    flight: SingleFlight[str, Any] = SingleFlight()

    def refused() -> object:
        raise Unauthenticated("not you")

    for _ in range(300):
        first, _outcome = start(lambda: flight.do("key", refused))
        second, outcome = start(lambda: flight.do("key", lambda: "mine"))
        join(first, second)
        assert outcome == ["mine"]
