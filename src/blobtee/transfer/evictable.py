"""Which blobs of a store could be had again, if their bytes went: what making room may take, and what holds the rest.

A blob may go when each image that needs it has it as a layer, of the same size, and can be opened where the blob is
known to have come from; and when each tenant of a server that holds it, is told by that where to have it. What was
built, imported or sent by a client is only here, and so is what a conversion made, whatever its image says of its own
origin: where a blob came from, its own labels say.
"""

from __future__ import annotations

import enum
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blobtee.cache import CacheManager
from blobtee.cache.inuse import in_use
from blobtee.cache.leases import variants_lease
from blobtee.cache.marking import Marking
from blobtee.content import LocalStore
from blobtee.content.files import digest_names
from blobtee.errors import BlobteeError, DataLoss, NotFound
from blobtee.oci import Descriptor, Digest, Index, Manifest, Reference
from blobtee.oci.mediatypes import CONFIGS
from blobtee.tasks import check
from blobtee.tee import leftovers
from blobtee.transfer import images


class Held(enum.StrEnum):
    """Why something stays."""

    DOCUMENTS = "documents"
    """Manifests, configs and indexes: without them nobody knows what an image needs."""
    LOCAL = "local"
    """It is only here."""
    LEASES = "leases"
    """Somebody holds it by a lease, as work under way does."""
    USED = "used"
    """It is open: a ref on it, or the partial blob."""
    RECENT = "recent"
    """It was used a moment ago."""
    UNNEEDED = "unneeded"
    """No image has it: it is young, or a ref's. Collecting removes it."""
    INDEXES = "indexes"
    """What proves chunks of layers, and indexes of layers: with them, what comes again comes by parts. They go with
    their image."""
    UNFINISHED = "unfinished"
    """A blob that somebody is writing, or was."""
    UNOBTAINABLE = "unobtainable"
    """No registry was found to have it still."""
    DAMAGED = "damaged"
    """Its bytes are not those of its name, or the disk refused something; and what was set aside as damaged."""

    @property
    def text(self) -> str:
        """What such things are, for people."""
        return _TEXTS[self]


_TEXTS = {
    Held.DOCUMENTS: "manifests, configs and indexes",
    Held.LOCAL: "blobs that are only here",
    Held.LEASES: "blobs that leases hold",
    Held.USED: "blobs in use",
    Held.RECENT: "blobs that were used a moment ago",
    Held.UNNEEDED: "blobs that no image needs, for `blobtee gc`",
    Held.INDEXES: "layers' digests and indexes",
    Held.UNFINISHED: "unfinished writes",
    Held.UNOBTAINABLE: "blobs that no registry was found to have still",
    Held.DAMAGED: "blobs that are damaged, or that the disk keeps",
}


class Clients(Protocol):
    """Holders of blobs who ask for them by digest, and are told of those that are lazy: the tenants of a server."""

    def holds(self, lease_id: str) -> bool:
        """Whether the lease is that of one of them."""
        ...

    def sources(self, desc: Descriptor) -> tuple[Reference, ...]:
        """Where one of them would have a blob of this digest and size from; none when it could not."""
        ...


class Outdated(Exception):
    """An image has come or gone since the look."""


@dataclass(frozen=True)
class Candidate:
    """A blob of `size` bytes that may go, or a `partial` one; `nbytes` of the disk, last used at `used_at`, nanoseconds
    since the epoch."""

    digest: Digest
    size: int
    nbytes: int
    used_at: int
    partial: bool = False


@dataclass(frozen=True)
class _Need:
    """An image has a blob as a layer of `size` bytes, and has its layers from `origins`."""

    size: int
    origins: frozenset[str]


_BESIDE = ("digests", "index")


def index_nbytes(root: Path) -> dict[Digest, int]:
    """Bytes of what is kept of layers beside their blobs."""
    digests = {digest for folder in _BESIDE for digest, _ in digest_names(root / folder)}
    return {digest: index_nbytes_of(root, digest) for digest in digests}


