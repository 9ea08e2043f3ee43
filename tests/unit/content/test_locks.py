"""Locks between threads, objects and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blobtee.content.locks import LOCK_FILE, Locks
from blobtee.errors import Closed


def test_a_lock_is_held_once_whoever_asks(tmp_path: Path) -> None:
    one, two = Locks(tmp_path), Locks(tmp_path)
    assert one.try_acquire("a")
    assert not one.try_acquire("a")
    assert not two.try_acquire("a")
    assert two.try_acquire("b")
    one.release("a")
    assert two.try_acquire("a")
    one.release("a")
    assert not one.try_acquire("a")
    one.close()
    two.release("a")
    two.release("b")
    two.close()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_closing_waits_for_who_holds_a_lock_and_gives_out_no_more(tmp_path: Path) -> None:
    one, two = Locks(tmp_path), Locks(tmp_path)
    assert one.try_acquire("a")
    closing = threading.Thread(target=one.close)
    closing.start()
    closed = False
    while not closed:
        try:
            if one.try_acquire("b"):
                one.release("b")
        except Closed:
            closed = True
    assert not two.try_acquire("a")
    assert closing.is_alive()
    one.release("a")
    closing.join()
    one.close()
    one.release("a")
    assert two.try_acquire("a")
    with pytest.raises(Closed):
        one.try_acquire("b")
    with pytest.raises(Closed), one.holding("b"):
        pass
    two.release("a")
    two.close()


def test_closing_gives_everything_back_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.content.locks.PATIENCE", 0.01)
    one, two = Locks(tmp_path), Locks(tmp_path)
    assert one.try_acquire("lost")
    one.close()
    one.release("lost")
    assert two.try_acquire("lost")
    two.close()


def test_waiting_threads_and_objects_go_in_one_after_the_other(tmp_path: Path) -> None:
    every = [Locks(tmp_path) for _ in range(3)]
    inside = 0
    seen: list[int] = []

    def work(locks: Locks) -> None:
        nonlocal inside
        for _ in range(20):
            with locks.holding("a"):
                inside += 1
                seen.append(inside)
                inside -= 1

    threads = [threading.Thread(target=work, args=(every[number % 3],)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for locks in every:
        locks.close()
    assert seen == [1] * 180


def test_a_process_that_holds_a_lock_keeps_others_out_until_it_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from blobtee.content.locks import Locks\n"
        "locks = Locks(Path(sys.argv[1]))\n"
        "print(locks.try_acquire('a'), flush=True)\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    locks = Locks(tmp_path)
    with holder.stdout as output:
        assert output.readline() == b"True\n"
        assert not locks.try_acquire("a")
        assert locks.try_acquire("b")
        holder.kill()
        holder.wait()
    assert locks.try_acquire("a")
    locks.release("a")
    locks.release("b")
    locks.close()


class Killed(BaseException):
    pass


class Interrupting:
    """A mutex that interrupts who gives it back, once."""

    def __init__(self, mutex: threading.Lock) -> None:
        self._mutex = mutex
        self._fires = True

    def __enter__(self) -> None:
        self._mutex.acquire()

    def __exit__(self, *_: object) -> None:
        self._mutex.release()
        fires, self._fires = self._fires, False
        if fires:
            raise Killed


@pytest.mark.parametrize("waits", [False, True])
def test_an_interrupt_before_the_kernel_is_asked_leaves_nothing_held(tmp_path: Path, waits: bool) -> None:
    one, two = Locks(tmp_path), Locks(tmp_path)
    one._mutex = Interrupting(one._mutex)  # type: ignore[assignment]
    with pytest.raises(Killed):
        one.holding("a").__enter__() if waits else one.try_acquire("a")
    for locks in (one, two, one):
        assert locks.try_acquire("a")
        locks.release("a")
    one.close()
    two.close()
