"""Bandwidths as people write them, what they cost, and calls that nobody waits for."""

from __future__ import annotations

import time

import pytest

from blobtee import tasks
from blobtee.errors import Cancelled, InvalidArgument


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("5MB/s", 5e6),
        ("5M", 5e6),
        ("40Mbit/s", 5e6),
        ("40Mbps", 5e6),
        ("500KiB/s", 500 * 1024),
        ("500kB", 5e5),
        ("1.5 GB/s", 1.5e9),
        (" 20000 ", 20000),
        (".5Gbit", 0.5e9 / 8),
        (1 << 20, 1 << 20),
        (2.5e6, 2.5e6),
        (None, None),
    ],
)
def test_bandwidths(text: str | float | None, rate: float | None) -> None:
    assert tasks.bandwidth_of(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "fast", "5", "-5MB/s", "5mb/s", "5Mb/s", "5MB/h", "5 M B", "1e9", "0", "nan", "7kbit/s", "5MB/s/s", "٥MB/s"],
)
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(InvalidArgument):
        tasks.bandwidth_of(text)


@pytest.mark.parametrize("value", ["9" * 400 + "MB/s", 0, -1, 999, float("nan"), float("inf"), True])
def test_numbers_that_are_no_bandwidth(value: float | str) -> None:
    with pytest.raises(InvalidArgument):
        tasks.bandwidth_of(value)


def test_what_is_moved_in_the_background_is_paid_for() -> None:
    begun = time.monotonic()
    with tasks.in_background("100kB/s"):
        allowance = tasks.background()
        assert allowance is not None
        assert allowance.piece == 64 << 10
        for _ in range(4):
            allowance.pay(35_000)
        assert time.monotonic() - begun >= 0.35, "the first second's worth is given in advance"
        allowance.pay(1 << 40, lambda: True)
        with tasks.scope() as cancellation:
            cancellation.cancel()
            with pytest.raises(Cancelled):
                allowance.pay(1)
    assert tasks.background() is None


def test_without_a_bandwidth_nothing_is_waited_for() -> None:
    with tasks.in_background():
        allowance = tasks.background()
        assert allowance is not None
        allowance.pay(1 << 60)


def test_a_detached_call_has_a_cancellation_of_its_own_and_the_context_of_who_began_it() -> None:
    seen = []

    def work() -> None:
        seen.append(tasks.background())
        tasks.sleep(60)

    with tasks.scope() as outer, tasks.in_background():
        detached = tasks.Detached(work, "blobtee-test")
        expected = tasks.background()
        outer.cancel()
        assert not detached.done
        with pytest.raises(Cancelled):
            detached.wait()
    detached.stop("enough")
    detached.wait()
    assert seen == [expected]
    assert isinstance(detached.error, Cancelled)
