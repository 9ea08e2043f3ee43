"""Collecting what nothing needs any more, while others work on the store.

First a look at everything finds what is needed (`_Survey`): the leases before the images, since work that ends lets its
image have a name before its lease goes. Then the rest is removed in batches, each in a transaction of the database.
Whoever wants a blob to stay puts it under a lease, which is a transaction too, and only then looks whether it is there:
so it sees the blob gone, or the batch sees the lease. When a lease or a name has come that the look did not see, there
is a new look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from blobtee.cache import holders
from blobtee.cache.inuse import in_use
from blobtee.cache.leases import variants_lease
from blobtee.cache.marking import Marking
from blobtee.cache.records import Record
from blobtee.content import LocalStore
from blobtee.content.layout import Layout
from blobtee.errors import InvalidArgument, RefLocked
from blobtee.oci import Digest
from blobtee.seeking import kept
from blobtee.tasks import check
from blobtee.tee import leftovers

if TYPE_CHECKING:
    from blobtee.cache.manager import CacheManager

GRACE_SECONDS = 3600.0
"""Programs that know nothing of leases (skopeo, for one) write an image's blobs first and its name last."""

INGEST_GRACE_SECONDS = 24 * 3600.0
"""Unfinished and partial blobs are what the next attempt goes on from: they stay this long, unless there is no grace at
all. Partial blobs of images stay with these."""