def index_nbytes_of(root: Path, digest: Digest) -> int:
    """The same of one layer."""
    nbytes = 0
    for folder in _BESIDE:
        with suppress(OSError):
            nbytes += os.stat(root / folder / digest.algorithm / digest.hex).st_size
    return nbytes


def broken_nbytes(root: Path) -> list[int]:
    """Bytes of each file that was set aside as damaged."""
    found = []
    for directory, _, names in os.walk(root / "broken"):
        for name in names:
            with suppress(OSError):
                found.append(os.lstat(os.path.join(directory, name)).st_size)
    return found


class Survey:
    """One look at a store. `nbytes` is what it takes (see `usage`), but for its metadata; `held` says why blobs
    may not go, `candidates` are those that may, the longest unused first.

    `blind`: nobody knows what an image needs, and nothing may go. `problems` are those of documents, in a sentence
    each.
    """

    def __init__(self, store: LocalStore, clients: Clients | None) -> None:
        self._store = store
        self._clients = clients
        self._manager = CacheManager(store)
        # The leases before the images: work that ends lets its image have a name before its lease goes.
        holdings = self._manager.leases.holdings()
        self._is_unchanged = store.layout.watch()
        self._documents: set[Digest] = set()
        self._needs: defaultdict[Digest, list[_Need]] = defaultdict(list)
        self._marking = Marking(store)
        needed = self._marking.images(store.layout.all())
        self.problems = list(self._marking.problems)
        self.blind = self._marking.blind
        self._follow_images()
        self._holding: set[tuple[str, str]] = set()
        held_by_clients: set[str] = set()
        pinned = self._marking.linked(self._marking.labelled_roots())
        of_records = {name for record in self._manager.records.all() for name in (record.id, variants_lease(record.id))}
        for holding in holdings:
            self._holding.update((holding.lease.id, digest) for digest in holding.digests)
            if self._is_client(holding.lease.id):
                held_by_clients.update(holding.digests)
                continue
            if not holding.counts or holding.lease.id in of_records:
                continue
            # Of an image that is known by name, what its layers are and where they can be had counts, below.
            direct = set(holding.digests) - self._documents
            linked = self._marking.linked(direct)
            pinned |= linked & direct if holding.lease.flat else linked
        self.blobs = {digest: known.size for digest, known in self._marking.blobs.items()}
        self.held: dict[Digest, Held] = {}
        self.candidates: list[Candidate] = []
        for digest, size in self.blobs.items():
            check()
            reason = self._reason(digest, size, digest in needed, digest in pinned, digest in held_by_clients)
            if reason is not None:
                self.held[digest] = reason
            else:
                with suppress(NotFound):
                    self.candidates.append(Candidate(digest, size, size, store.last_used(digest)))
        partials = list(leftovers.leftovers(store.root))
        self.partials = {partial.digest: partial.nbytes for partial in partials}
        self.candidates += [
            Candidate(partial.digest, partial.size, partial.nbytes, partial.used_at, partial=True)
            for partial in partials
        ]
        self.candidates.sort(key=lambda candidate: candidate.used_at)
        self.unfinished = {status.ref: status.offset for status in store.statuses()}
        self.indexes = index_nbytes(store.root)
        self.broken = broken_nbytes(store.root)

    @property
    def nbytes(self) -> int:
        parts = (self.blobs, self.partials, self.unfinished, self.indexes)
        return sum(sum(part.values()) for part in parts) + sum(self.broken)

    @contextmanager
    def may_go(self, candidate: Candidate, asked: Collection[frozenset[str]] | None = None) -> Iterator[bool]:
        """Inside a transaction: whether a whole blob still may go. While the block runs nobody opens a ref on it.
        `asked` is what `wanted` said, if anybody was asked.

        `Outdated`: nobody knows without another look.
        """
        if not self._is_unchanged() or (asked is not None and asked != self.wanted(candidate)):
            raise Outdated
        digest, size = candidate.digest, candidate.size
        holding = self._manager.leases.holding(self._marking.leading(digest))
        is_held = any(resource == digest and self._is_client(lease) for lease, resource in holding)
        if not holding <= self._holding or not self._can_be_had(digest, size, is_held):
            yield False
            return
        opened = in_use(self._store)
        claimed: list[str] = []
        try:
            for record_id in self._manager.records.on_blob(digest):
                if not opened.claim(record_id):
                    yield False
                    return
                claimed.append(record_id)
            yield True
        finally:
            opened.give_back(claimed)

    def _reason(self, digest: Digest, size: int, needed: bool, pinned: bool, is_held: bool) -> Held | None:
        """Why the blob may not go; None when it may. `is_held`: by a client."""
        if digest in self._documents:
            return Held.DOCUMENTS
        if pinned:
            return Held.LEASES
        if not self._needs[digest] and not is_held:
            return Held.LOCAL if needed else Held.UNNEEDED
        return None if size and self._can_be_had(digest, size, is_held) else Held.LOCAL

    def wanted(self, candidate: Candidate) -> set[frozenset[str]]:
        """Repositories that have to have the blob when it is gone: one of each set. One of them is for the clients, if
        they are told of some. None at all of a partial blob that nobody could have more of."""
        told, known = self._sources(candidate.digest, candidate.size)
        needs = self._needs[candidate.digest]
        if candidate.partial and not candidate.size:
            return set()  # what somebody who was killed left: no part of anything
        if candidate.partial:
            return {origins for origins in (told, *(need.origins for need in needs)) if origins}
        return {need.origins & known for need in needs} | ({told} if told else set())

    def _can_be_had(self, digest: Digest, size: int, is_held: bool) -> bool:
        """Whether every image that needs the blob, and every client, is told where to have it."""
        told, known = self._sources(digest, size)
        if is_held and not told:
            return False
        return all(need.size == size and need.origins & known for need in self._needs[digest])

    def _sources(self, digest: Digest, size: int) -> tuple[frozenset[str], frozenset[str]]:
        """The repositories that clients are told to have the blob from; those, and what its own labels say."""
        found = self._clients.sources(Descriptor("", digest, size)) if self._clients is not None else ()
        told = known = frozenset(source.name for source in found)
        with suppress(NotFound, DataLoss):
            known |= {source.name for source in images.sources(self._store.info(digest).labels)}
        return told, known

    def _is_client(self, lease_id: str) -> bool:
        return self._clients is not None and self._clients.holds(lease_id)

    def _follow_images(self) -> None:
        names: defaultdict[Digest, list[str | None]] = defaultdict(list)
        for name, desc in self._store.layout.names().items():
            names[desc.digest].append(name)
        subjects: list[Descriptor] = []
        for desc in self._store.layout.all():
            # Other programs list images without a name: they count on the blobs.
            for known_as in names.get(desc.digest) or (None,):
                self._follow(known_as, desc, subjects)
        while subjects:
            subject = subjects.pop()
            if subject.digest not in self._documents:
                self._follow(None, subject, subjects)

    def _follow(self, name: str | None, root: Descriptor, subjects: list[Descriptor]) -> None:
        """Note what an image, or the images of an index, need."""
        seen: set[Digest] = set()
        stack = [root]
        while stack:
            check()
            desc = stack.pop()
            if desc.digest in seen:
                continue
            seen.add(desc.digest)
            self._documents.add(desc.digest)
            try:
                document = images.StoredDocuments(self._store).document(desc)
                subject = document.subject
            except BlobteeError:
                continue  # not pulled, or of `problems`
            if subject is not None:
                subjects.append(subject)
            if isinstance(document, Index):
                stack += document.manifests
            else:
                self._note(name, document)

    def _note(self, name: str | None, manifest: Manifest) -> None:
        self._documents.add(manifest.config.digest)
        if manifest.config.media_type not in CONFIGS:
            self._documents.update(layer.digest for layer in manifest.layers)  # of some artifact
            return
        origins = self._origins(name, manifest)
        for layer in manifest.layers:
            self._needs[layer.digest].append(_Need(layer.size, origins))

    def _origins(self, name: str | None, manifest: Manifest) -> frozenset[str]:
        if name is None:
            return frozenset()
        return frozenset(origin.name for origin in images.origins(self._store, name, manifest.descriptor))
