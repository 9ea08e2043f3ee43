"""Bringing the rest of a blob, proving it, and making it one of the store (`spec/tee.md` sections 1 and 4)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.errors import AlreadyExists, DataLoss, DigestMismatch, NotFound
from blobtee.tee import digests
from blobtee.tee.claims import FILL, HURRY
from blobtee.tee.engine import Fetch
from blobtee.tee.hashing import Hasher
from blobtee.tee.map import CHUNK
from blobtee.tee.shared import Shared
from blobtee.tee.source import Source

_logger = logging.getLogger(__name__)

PART = 16 << 20
"""Bytes of a part: what one connection of several asks for at a time."""

CONNECTIONS = 3
"""Connections of one fill. A host is asked for four bodies at once at most, and one of them is for who waits."""

_WORTHWHILE = 1.5
"""Seconds that one connection would still need from which on several are used."""


class Fill:
    """One attempt to have all of `partial`, from one source. `run` may be called once."""

    def __init__(
        self,
        store: LocalStore,
        shared: Shared,
        source: Source,
        labels: Mapping[str, str] | None,
        progress: tasks.Progress,
        wanted: Callable[[], bool],
    ) -> None:
        """`wanted`: somebody in this process waits for it, and is not in the background himself."""
        self._store = store
        self._partial = shared.partial
        self._engine = shared.engine
        self._source = source
        self._pace = shared.pace
        self._labels = labels
        self._progress = progress
        self._wanted = wanted
        self._cancellation = tasks.current()
        self.resumed = False
        """Some of it was here before, from whatever source."""

    def run(self) -> None:
        """Bring, hash, promote. While another process does, wait for it, and go on where it was killed.

        `DigestMismatch`: what came is not the blob; it is gone, and open readers of it fail. Errors of the source and
        of the disk: what came stays.
        """
        partial = self._partial
        with self._telling(), partial.claims.holding(FILL, self._tell):
            if not partial.is_current():
                return  # promoted or dropped by who had the claim before
            if self._is_kept():
                partial.remove()  # made between a look at the store and the promotion of another
                return
            self.resumed = partial.map.count() > 0
            partial.allocate()
            hasher = Hasher(partial)
            self._engine.on_mark = hasher.woken
            try:
                with tasks.Group(name="blobtee-fill") as group:
                    self._cancellation = group.cancellation
                    try:
                        hashing = group.spawn(hasher.run)
                        self._bring(group, hasher)
                        hasher.ended()  # other processes bring chunks too, and tell nobody
                        hashing.result()
                    except BaseException:
                        hasher.stop()
                        raise
            finally:
                self._engine.on_mark = _nothing
            found, chunk_digests = hasher.finish()
            if found != partial.digest:
                self._drop(DigestMismatch(f"blob {partial.digest}", partial.digest, found))
            self._promote(chunk_digests, hasher.losses)

    def _is_kept(self) -> bool:
        try:
            return self._store.info(self._partial.digest).size == self._partial.size
        except (NotFound, DataLoss):
            return False

    @contextmanager
    def _telling(self) -> Iterator[None]:
        self._tell()
        try:
            yield
        finally:
            self._partial.claims.give(HURRY, HURRY + 1)

    def _tell(self) -> None:
        """Whoever is at it, in whatever process: somebody waits."""
        if self._wanted():
            self._partial.claims.take(HURRY, HURRY + 1, shared=True)

    def _is_wanted(self) -> bool:
        return self._wanted() or self._partial.claims.free(HURRY, HURRY + 1) == HURRY

    def _bring(self, group: tasks.Group, hasher: Hasher) -> None:
        """Everything that is missing, over one connection, or over several when that takes long."""
        self._progress.set(self._partial.map.count() * CHUNK)
        background = tasks.background() is not None
        begun = time.monotonic()
        sample = PART if self._partial.size > 2 * PART and not background else self._partial.size
        if self._take_part(hasher, sample):
            rate = sample / max(time.monotonic() - begun, 1e-6)
            left = (self._partial.chunks - self._partial.map.count()) * CHUNK
            if left > rate * _WORTHWHILE and not background:
                others = [group.spawn(self._take_parts, hasher) for _ in range(CONNECTIONS - 1)]
                self._take_parts(hasher)
                for other in others:
                    other.result()
            while self._take_part(hasher, self._partial.size):
                pass
        # What others were at may have failed for them, and is this one's then.
        self._engine.bring(0, self._partial.chunks, self._source)

    def _take_parts(self, hasher: Hasher) -> None:
        while self._take_part(hasher, PART):
            pass

    def _take_part(self, hasher: Hasher, nbytes: int) -> bool:
        """Bring the first part of at most `nbytes` that is missing and nobody is at; False when there is none."""
        fetch = self._engine.claim_next(-(-nbytes // CHUNK), self._source, filling=True)
        if fetch is None:
            return False
        self._run(fetch, hasher)
        return True

    def _run(self, fetch: Fetch, hasher: Hasher) -> None:
        throttle = self._pace.throttle(lambda: self._engine.is_hurried(fetch) or self._is_wanted())

        def moved(nbytes: int) -> None:
            self._progress.advance(nbytes)
            throttle(nbytes)

        leave = self._cancellation.on_cancel(lambda: fetch.cancellation.cancel(self._cancellation.reason))
        try:
            self._engine.run(fetch, hasher, moved)
        finally:
            leave()

    def _promote(self, chunk_digests: bytes, losses: bytes) -> None:
        partial = self._partial
        partial.sync(losses)
        digests.keep(partial.root, partial.digest, partial.size, chunk_digests)
        partial.promote(self._take_in)

    def _take_in(self, data: Path) -> None:
        # When it came another way meanwhile, this one is not needed; who has it open reads the same bytes in it.
        with suppress(AlreadyExists):
            self._store.take_in(data, self._partial.digest, self._labels)

    def _drop(self, error: DigestMismatch) -> None:
        """Nothing of what came may be used, and nobody knows which part was wrong."""
        partial = self._partial
        _logger.warning("%s; what came is thrown away", error)
        partial.spoil(lambda: DigestMismatch(f"blob {partial.digest}", error.expected, error.actual))
        partial.remove()
        raise error


def _nothing() -> None: ...


def with_another_host(source: Source, attempt: Callable[[], None]) -> None:
    """Make an attempt; after bytes that were wrong, one more from hosts that did not send them, if there are any."""
    try:
        attempt()
    except DigestMismatch as error:
        if not source.reject():
            raise
        _logger.warning("%s; asking another host", error)
        attempt()
