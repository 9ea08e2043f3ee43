"""Keeping a store that is served below a size: blobs that a registry has are lazy again, the longest unused first.

Registries are asked whether they still have them, by a client that is there for nothing else: no RPC stands in a queue
behind a question, and none is asked while anything is locked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from blobtee import tasks
from blobtee.cache import Share
from blobtee.content import LocalStore
from blobtee.errors import BlobteeError, Cancelled, Closed
from blobtee.plugin.known import KnownBlobs
from blobtee.plugin.metrics import Metrics
from blobtee.transfer.evictable import Held
from blobtee.transfer.evicting import Shrunk, shrink, usage
from blobtee.transfer.obtaining import Obtaining
from blobtee.wording import counted

_logger = logging.getLogger(__name__)

GOAL = 90
"""Percent of the limit that are left when room was made: so that it is not made for each blob that comes."""

SPARE_SECONDS = 120.0
"""What was opened within this time stays: a client reads a blob by one call after another. More than the time that
opening is noted by (`content.lastuse`)."""

INTERVAL_SECONDS = 60.0
"""Between two looks, when nothing comes by this server: other programs write into the store too."""

PAUSE_SECONDS = 2.0
_SOONER = 5
"""Pauses between two looks, while what is in use now may go later, or what has just come may not be written yet."""
_PATIENCE = 10
"""Looks in a row after which what is in use is told of like everything else that stays."""
_STEP = 5
"""Percent of the limit that have to come before there is another look, when all that may go has gone."""


class Limiter:
    """Looks in a thread of its own, from `start` to `stop`: each time when what came may be too much, and now and then.
    No RPC waits for it."""

    def __init__(
        self,
        store: LocalStore,
        limit: int,
        known: KnownBlobs,
        metrics: Metrics,
        obtaining: Obtaining,
        *,
        spare: float = SPARE_SECONDS,
        interval: float = INTERVAL_SECONDS,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        """`limit`: bytes that the store may take (`usage`). `obtaining` is this one's alone. Times are
        seconds."""
        self._store = store
        self._limit = limit
        self._known = known
        self._metrics = metrics
        self._obtaining = obtaining
        self._failing: frozenset[str] = frozenset()
        self._held: Mapping[Held, Share] = {}
        self._spare = spare
        self._interval = interval
        self._pause = pause
        self._usage = 0
        self._came = 0
        self._slack = 0
        self._said = False
        self._waiting = 0  # looks in a row that left what may go later
        self._wanted = threading.Event()
        self._ending = threading.Event()
        self._cancellation = tasks.Cancellation()
        self._thread = threading.Thread(target=self._run, name="blobtee-limit", daemon=True)
        metrics.gauge("blobtee_store_bytes", "Bytes that the store takes, at the last look.", lambda: {"": self._usage})
        metrics.gauge("blobtee_store_limit_bytes", "Bytes that it may take.", lambda: {"": limit})
        metrics.gauge("blobtee_store_held_bytes", "Bytes that could not go at the last look, by why.", self._held_bytes)
        metrics.on_arrival = self.arrived

    def start(self) -> None:
        self._wanted.set()
        self._thread.start()

    def arrived(self, nbytes: int) -> None:
        """So many bytes of blobs have come. Costs nothing."""
        self._came += nbytes  # of several threads some may get lost; then the next ones count, or the time
        if self._came > self._slack and not self._wanted.is_set():
            self._wanted.set()

    def stop(self) -> None:
        """End after the blob that is going. What is too much is for the next start."""
        self._ending.set()
        self._cancellation.cancel("the server stops")
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Shrunk | None:
        """See how large the store is, and make room if that is too much; what went, or None."""
        self._came = 0
        self._usage = usage(self._store)
        shrunk: Shrunk | None = None
        if self._usage > self._limit:
            goal = self._limit * GOAL // 100
            shrunk = shrink(self._store, goal, clients=self._known, obtaining=self._obtaining, spare=self._spare)
            self._usage, self._held = shrunk.after, shrunk.held
            self._tell_of_registries()
            self._tell(shrunk)
        else:
            self._said, self._waiting, self._held = False, 0, {}
        self._slack = max(self._limit - self._usage, self._limit * _STEP // 100)
        return shrunk

    def _held_bytes(self) -> dict[str, float]:
        return {f'reason="{reason}"': share.nbytes for reason, share in self._held.items()}

    def _tell_of_registries(self) -> None:
        """Once when one fails, and once when it answers again."""
        failing = self._obtaining.failing
        for host in sorted(failing.keys() - self._failing):
            _logger.warning(
                "%s does not tell which blobs it still has; until it does, they stay: %s", host, failing[host]
            )
        for host in sorted(self._failing - failing.keys()):
            _logger.info("%s tells again which blobs it still has", host)
        self._failing = frozenset(failing)

    def _tell(self, shrunk: Shrunk) -> None:
        went = len(shrunk.blobs) + len(shrunk.partials)
        if went:
            self._metrics.count_evicted(went, shrunk.nbytes)
            _logger.info(
                "%s made lazy again, %d bytes; the store takes %d of %d bytes",
                counted(went, "blob"),
                shrunk.nbytes,
                shrunk.after,
                self._limit,
            )
        later = sum(shrunk.held.get(reason, Share()).nbytes for reason in (Held.RECENT, Held.USED))
        self._waiting = self._waiting + 1 if later and shrunk.after > self._limit else 0
        if shrunk.after <= self._limit:
            self._said = False
        elif not self._said and (shrunk.after - later > self._limit or self._waiting >= _PATIENCE):
            self._said = True
            told = ", ".join(
                f"{reason.text}: {share.blobs} ({share.nbytes} bytes)" for reason, share in shrunk.held.items()
            )
            _logger.warning(
                "the store takes %d bytes, may take %d, and no more may go (%s)%s",
                shrunk.after,
                self._limit,
                told,
                "".join(f"; {problem}" for problem in shrunk.problems),
            )

    def _run(self) -> None:
        was_told = False
        while not self._ending.is_set():
            # Bytes are told of before they are written: a look may miss the last of them, and there is one more.
            was_told = self._wanted.wait(_SOONER * self._pause if was_told or self._waiting else self._interval)
            self._wanted.clear()
            if self._ending.is_set():
                return
            try:
                with tasks.scope(self._cancellation):
                    self.look()
            except (Closed, Cancelled):
                return
            except Exception as error:
                defect = None if isinstance(error, BlobteeError) else error
                _logger.warning("cannot make room, next try later: %s", error, exc_info=defect)
            self._ending.wait(self._pause)
