"""One blob that is read by parts, as all its readers in the process have it in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from blobtee import tasks
from blobtee.oci import Digest
from blobtee.tee.engine import Engine
from blobtee.tee.pace import Pace
from blobtee.tee.partial import Partial
from blobtee.tee.source import Source
from blobtee.tee.turns import Turns


class Background(tasks.Detached):
    """A fill that nobody waits for, or not for all of it: it ends with the last reader of the blob."""

    def __init__(self, source: Source, fill: Callable[[], object]) -> None:
        super().__init__(fill, "blobtee-fill")
        self.source = source


class Shared:
    """The blob's files and what fetches for them. `users` and `readers` are counted by `Tee`."""

    def __init__(self, root: Path, digest: Digest, size: int, turns: Turns) -> None:
        self.partial = Partial(root, digest, size)
        self.pace = Pace(turns)
        self.engine = Engine(self.partial, self.pace)
        self.users = 0
        self.readers = 0
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._closing = threading.Lock()

    def background(self, source: Source, fill: Callable[[], object]) -> Background:
        """The fill that is under way; one of `source` is begun where there is none."""
        with self._lock:
            running = self._background
            # One that was stopped is of no use to who came after that.
            if running is None or running.done or running.stopped:
                running = self._background = Background(source, fill)
            return running

    def stop(self) -> None:
        """Nobody reads any more."""
        with self._lock:
            running = self._background
        if running is not None:
            running.stop("nobody reads the blob any more")

    def close(self) -> None:
        """End what is under way and let go of the files. A second call waits for the first."""
        self.stop()
        with self._closing:
            try:
                self.engine.close()
            finally:
                self.partial.close()
