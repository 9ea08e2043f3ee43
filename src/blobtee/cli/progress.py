"""Progress on standard error: bars on a terminal, a line a second elsewhere, or JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from blobtee.cli.sizes import nbytes
from blobtee.tasks import Event, Reporter, reporting

STYLES = ("auto", "tty", "plain", "rawjson", "quiet")
_MAX_BARS = 12
_INTERVAL = 1.0


@contextmanager
def shown(style: str) -> Iterator[Callable[[bool], None]]:
    """Show the block's work. `auto` is `tty` on a terminal that can move its cursor, `plain` elsewhere. The block gets
    what clears the terminal for what somebody else prints; bars come again by themselves, unless it is told that they
    must not."""
    if style == "auto":
        smart = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        style = "tty" if smart else "plain"
    if style == "quiet":
        with reporting(None):
            yield lambda for_good: None
        return
    with _SHOWS[style]() as reporter, reporting(reporter):
        yield reporter.clear if isinstance(reporter, _Bars) else lambda for_good: None


@contextmanager
def _bars() -> Iterator[Reporter]:
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.clear(True)


class _Rate(ProgressColumn):
    """In the units of everything else."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{nbytes(speed)}/s")


class _Bars:
    """A bar for each piece of work, the finished ones counted in one line above."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _Rate(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._started = False
        self._ended = False

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._ended:
                return
            key = (event.digest, event.action)
            if event.final:
                task = self._tasks.pop(key, None)
                if task is not None:
                    self._progress.remove_task(task)
                return
            if not self._started:
                self._started = True
                self._progress.start()
            if key not in self._tasks:
                if len(self._tasks) >= _MAX_BARS:
                    return
                self._tasks[key] = self._progress.add_task(_title(event), total=event.total or None)
            self._progress.update(self._tasks[key], completed=event.current)

    def clear(self, for_good: bool) -> None:
        with self._lock:
            self._ended = self._ended or for_good
            if self._started:
                self._started = False
                self._progress.stop()


def _title(event: Event) -> str:
    return f"{event.action} {event.digest.partition(':')[2][:12]}".strip()


@contextmanager
def _lines() -> Iterator[Reporter]:
    lines = _Lines()
    try:
        yield lines
    finally:
        lines.close()


class _Lines:
    """What is done so far, a line a second at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str], Event] = {}
        self._started = time.monotonic()
        self._next = self._started + _INTERVAL
        self._printed = False

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._latest[event.digest, event.action] = event
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _INTERVAL
                self._print()

    def close(self) -> None:
        with self._lock:
            if self._printed:
                self._print()

    def _print(self) -> None:
        self._printed = True
        events = self._latest.values()
        done = sum(event.completed is not None for event in events)
        current = sum(event.current for event in events)
        known = all(event.total or event.final for event in events)
        total = f" of {nbytes(sum(max(event.total, event.current) for event in events))}" if known else ""
        seconds = max(time.monotonic() - self._started, 0.001)
        actions = ", ".join(dict.fromkeys(event.action for event in events))
        rate = nbytes(current / seconds)
        _say(f"{actions}: {done} of {len(events)} done, {nbytes(current)}{total}, {rate}/s")


@contextmanager
def _json() -> Iterator[Reporter]:
    def tell(event: Event) -> None:
        _say(json.dumps({key: value for key, value in asdict(event).items() if value is not None}))

    yield tell


_SHOWS = {"tty": _bars, "plain": _lines, "rawjson": _json}


def _say(text: str) -> None:
    # Reporters must not raise, whoever has closed standard error.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
