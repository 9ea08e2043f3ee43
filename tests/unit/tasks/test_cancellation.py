from __future__ import annotations

import threading
import time

import pytest

from blobtee.errors import Cancelled, DeadlineExceeded
from blobtee.tasks import Cancellation, Event, check, current, meter, reporting, scope, shield, sleep


def test_outside_any_scope_nothing_is_cancelled() -> None:
    check()
    assert not current().cancelled


def test_the_reason_is_told() -> None:
    switch = Cancellation()
    switch.check()
    switch.cancel("enough")
    switch.cancel("again")
    assert switch.cancelled
    for _ in range(2):
        with pytest.raises(Cancelled, match="enough"):
            switch.check()
    late = Cancellation()
    late.cancel(DeadlineExceeded("too late"))
    with pytest.raises(Cancelled, match="too late") as caught:
        late.check()
    assert isinstance(caught.value.__cause__, DeadlineExceeded)


def test_a_child_goes_with_its_parent_and_never_the_reverse() -> None:
    parent = Cancellation()
    child, sibling, detached = (Cancellation(parent) for _ in range(3))
    child.cancel()
    assert not parent.cancelled
    detached.detach()
    parent.cancel("parent")
    assert sibling.cancelled
    assert not detached.cancelled
    assert Cancellation(parent).cancelled


def test_callbacks_run_once_or_at_once_or_not_at_all() -> None:
    switch = Cancellation()
    called: list[str] = []
    switch.on_cancel(lambda: called.append("kept"))
    forget = switch.on_cancel(lambda: called.append("taken back"))
    forget()
    forget()
    switch.cancel()
    switch.cancel()
    switch.on_cancel(lambda: called.append("late"))
    assert called == ["kept", "late"]


def test_a_callback_that_fails_keeps_no_other_from_running(caplog: pytest.LogCaptureFixture) -> None:
    switch = Cancellation()
    called: list[str] = []
    switch.on_cancel(lambda: called.append("first"))
    switch.on_cancel(lambda: called.remove("nothing"))
    switch.on_cancel(lambda: called.append("last"))
    switch.cancel()
    assert called == ["first", "last"]
    assert len(caplog.records) == 1


def test_scopes_nest_and_a_shield_keeps_out() -> None:
    with scope() as outer:
        with scope() as inner:
            outer.cancel("out")
            assert inner.cancelled
            with shield():
                check()
            with pytest.raises(Cancelled):
                check()
    check()


def test_sleep_ends_at_once_when_cancelled() -> None:
    with scope() as switch:
        timer = threading.Timer(0.02, switch.cancel)
        timer.start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            sleep(30)
        assert time.monotonic() - started < 15
        timer.join()


def test_a_meter_tells_its_first_and_last_event_with_the_outcome() -> None:
    events: list[Event] = []
    with reporting(events.append):
        with meter("sha256:x", "pull", 10) as progress:
            progress.advance(4)
            progress.set(10)
        with pytest.raises(KeyError):
            with meter("sha256:y", "pull"):
                raise KeyError("broken")
    assert [(e.digest, e.current, e.final) for e in events if e.final] == [
        ("sha256:x", 10, True),
        ("sha256:y", 0, True),
    ]
    assert events[0].current == 0
    assert events[-1].error is not None
    assert events[-1].completed is None
    with reporting(None), meter("sha256:z", "pull") as silent:
        silent.advance(1)
        assert silent.current == 1


def test_a_meter_does_not_tell_too_often() -> None:
    events: list[Event] = []
    with reporting(events.append), meter("sha256:x", "pull", 1000) as progress:
        for _ in range(1000):
            progress.advance(1)
    assert 2 <= len(events) <= 20