_BATCH = 200
_LOOKS = 100
_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """So many blobs, of so many bytes together."""

    blobs: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Collected:
    """What was removed (or would be): `blobs` with their sizes in bytes, `records` of refs, `leases`, `ingests` with
    the bytes that had come, and `partials`, blobs that were read by parts, with their bytes on the disk.

    What stays, each blob counted once: for `images`, else for `leases` of users, of work under way, and blobs labelled
    as roots, else for the `cache`: refs that are open or young, and all that is younger than the grace.
    `problems`: what is damaged, in a sentence each.
    """

    blobs: Mapping[Digest, int] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    leases: tuple[str, ...] = ()
    ingests: Mapping[str, int] = field(default_factory=dict)
    partials: Mapping[Digest, int] = field(default_factory=dict)
    images: Share = Share()
    held: Share = Share()
    cache: Share = Share()
    problems: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that are free now, those of unfinished and partial blobs included."""
        return sum(self.blobs.values()) + sum(self.ingests.values()) + sum(self.partials.values())


class _Outdated(Exception):
    """Something came that the survey did not see."""


def collect(manager: CacheManager, *, dry_run: bool, grace: float) -> Collected:
    """See `CacheManager.collect`."""
    if not isinstance(grace, (int, float)) or not math.isfinite(grace) or grace < 0:
        raise InvalidArgument(f"the grace is a number of seconds, not {grace!r:.40}")
    done = _Done()
    for _ in range(_LOOKS):
        survey = _Survey(manager, grace)
        if survey.lost:
            return done.collected(survey, *survey.lost, "nothing is removed while nobody knows what that needs")
        if survey.marking.blind:
            return done.collected(survey, "nothing is removed while nobody knows what belongs to that")
        if dry_run:
            done.plan(survey)
            return done.collected(survey)
        with suppress(_Outdated):
            _Sweep(manager, survey, done).run()
            return done.collected(survey)
    return done.collected(survey, "other programs kept changing the images; run it again for the rest")


class _Survey:
    """What is to go, and what stays and why, as of one look."""

    def __init__(self, manager: CacheManager, grace: float) -> None:
        self._manager = manager
        self._now = time.time_ns()
        self._grace = int(min(grace, 1 << 32) * 1_000_000_000)
        self._longer_grace = max(self._grace, int(INGEST_GRACE_SECONDS * 1_000_000_000)) if self._grace else 0
        store = manager.store
        layout = getattr(store, "layout", None)
        self._layout = layout if isinstance(layout, Layout) else None
        root = store.root if isinstance(store, LocalStore) else None
        recorded = holders.recorded(root) if root is not None else set()
        holdings = {holding.lease.id: holding for holding in manager.leases.holdings()}
        self.lost = holders.lost(root, recorded, holdings) if root is not None else []
        self.fingerprint = self._layout.fingerprint() if self._layout is not None else None
        roots = self._layout.all() if self._layout is not None else []
        records = {record.id: record for record in manager.records.all()}
        self.marking = marking = Marking(store)
        of_records = {name for record_id in records for name in (record_id, variants_lease(record_id))}
        self.leases = [name for name, holding in holdings.items() if not holding.counts and name not in of_records]

        self.of_images = marking.images(roots)
        self.of_leases = marking.linked(marking.labelled_roots())
        for name, holding in holdings.items():
            if name not in of_records and holding.counts:
                self.of_leases |= _held(marking, holding.lease.flat, holding.digests)
        needed = self.of_images | self.of_leases
        created = {name: holding.lease.created_at for name, holding in holdings.items()}
        kept = self._kept(records, needed, created)
        self.records = _children_first([record for record in records.values() if record.id not in kept])
        for record_id in kept:
            for name in (record_id, variants_lease(record_id)):
                if name in holdings:
                    needed |= _held(marking, holdings[name].lease.flat, holdings[name].digests)
        young = [digest for digest, known in marking.blobs.items() if self._is_young(known.since)]
        needed |= marking.linked(young)
        self.needed = needed
        self.blobs = {digest: known.size for digest, known in marking.blobs.items() if digest not in needed}
        self.ingests = self._ingests()
        self.partials = self._partials()

    def settle(self) -> None:
        """What the images are is durable, as far as nobody has changed them since."""
        if self._layout is not None:
            self._layout.settle()

    def forgotten(self, digests: Iterable[Digest], partials: Container[Digest]) -> Iterator[Digest]:
        """Those that nothing needs, and of which nothing is here."""
        known = self.marking.blobs.keys() - self.blobs.keys()
        for digest in digests:
            if digest not in self.needed and digest not in known and digest not in partials:
                yield digest

    def has_changed(
        self, candidates: Mapping[Digest, int] = MappingProxyType({}), batch: Sequence[Digest] = ()
    ) -> bool:
        """Whether a lease or a name has come that may need one of `batch`: of the `candidates` that are left, which may
        link to it, or of the batch itself."""
        leases = self._manager.leases
        if leases.held(batch) or not candidates.keys().isdisjoint(leases.followed()):
            return True
        return self._layout is not None and self._layout.fingerprint() != self.fingerprint

    def _kept(self, records: Mapping[str, Record], needed: set[Digest], created: Mapping[str, int]) -> set[str]:
        """Ids of the records that stay: all layers are needed, or they are open or young; and their ancestors."""
        kept: set[str] = set()
        whole: set[str] = set()
        opened = in_use(self._manager.store)
        for record_id in reversed(_children_first(list(records.values()))):
            check()
            record = records[record_id]
            # All layers down to the base: images that end in the same layer have it on top of others.
            if record.blob in needed and all(parent in whole for parent in record.parents if parent):
                whole.add(record_id)
            # Of the lease, since the record's own time may be what the image says.
            since = created.get(record_id, record.created_at)
            if record_id in whole or self._is_young(since) or opened.is_open(record_id):
                stack = [record_id]
                while stack:
                    ancestor = stack.pop()
                    if ancestor in records and ancestor not in kept:
                        kept.add(ancestor)
                        stack += records[ancestor].parents
        return kept

    def _ingests(self) -> dict[str, int]:
        store = self._manager.store
        return {
            status.ref: status.offset
            for status in store.statuses()
            if not self._is_young(status.updated_at, self._longer_grace) and not store.is_locked(status.ref)
        }

    def _partials(self) -> dict[Digest, int]:
        store = self._manager.store
        if not isinstance(store, LocalStore):
            return {}
        # What is left of one whose blob is here is of no use, whoever needs the blob.
        wanted = self.needed - self.marking.blobs.keys()
        return {
            partial.digest: partial.nbytes
            for partial in leftovers.leftovers(store.root)
            if partial.digest not in wanted and not self._is_young(partial.used_at, self._longer_grace)
        }

    def _is_young(self, since: int, grace: int | None = None) -> bool:
        grace = self._grace if grace is None else grace
        return grace > 0 and since > self._now - grace


class _Done:
    """What has been removed so far."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, int] = {}
        self.records: list[str] = []
        self.leases: list[str] = []
        self.ingests: dict[str, int] = {}
        self.partials: dict[Digest, int] = {}

    def plan(self, survey: _Survey) -> None:
        self.blobs = dict(survey.blobs)
        self.records = list(survey.records)
        self.leases = list(survey.leases)
        self.ingests = dict(survey.ingests)
        self.partials = dict(survey.partials)

    def collected(self, survey: _Survey, *problems: str) -> Collected:
        known = {digest: blob.size for digest, blob in survey.marking.blobs.items() if digest not in self.blobs}
        images, held = _share(known, survey.of_images), _share(known, survey.of_leases)
        return Collected(
            dict(sorted(self.blobs.items())),
            tuple(self.records),
            tuple(self.leases),
            dict(sorted(self.ingests.items())),
            dict(sorted(self.partials.items())),
            images,
            held,
            _share(known, set(known)),
            (*survey.marking.problems, *problems),
        )


