"""Bringing an image's layers in the background, while others read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from blobtee import tasks
from blobtee.cache import Remote
from blobtee.errors import TooLarge
from blobtee.image.tree import Tree

_AT_ONCE = 3
"""Layers that come at a time, each by one connection. A host is asked for four bodies at once at most, and one of them
is for who reads."""

MAX_HINTS = 64 << 20
"""Bytes of a list of paths."""


class Filling:
    """Under way from when it is made; it ends with the image. Thread-safe."""

    def __init__(
        self, tree: Tree, remote: Remote, digest: str, first: Iterable[str], rest: bool, bandwidth: float | None
    ) -> None:
        """`tree` brings the paths `first`, and `remote` then the rest; `digest` is the image's, for who shows it."""
        self.prefetched = 0
        """Bytes of blobs that the paths are made of, so far."""
        self.missing: tuple[str, ...] = ()
        """Paths that the image has not, once all have been looked at."""
        self._tree = tree
        self._remote = remote
        self._digest = digest
        self._first = list(first)
        self._rest = rest
        with tasks.in_background(bandwidth):
            self._work = tasks.Detached(self._fill, "blobtee-filling")

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._work.done

    def wait(self) -> None:
        """Wait for the end. Errors: those of `Tree.prefetch` and of `Remote.unlazy`; what came is kept. `Cancelled`
        also after `stop`, and when who waits is cancelled, which does not end it."""
        self._work.wait()
        if self._work.error is not None:
            raise self._work.error

    def stop(self) -> None:
        """End it, and wait until it has. What came is kept; filling again goes on there. A second call does nothing."""
        self._work.stop("the filling was stopped")
        with tasks.shield():
            self._work.wait()

    def _fill(self) -> None:
        if self._first:
            with tasks.meter(self._digest, "prefetch") as progress:
                prefetched = self._tree.prefetch(self._first, progress.advance)
            self.prefetched, self.missing = prefetched.nbytes, prefetched.missing
        if self._rest:
            self._remote.unlazy(at_once=_AT_ONCE)


def read_hints(file: BinaryIO) -> list[str]:
    """The paths in `file`, one a line, as they are but for the line's end; empty lines are left out.

    `TooLarge` above `MAX_HINTS`.
    """
    raw = file.read(MAX_HINTS + 1)
    if len(raw) > MAX_HINTS:
        raise TooLarge(f"a list of paths of more than {MAX_HINTS} bytes")
    lines = (line.removesuffix(b"\r") for line in raw.split(b"\n"))
    return [line.decode(errors="surrogateescape") for line in lines if line]
