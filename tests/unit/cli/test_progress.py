"""How far work is, on standard error."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

import pytest

from blobtee import tasks
from blobtee.cli import progress
from blobtee.cli.output import Output


@pytest.mark.parametrize("total", [0, 10])
def test_a_line_says_a_total_only_where_one_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total: int
) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0)
    with progress.shown("plain"), tasks.meter("", "create", total) as work:
        work.advance(5)
        under_way = capsys.readouterr().err.splitlines()[-1]
    assert under_way.startswith("create: 0 of 1 done, 5 B of 10 B, " if total else "create: 0 of 1 done, 5 B, ")
    assert capsys.readouterr().err.splitlines()[-1].startswith("create: 1 of 1 done, 5 B of ")


class Terminal(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> bytes:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()

    def until(self, seen: Callable[[bytes], bool]) -> None:
        deadline = time.monotonic() + 20
        while not seen(self.shown):
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.01)


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_a_result_is_on_a_line_of_its_own_among_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    output = Output(as_json=False, quiet=False)
    with progress.shown("tty") as output.clear, tasks.meter("sha256:abcdef", "copy", 1 << 20) as work:
        terminal.until(lambda shown: b"copy abcdef" in shown)
        output.line("result")
        before, _, after = terminal.shown.partition(b"result\n")
        assert before.endswith((b"\x1b[2K", b"\n")), "the bar is gone from where it comes to be"
        assert b"copy" not in after
        while b"iB/s" not in after:  # the bar comes again, with a rate in the units of its sizes
            work.advance(1 << 14)
            time.sleep(0.01)
            after = terminal.shown.partition(b"result\n")[2]


def test_what_ends_without_a_line_is_not_wiped_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    output = Output(as_json=False, quiet=False)
    with progress.shown("tty") as output.clear, tasks.meter("sha256:abcdef", "copy", 1 << 20) as work:
        terminal.until(lambda shown: b"copy abcdef" in shown)
        output.raw(b"no end of line")
        for _ in range(20):
            work.advance(1)
            time.sleep(0.02)
    assert terminal.shown.endswith(b"no end of line")
