"""One blob as one reader has it: with his source, and for the trust that he asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from blobtee.content.api import ReaderAt
from blobtee.content.trust import Trust
from blobtee.errors import BlobteeError, ConnectionFailed, DataLoss, LazyUnavailable, NotFound, TooManyRequests
from blobtee.tee.map import CHUNK
from blobtee.tee.partial import Partial
from blobtee.tee.shared import Shared
from blobtee.tee.source import Source

SMALL = 1 << 20
"""Bytes of a blob that is brought whole with the first of it."""

FILL_FROM = 0.3
"""Share of a blob that is here from which on the rest is brought too."""

FILL_AFTER = 4 << 20
"""Bytes read in order from the beginning after which the rest is brought too."""


class Blob:
    """Made by `Tee`; release it after use."""

    def __init__(
        self,
        shared: Shared,
        source: Source,
        fill: Callable[[], object],
        committed: Callable[[], ReaderAt],
        release: Callable[[], None],
    ) -> None:
        """`fill` has the blob in the store, whoever does it; `committed` opens it there."""
        self.partial: Partial = shared.partial
        self._shared = shared
        self._source = source
        self._fill = fill
        self._open_committed = committed
        self._release = release
        self._committed: ReaderAt | None = None

    def look_again(self) -> None:
        """Read the blob of the store if it has become one since it was looked for: where the partial one was made anew
        after that, all of it would come once more, and stay."""
        if not self.partial.map.count():
            with suppress(NotFound, DataLoss):
                self._committed = self._open_committed()
        if self._committed is not None:
            with suppress(BlobteeError):  # then a collection finds it
                self.partial.remove()

    def bring(self, first: int, last: int, trust: Trust, ahead: int) -> ReaderAt | None:
        """Have the chunks [first, last), as proven as `trust` says. They are in `partial` then; or in the reader that
        is given, where another process has made the blob one of the store."""
        partial = self.partial
        if self._committed is not None:
            return self._committed
        with unavailable(partial.digest):
            if trust is Trust.RAW or partial.proven:
                if not partial.is_here(first, last):
                    self._bring(first, last, trust, ahead)
            elif trust is Trust.STREAMED:
                self._stream(first, last)
            else:
                self._fill()
        if trust is Trust.RAW or partial.proven:
            return None
        # Of a blob that came into the store another way, not all need be in the partial one.
        if trust is Trust.STREAMED and last < partial.chunks and partial.is_here(first, last):
            return None
        with unavailable(partial.digest):
            self._committed = self._opened()
        return self._committed

    def release(self) -> None:
        if self._committed is not None:
            self._committed.close()
        self._release()

    def _opened(self) -> ReaderAt:
        """The blob of the store. One that somebody made room of before it was opened comes once more."""
        try:
            return self._open_committed()
        except NotFound:
            self._fill()
            return self._open_committed()

    def _bring(self, first: int, last: int, trust: Trust, ahead: int) -> None:
        partial = self.partial
        if partial.size <= SMALL and trust is not Trust.RAW:
            first, last = 0, partial.chunks
        self._shared.engine.bring(first, last, self._source, ahead=ahead // CHUNK)
        read_in_order = partial.map.next_absent(0, partial.chunks) * CHUNK
        if read_in_order >= FILL_AFTER or partial.map.count() >= FILL_FROM * partial.chunks:
            self._shared.background(self._source, self._fill)

    def _stream(self, first: int, last: int) -> None:
        """Wait for chunks while the blob is being filled; for the last one, until it is proven."""
        partial = self.partial
        while not partial.whole:
            if last < partial.chunks and partial.is_here(first, last):
                return
            filling = self._shared.background(self._source, self._fill)
            if last < partial.chunks:
                self._shared.engine.await_chunks(first, last, filling)
            else:
                filling.wait()
            if not filling.done:
                continue
            if filling.error is None:
                return
            # What failed for somebody else's source may go with this one's.
            if filling.source is self._source and not filling.stopped:
                raise filling.error


@contextmanager
def unavailable(digest: str) -> Iterator[None]:
    """What says that nobody can bring the blob now leaves the block as an error of its own, which a builder may take as
    a cache miss."""
    try:
        yield
    except (ConnectionFailed, NotFound, TooManyRequests) as error:
        raise LazyUnavailable(f"blob {digest} is not to be had now: {error}") from error
