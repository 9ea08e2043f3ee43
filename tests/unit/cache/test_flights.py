"""Taking turns."""

from __future__ import annotations

import threading

import pytest

from blobtee.cache.flights import Turns
from blobtee.errors import Cancelled
from blobtee.tasks import Cancellation, scope


def test_one_at_a_time_for_each_key() -> None:
    turns = Turns()
    inside: list[int] = []
    most: list[int] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(30)
        for _ in range(50):
            with turns.of("key"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 400
    assert set(most) == {1}
    with turns.of("key"), turns.of("other"):
        pass


def test_waiting_can_be_cancelled_and_leaves_the_turn_to_others() -> None:
    turns = Turns()
    switch = Cancellation()
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            with scope(switch), turns.of("key"):
                raise AssertionError("not our turn")
        except BaseException as error:
            outcome.append(error)

    with turns.of("key"):
        thread = threading.Thread(target=wait)
        thread.start()
        switch.cancel()
        thread.join(60)
    assert isinstance(outcome[0], Cancelled)
    with turns.of("key"):
        pass
    with pytest.raises(Cancelled), scope(switch), turns.of("key"):
        pass
