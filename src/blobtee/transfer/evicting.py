"""Making room in a store: blobs that can be had again give their bytes back, the longest unused first.

What goes becomes lazy again. Its descriptor, sources, labels and refs stay, and so do digests of its chunks: whoever
wants some of it again is brought the chunks that he needs, each proven (`spec/tee.md` section 4). Whole blobs go, and
no holes are punched: who has one open reads on, and never sees zeros.

Killed at any point, nothing is lost: the digests are on the disk before anything goes, then the row that keeps the
labels; then the file's name goes, and at last the directory is synced. Whether it still may go is asked inside a
transaction, as holding is one: who holds a blob first and looks then, finds it there to stay, or gone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from blobtee.cache import Share
from blobtee.content import LocalStore
from blobtee.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SizeMismatch,
    StorageError,
    StorageFull,
)
from blobtee.oci import Digest
from blobtee.tasks import check
from blobtee.tee import leftovers
from blobtee.tee.proving import keep_proof
from blobtee.transfer.evictable import (
    Candidate,
    Clients,
    Held,
    Outdated,
    Survey,
    broken_nbytes,
    index_nbytes,
    index_nbytes_of,
)
from blobtee.transfer.obtaining import Obtaining

_LOOKS = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shrunk:
    """What went (or would): `blobs`, which are lazy now, and `partials`, with their bytes. `before` and `after` are
    bytes that the store takes (`usage`). `held`: what the rest of it is that may not go, by the reason.
    `kept`: why registries could not be found to have some of that still. `problems`, in a sentence each.
    """

    target: int
    before: int
    after: int
    blobs: Mapping[Digest, int] = field(default_factory=dict)
    partials: Mapping[Digest, int] = field(default_factory=dict)
    held: Mapping[Held, Share] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        return self.after <= self.target

    @property
    def nbytes(self) -> int:
        """Bytes that are free now; of a blob that somebody has open, when he closes it."""
        return sum(self.blobs.values()) + sum(self.partials.values())


@dataclass(frozen=True)
class Gone:
    """What is to be looked upon as gone: a plan goes on from another plan."""

    blobs: Collection[Digest] = ()
    partials: Collection[Digest] = ()
    ingests: Collection[str] = ()


def usage(store: LocalStore) -> int:
    """Bytes that a store takes, but for its metadata: blobs, partial blobs, unfinished writes, what is kept of layers
    beside them, and what was set aside as damaged."""
    return (
        sum(info.size for info in store.walk())
        + sum(partial.nbytes for partial in leftovers.leftovers(store.root))
        + sum(status.offset for status in store.statuses())
        + sum(index_nbytes(store.root).values())
        + sum(broken_nbytes(store.root))
    )


def shrink(
    store: LocalStore,
    size: int,
    *,
    clients: Clients | None = None,
    obtaining: Obtaining | None = None,
    spare: float = 0,
    dry_run: bool = False,
    gone: Gone | None = None,
) -> Shrunk:
    """Have the store take at most `size` bytes (`usage`), as far as that goes: blobs that can be had again, and partial
    ones, give their bytes back, the longest unused first, until it is enough.

    What was used within the last `spare` seconds stays. `clients` are those who hold blobs by digest; without them,
    what they hold stays. `obtaining` is asked before a blob goes whether it can still be had; without it, what is
    recorded of that is believed. With `dry_run` nothing goes, and the answer is what would. May run while others work
    on the store, and several at once.

    `InvalidArgument`; `PermissionDenied`: the store may only be read. `InvalidDocument`, `TooLarge`: the list of images
    cannot be read. After any error, and after a crash, the store is sound. Nothing goes while a document of an image is
    damaged, so that nobody knows what belongs to it; `problems` says so.
    """
    if not isinstance(size, int) or size < 0 or not math.isfinite(spare) or spare < 0:
        raise InvalidArgument(f"no size to shrink to, or no time to spare: {size} bytes, {spare} s")
    if store.read_only:
        raise PermissionDenied(f"the store in {store.root} is read-only")
    work = _Work(store, size, int(spare * 1_000_000_000), dry_run, gone or Gone(), obtaining)
    for _ in range(_LOOKS):
        survey = Survey(store, clients)
        if survey.blind:
            return work.result(survey, "nothing goes while nobody knows what belongs to that")
        try:
            work.make_room(survey)
        except Outdated:
            continue
        return work.result(survey)
    return work.result(survey, "other programs kept changing the images; run it again for the rest")


class _Work:
    """What has gone so far, and what would not."""

    def __init__(
        self, store: LocalStore, size: int, spare_ns: int, dry_run: bool, gone: Gone, obtaining: Obtaining | None
    ) -> None:
        self._store = store
        self._size = size
        self._spare_ns = spare_ns
        self._dry_run = dry_run
        self._gone = gone
        self._obtaining = obtaining
        self._kept: dict[Digest, str] = {}
        self._before: int | None = None
        self._after = 0
        self._blobs: dict[Digest, int] = {}
        self._partials: dict[Digest, int] = {}
        self._refused: dict[Candidate, Held] = {}
        self._is_settled = False
        self._problems: dict[Digest, str] = {}

    def make_room(self, survey: Survey) -> None:
        """Take what may go until it is enough. `Outdated`: the survey does not hold any more; what went, went."""
        self._refused = {}
        self._measure(survey)
        self._is_settled = False
        for candidate in survey.candidates:
            if self._after <= self._size:
                return
            check()
            if candidate.digest in (self._gone.partials if candidate.partial else self._gone.blobs):
                continue
            reason = Held.RECENT if self._is_recent(candidate.used_at) else self._take(survey, candidate)
            if reason is None:
                (self._partials if candidate.partial else self._blobs)[candidate.digest] = candidate.nbytes
                self._after -= candidate.nbytes - self._grown(survey, candidate)
            else:
                self._refused[candidate] = reason

    def result(self, survey: Survey, *problems: str) -> Shrunk:
        if self._before is None:
            self._measure(survey)
        assert self._before is not None
        held: dict[Held, list[int]] = {}
        for digest, reason in survey.held.items():
            if digest not in self._gone.blobs:
                held.setdefault(reason, []).append(survey.blobs[digest])
        for candidate, reason in self._refused.items():
            held.setdefault(reason, []).append(candidate.nbytes)
        for reason, known, gone in (
            (Held.UNFINISHED, survey.unfinished, self._gone.ingests),
            (Held.INDEXES, survey.indexes, self._gone.blobs),
        ):
            held.setdefault(reason, []).extend(nbytes for name, nbytes in known.items() if name not in gone)
        held.setdefault(Held.DAMAGED, []).extend(survey.broken)
        return Shrunk(
            self._size,
            self._before,
            self._after,
            dict(self._blobs),
            dict(self._partials),
            {reason: Share(len(sizes), sum(sizes)) for reason, sizes in sorted(held.items()) if sizes},
            (*survey.problems, *self._problems.values(), *problems),
            tuple(self._kept.values()),
        )

    def _measure(self, survey: Survey) -> None:
        self._after = survey.nbytes - sum(
            nbytes
            for known, gone in (
                (survey.blobs, self._gone.blobs),
                (survey.partials, self._gone.partials),
                (survey.unfinished, self._gone.ingests),
                (survey.indexes, self._gone.blobs),
            )
            for name, nbytes in known.items()
            if name in gone
        )
        if self._before is None:
            self._before = self._after

    def _take(self, survey: Survey, candidate: Candidate) -> Held | None:
        """Take one; why it stays, or None."""
        asked: Collection[frozenset[str]] | None = None
        if self._obtaining is not None:
            # Outside of any transaction: an answer may take its time.
            asked = survey.wanted(candidate)
            if refusal := self._obtaining.refusal(candidate.digest, candidate.size, asked):
                self._kept[candidate.digest] = refusal
                return Held.UNOBTAINABLE
            self._kept.pop(candidate.digest, None)
        try:
            taken = self._would(survey, candidate, asked) if self._dry_run else self._did(survey, candidate, asked)
        except NotFound:
            return Held.USED  # somebody else was quicker
        except (DataLoss, PermissionDenied, SizeMismatch, StorageFull, StorageError) as error:
            # One that cannot go must not keep the others.
            self._problems[candidate.digest] = str(error)
            return Held.DAMAGED
        return None if taken else Held.USED

    def _grown(self, survey: Survey, candidate: Candidate) -> int:
        """Bytes of what is kept now that proves the chunks of one that went."""
        if candidate.partial or self._dry_run:
            return 0
        before = survey.indexes.get(candidate.digest, 0)
        survey.indexes[candidate.digest] = index_nbytes_of(self._store.root, candidate.digest)
        return survey.indexes[candidate.digest] - before

    def _is_recent(self, used_at: int) -> bool:
        # What is further ahead than that was used while the clock went wrong: it must not stay until then.
        return self._spare_ns > 0 and abs(time.time_ns() - used_at) < self._spare_ns

    def _would(self, survey: Survey, candidate: Candidate, asked: Collection[frozenset[str]] | None) -> bool:
        if candidate.partial:
            return True
        with self._store.metadata.transaction(), survey.may_go(candidate, asked) as allowed:
            return allowed

    def _did(self, survey: Survey, candidate: Candidate, asked: Collection[frozenset[str]] | None) -> bool:
        digest = candidate.digest
        if candidate.partial:
            return leftovers.remove(self._store.root, digest)
        if not self._is_settled:
            self._store.layout.settle()
            self._is_settled = True
        keep_proof(self._store, digest, candidate.size)
        if self._is_recent(self._store.last_used(digest)):
            return False  # asking and proving took their time
        return self._store.evict(digest, lambda: survey.may_go(candidate, asked))
