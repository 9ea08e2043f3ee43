"""Threads that huddle run on one processor; afterwards each runs where it might before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

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


@several
def test_where_somebody_else_put_all_threads_they_stay() -> None:
    """As `taskset --all-tasks --pid` does. Which processor it is, is settled anew there meanwhile."""

    def run() -> None:
        there = huddled()
        elsewhere = {max(EVERYWHERE - there)}
        os.sched_setaffinity(0, elsewhere)

        def settle() -> None:
            assert where() == elsewhere
            end = time.monotonic() + 5.5
            while time.monotonic() < end:
                huddle()
                time.sleep(0.05)

        in_thread(settle)
        huddle()
        assert where() == elsewhere
        spread()
        assert where() == elsewhere

    in_thread(run)


# ---- control groups -------------------------------------------------------------------------------------------------

CHILD = """
import os, sys
from blobtee.core import huddle, spread
for line in sys.stdin:
    if line == "huddle\\n":
        for _ in range(3):
            huddle()
    elif line == "spread\\n":
        spread()
    print(*os.sched_getaffinity(0), flush=True)
"""


class Grouped:
    """A process in a control group of its own."""

    def __init__(self, group: Path, process: subprocess.Popen[str]) -> None:
        self._group = group
        self._process = process

    def allow(self, processors: Iterable[int]) -> None:
        (self._group / "cpuset.cpus").write_text(",".join(map(str, processors)))

    def join(self) -> None:
        (self._group / "cgroup.procs").write_text(str(self._process.pid))

    def do(self, what: str) -> set[int]:
        """Where it may run afterwards."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return {int(number) for number in self._process.stdout.readline().split()}


@contextmanager
def a_group() -> Iterator[Path]:
    for root in (Path("/sys/fs/cgroup/cpuset"), Path("/sys/fs/cgroup")):
        group = root / f"blobtee-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "cpuset.cpus").exists():
                if (root / "cpuset.mems").exists():  # version 1 gives a new group no memory
                    (group / "cpuset.mems").write_text((root / "cpuset.mems").read_text())
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("control groups cannot be made here")


@pytest.fixture
def grouped() -> Iterator[Grouped]:
    with (
        a_group() as group,
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        found = Grouped(group, process)
        found.allow(EVERYWHERE)
        found.join()
        yield found


@several
def test_who_huddled_where_it_may_run_no_more_may_run_everywhere_when_that_is_allowed_again(grouped: Grouped) -> None:
    there = grouped.do("huddle")
    assert len(there) == 1
    grouped.allow(EVERYWHERE - there)
    assert grouped.do("spread") == EVERYWHERE - there
    grouped.allow(EVERYWHERE)
    assert grouped.do("look") == EVERYWHERE


@pytest.mark.skipif(len(EVERYWHERE) < 3, reason="two processors are all there is")
def test_who_huddled_once_may_run_where_it_is_allowed_later(grouped: Grouped) -> None:
    first = set(sorted(EVERYWHERE)[:2])
    grouped.allow(first)
    assert len(grouped.do("huddle")) == 1
    assert grouped.do("spread") == first
    grouped.allow(EVERYWHERE)
    assert grouped.do("look") == EVERYWHERE
