"""Threads that huddle run on one processor; afterwards each runs where it might before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from blobtee.core import huddle, spread

EVERYWHERE = os.sched_getaffinity(0)

several = pytest.mark.skipif(len(EVERYWHERE) < 2, reason="one processor is all there is")


def in_thread(work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(60)


def where() -> set[int]:
    return os.sched_getaffinity(0)


def huddled() -> set[int]:
    """Where this thread is, when it huddles: now and then one stays free for once, to find a processor for all."""
    for _ in range(3):
        huddle()
        if where() != EVERYWHERE:
            break
    return where()


@several
def test_all_run_on_one_processor_until_they_spread() -> None:
    met = threading.Barrier(8)

    def run() -> set[int]:
        huddled()
        met.wait(60)
        there = huddled()  # whoever found another processor meanwhile
        met.wait(60)
        spread()
        assert where() == EVERYWHERE
        return there

    with ThreadPoolExecutor(8) as pool:
        found = [each.result(60) for each in [pool.submit(run) for _ in range(8)]]
    assert {len(each) for each in found} == {1}
    assert len(set().union(*found)) == 1
    assert where() == EVERYWHERE


def test_who_does_not_huddle_stays() -> None:
    def run() -> None:
        spread()
        assert where() == EVERYWHERE

    in_thread(run)


def test_one_processor_is_enough() -> None:
    def run() -> None:
        alone = {min(EVERYWHERE)}
        os.sched_setaffinity(0, alone)
        huddled()
        assert where() == alone
        spread()
        assert where() == alone

    in_thread(run)


@several
def test_only_where_the_thread_may_run() -> None:
    def run() -> None:
        there = huddled()
        spread()
        elsewhere = EVERYWHERE - there
        os.sched_setaffinity(0, elsewhere)
        huddle()
        assert where() <= elsewhere
        spread()
        assert where() == elsewhere

    in_thread(run)


@several
def test_where_somebody_else_put_the_thread_it_stays() -> None:
    def run() -> None:
        elsewhere = {max(EVERYWHERE - huddled())}
        os.sched_setaffinity(0, elsewhere)
        spread()
        assert where() == elsewhere

    in_thread(run)
