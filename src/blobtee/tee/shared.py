"""One blob that is read by parts, as all its readers in the process have it in common."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from pathlib import Path

from blobtee import tasks
from blobtee.errors import ResourceExhausted
from blobtee.oci import Digest
from blobtee.tee.engine import Engine
from blobtee.tee.pace import Pace
from blobtee.tee.partial import Partial
from blobtee.tee.source import Source


class Background:
    """A fill that nobody waits for, or not for all of it: it ends with the last reader of the blob."""

    def __init__(self, source: Source, fill: Callable[[], object]) -> None:
        self.source = source
        self.error: BaseException | None = None
        self._fill = fill
        self._done = threading.Event()
        self._cancellation = tasks.Cancellation()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="blobtee-fill", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            raise ResourceExhausted(f"no thread to be had: {error}") from error

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def stop(self) -> None:
        self._cancellation.cancel("nobody reads the blob any more")

    def wait(self) -> None:
        """Until it has ended, however that was."""
        while not self._done.wait(0.05):
            tasks.check()

    def _run(self) -> None:
        try:
            with tasks.scope(self._cancellation):
                self._fill()
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()


class Shared:
    """The blob's files and what fetches for them. `users` and `readers` are counted by `Tee`."""

    def __init__(self, root: Path, digest: Digest, size: int, pace: Pace) -> None:
        self.partial = Partial(root, digest, size)
        self.engine = Engine(self.partial, pace)
        self.pace = pace
        self.users = 0
        self.readers = 0
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._closing = threading.Lock()

    def background(self, source: Source, fill: Callable[[], object]) -> Background:
        """The fill that is under way; one of `source` is begun where there is none."""
        with self._lock:
            running = self._background
            if running is None or running.done:
                running = self._background = Background(source, fill)
            return running

    def stop(self) -> None:
        """Nobody reads any more."""
        with self._lock:
            running = self._background
        if running is not None:
            running.stop()

    def close(self) -> None:
        """End what is under way and let go of the files. A second call waits for the first."""
        self.stop()
        with self._closing:
            try:
                self.engine.close()
            finally:
                self.partial.close()
