"""One thread works for all that come at once: each item once, nobody waits for ever, whatever breaks or interrupts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from blobtee.content.together import Together
from blobtee.errors import Cancelled


class Killed(BaseException):
    pass


class Work:
    """Keeps what it is called with; each call waits until it may go on."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.failure: BaseException | None = None
        self.together = Together(self._work)

    def _work(self, items: Sequence[int], _: Callable[[], None]) -> None:
        self.calls.append(list(items))
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        if self.failure is not None:
            raise self.failure

    def wait_for(self, waiting: int) -> None:
        """Until so many wait for a thread that works."""
        wait_until(lambda: len(self.together._coming) == waiting)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def first_and_three(work: Work, pool: ThreadPoolExecutor) -> list[Future[None]]:
    """One for whom work is done by itself, and three that wait for it."""
    futures = [pool.submit(work.together.do, 0)]
    assert work.begun.acquire(timeout=10)
    for item in (1, 2, 3):
        futures.append(pool.submit(work.together.do, item))
        work.wait_for(item)
    return futures


def test_who_comes_meanwhile_is_worked_for_at_once(work: Work, pool: ThreadPoolExecutor) -> None:
    futures = first_and_three(work, pool)
    assert not any(future.done() for future in futures)
    work.may_end.release(2)
    for future in futures:
        future.result(10)
    assert work.calls == [[0], [1, 2, 3]]
    work.may_end.release()
    work.together.do(4)
    assert work.calls[-1] == [4]


def test_many_threads_have_each_item_done_once(pool: ThreadPoolExecutor) -> None:
    done: list[int] = []

    def work(items: Sequence[int], _: Callable[[], None]) -> None:
        done.extend(items)

    together = Together(work)

    def some(start: int) -> None:
        for item in range(start, start + 200):
            together.do(item)
            assert item in done

    for future in [pool.submit(some, 1000 * n) for n in range(8)]:
        future.result(60)
    assert sorted(done) == sorted(1000 * n + item for n in range(8) for item in range(200))


@pytest.mark.parametrize("failure", [Killed(), ValueError("a defect")], ids=["interrupt", "defect"])
def test_what_breaks_the_work_reaches_all_and_holds_nobody(
    work: Work, pool: ThreadPoolExecutor, failure: BaseException
) -> None:
    futures = first_and_three(work, pool)
    work.may_end.release()
    futures.pop(0).result(10)
    work.failure = failure
    work.may_end.release()
    raised = [future.exception(10) for future in futures]
    assert sorted(type(each).__name__ for each in raised) == sorted([type(failure).__name__, "Cancelled", "Cancelled"])
    assert all(each is failure or (isinstance(each, Cancelled) and each.__cause__ is failure) for each in raised)
    work.failure = None
    work.may_end.release()
    work.together.do(4)
    assert work.calls == [[0], [1, 2, 3], [4]]


def interrupt(when: Callable[[], object]) -> threading.Thread:
    """A thread that interrupts this one once `when` has returned."""

    def run() -> None:
        when()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_takes_the_item_back_that_nobody_works_for_yet(work: Work, pool: ThreadPoolExecutor) -> None:
    futures = first_and_three(work, pool)
    thread = interrupt(lambda: work.wait_for(4))
    with pytest.raises(KeyboardInterrupt):
        work.together.do(4)
    thread.join()
    work.may_end.release(2)
    for future in futures:
        future.result(10)
    assert work.calls == [[0], [1, 2, 3]]


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_thread_stays_while_another_works_for_it(
    work: Work, pool: ThreadPoolExecutor, times: int
) -> None:
    futures = first_and_three(work, pool)

    def later() -> None:
        work.wait_for(4)
        work.may_end.release()
        assert work.begun.acquire(timeout=10)  # now the work of all four is done by one of the three

    def end() -> None:
        thread.join()
        for _ in range(times - 1):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # it must not have left by now
        left.append(over.is_set())
        work.may_end.release()

    over, left = threading.Event(), list[bool]()
    thread = interrupt(later)
    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(KeyboardInterrupt):
        work.together.do(4)
    over.set()
    ending.join()
    for future in futures:
        future.result(10)
    assert work.calls == [[0], [1, 2, 3, 4]]
    assert left == [False]


def test_who_is_called_to_work_for_others_and_interrupted_leaves_it_to_one_of_them(
    work: Work, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pool.submit(work.together.do, 0)
    assert work.begun.acquire(timeout=10)
    lead, interrupted = work.together._lead, threading.Event()

    def interrupted_once(turn: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise Killed
        lead(turn)  # type: ignore[arg-type]

    monkeypatch.setattr(work.together, "_lead", interrupted_once)
    others = []
    for item in (1, 2, 3):
        others.append(pool.submit(work.together.do, item))
        work.wait_for(item)
    work.may_end.release(2)
    first.result(10)
    assert isinstance(others[0].exception(10), Killed)
    for other in others[1:]:
        other.result(10)
    assert work.calls == [[0], [2, 3]]


class Interrupting:
    """A lock that interrupts who gives it back, once, if `when` says so."""

    def __init__(self, when: Callable[[], bool]) -> None:
        self._lock = threading.Lock()
        self._when: Callable[[], bool] | None = when

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        fires = self._when is not None and self._when()
        if fires:
            self._when = None
        self._lock.release()
        if fires:
            raise Killed


def test_an_interrupt_before_the_work_for_others_leaves_nobody_waiting(
    work: Work, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = first_and_three(work, pool)
    turns = list(work.together._coming)
    monkeypatch.setattr(work.together, "_lock", Interrupting(lambda: turns[2].taken))
    work.may_end.release()
    futures[0].result(10)
    raised = sorted(type(future.exception(10)).__name__ for future in futures[1:])
    assert raised == ["Cancelled", "Cancelled", "Killed"]
    work.may_end.release()
    work.together.do(4)
    assert work.calls == [[0], [4]]


class Waking:
    """The lock of who waits: it interrupts who wakes him, once he is awake."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._fires = True
        self.acquire = lock.acquire

    def release(self) -> None:
        self._lock.release()
        if self._fires:
            self._fires = False
            raise Killed


@pytest.mark.parametrize("where", ["before", "between"])
def test_an_interrupt_behind_the_work_leaves_nobody_waiting(
    work: Work, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The work is done: those that it was done for hear that, and only who is interrupted of the interrupt."""
    futures = first_and_three(work, pool)
    turns = list(work.together._coming)
    work.may_end.release()
    assert work.begun.acquire(timeout=10)  # the three, of whom the first works
    pass_on, second = work.together._pass_on, [True]
    if where == "between":
        turns[1].called = Waking(turns[1].called)  # type: ignore[assignment]

    def interrupted(turn: object) -> None:
        if where == "before" and second and second.pop():
            raise Killed
        pass_on(turn)  # type: ignore[arg-type]

    monkeypatch.setattr(work.together, "_pass_on", interrupted)
    work.may_end.release()
    raised = [type(future.exception(10)) for future in futures]
    assert raised == [type(None), Killed, type(None), type(None)]
    work.may_end.release()
    work.together.do(4)
    assert work.calls == [[0], [1, 2, 3], [4]]