def _share(known: dict[Digest, int], of: set[Digest]) -> Share:
    """Those of `known` that are in `of`, which are taken out of it."""
    sizes = [known.pop(digest) for digest in list(known) if digest in of]
    return Share(len(sizes), sum(sizes))


class _Sweep:
    """Removes what a survey found to be of no use. `_Outdated` when that is not sure any more."""

    def __init__(self, manager: CacheManager, survey: _Survey, done: _Done) -> None:
        self._manager = manager
        self._survey = survey
        self._done = done

    def run(self) -> None:
        self._survey.settle()
        for leases in _batches(self._survey.leases):
            with self._turn():
                for lease in leases:
                    self._manager.leases.delete(lease)
            self._done.leases += leases
        for records in _batches(self._survey.records):
            self._remove_records(records)
        blobs = dict(self._survey.blobs)
        for digests in _batches(list(blobs)):
            with self._turn(partial(self._survey.has_changed, blobs, digests)):
                gone = [digest for digest in digests if self._manager.store.discard(digest)]
            for digest in gone:
                self._done.blobs[digest] = blobs[digest]
            for digest in digests:
                del blobs[digest]
        for ref, nbytes in self._survey.ingests.items():
            check()
            with suppress(RefLocked):
                self._manager.store.abort(ref)
                self._done.ingests[ref] = nbytes
        store = self._manager.store
        if isinstance(store, LocalStore):
            # Nothing is lost with them but what would have to be fetched again.
            root = store.root
            for digest, nbytes in self._survey.partials.items():
                check()
                if leftovers.remove(root, digest):
                    self._done.partials[digest] = nbytes
            partials = {partial.digest for partial in leftovers.leftovers(root)}
            for digest in self._survey.forgotten(leftovers.digested(root), partials):
                leftovers.forget(root, digest)
            for digest in self._survey.forgotten(kept.kept(root), partials):
                kept.forget(root, digest)
            for digest in self._survey.forgotten([info.digest for info in store.evicted()], ()):
                store.forget(digest)
            store.tidy()
            leftovers.tidy(root)
            kept.tidy(root)

    def _remove_records(self, ids: Sequence[str]) -> None:
        """Those that nobody has opened or built on by now."""
        manager = self._manager
        opened = in_use(manager.store)
        claimed: list[str] = []
        gone: list[str] = []
        try:
            with self._turn(self._survey.has_changed):
                for record_id in ids:
                    if not opened.claim(record_id):
                        continue
                    claimed.append(record_id)
                    if manager.records.children(record_id):
                        continue
                    if manager.forget(record_id):
                        gone.append(record_id)
            self._done.records += gone
        finally:
            opened.give_back(claimed)

    @contextmanager
    def _turn(self, has_changed: Callable[[], bool] = lambda: False) -> Iterator[None]:
        check()
        with self._manager.store.metadata.transaction():
            if has_changed():
                raise _Outdated
            yield


def _held(marking: Marking, flat: bool, digests: Sequence[str]) -> set[Digest]:
    found = marking.linked(digests)
    return found & set(digests) if flat else found


def _children_first(records: Sequence[Record]) -> list[str]:
    """Ids, each before those of its ancestors."""
    ids = {record.id: record for record in records}
    order: dict[str, None] = {}
    for record in records:
        stack = [(record.id, False)]
        while stack:
            record_id, is_done = stack.pop()
            if is_done:
                order[record_id] = None
            elif record_id in ids and record_id not in order:
                stack.append((record_id, True))
                stack += [(parent, False) for parent in ids[record_id].parents]
                del ids[record_id]
    return list(reversed(order))


def _batches(items: Sequence[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
