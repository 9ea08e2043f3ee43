from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from blobtee.errors import Cancelled, Closed, InvalidArgument, NotFound
from blobtee.tasks import Ordered, scope


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("blobtee-ordered")]


def giving(value: int) -> Callable[[], int]:
    return lambda: value


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_calls(threads: int) -> None:
    ordered: Ordered[int] = Ordered(threads)
    for value in range(100):
        ordered.put(giving(value))
    assert [ordered.take() for _ in range(len(ordered))] == list(range(100))
    with pytest.raises(IndexError):
        ordered.take()
    ordered.close()


def test_calls_run_side_by_side() -> None:
    ordered: Ordered[int] = Ordered(3)
    meeting = threading.Barrier(3, timeout=10)
    for _ in range(3):
        ordered.put(meeting.wait)
    assert sorted(ordered.take() for _ in range(3)) == [0, 1, 2]
    ordered.close()


def test_an_error_comes_in_its_turn_and_ends_nothing_else() -> None:
    def fail() -> int:
        raise NotFound("nothing")

    ordered: Ordered[int] = Ordered(2)
    for call in (giving(1), fail, giving(3)):
        ordered.put(call)
    assert ordered.take() == 1
    with pytest.raises(NotFound):
        ordered.take()
    assert ordered.take() == 3
    ordered.close()


def test_one_thread_is_the_callers() -> None:
    ordered: Ordered[int] = Ordered(1)
    for _ in range(10):
        ordered.put(threading.get_ident)
    assert {ordered.take() for _ in range(10)} == {threading.get_ident()}
    ordered.close()


def test_who_waits_is_woken_by_a_cancellation() -> None:
    ordered: Ordered[int] = Ordered(2)
    begun, released = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        released.wait(10)
        return 1

    ordered.put(slow)
    ordered.put(giving(2))
    assert begun.wait(10)
    with scope() as cancellation:
        timer = threading.Timer(0.05, cancellation.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            ordered.take()
        timer.join()
    released.set()
    assert [ordered.take(), ordered.take()] == [1, 2]
    ordered.close()


def test_closing_forgets_what_has_not_begun() -> None:
    ordered: Ordered[int] = Ordered(1)
    done: list[int] = []
    ordered.put(lambda: done.append(1) or 1)  # type: ignore[func-returns-value]
    ordered.close()
    ordered.close()
    assert not done
    with pytest.raises(Closed):
        ordered.put(giving(1))


def test_no_threads_is_a_mistake() -> None:
    with pytest.raises(InvalidArgument, match="one thread"):
        Ordered(0)


def test_a_call_that_is_interrupted_does_not_hang_the_next() -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    ordered: Ordered[int] = Ordered(1)
    ordered.put(interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ordered.take()
    ordered.close()
