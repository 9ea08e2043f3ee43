"""Whether a store's blobs are what their names say, and bringing again what is not."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from blobtee import content, core, tasks
from blobtee.cache import MetadataStore
from blobtee.content import Info, LocalStore, ReaderAt, digester
from blobtee.content.digester import digest_of
from blobtee.content.lastuse import unnoticed
from blobtee.errors import BlobteeError, Cancelled, DataLoss, NotFound, StorageError
from blobtee.oci import Descriptor, Digest, Index, Reference, mediatypes
from blobtee.registry import Registry
from blobtee.transfer import images
from blobtee.transfer.remote import Repositories, default_registry

_SLOT = 1 << 20
_LANES = core.cpu_features().sha256_lanes
"""Blobs that one thread hashes side by side."""

_AT_ONCE = 4


@dataclass(frozen=True)
class Problem:
    """A blob that is not as it should be. `kind`: `broken` (other bytes than its name says) or `missing` (an image
    needs it, and nothing says where it can be had, or it is a document). `images` are the names that need it.

    After a repair `repaired` says whether it is whole again, and `reason` why not.
    """

    digest: Digest
    kind: str
    reason: str
    images: tuple[str, ...] = ()
    repaired: bool = False


@dataclass(frozen=True)
class Verification:
    """`blobs` of `nbytes` were read. `lazy` layers of named images are not here and need not be."""

    blobs: int
    nbytes: int
    lazy: int
    problems: tuple[Problem, ...]

    @property
    def good(self) -> bool:
        """Nothing is wrong, or nothing is any more."""
        return all(problem.repaired for problem in self.problems)


def verify(store: MetadataStore, *, repair: bool = False, registry: Registry | None = None) -> Verification:
    """Read every blob of `store` and compare it with its name, several at once; then see whether images are complete.

    With `repair`, what is broken is taken out of the store (set aside, where the store can) and brought again from
    where it came: the sources in its labels and in those of manifests, and the names of the images. What cannot be
    had again stays out. Progress is one piece of work, `verify`, over all bytes. `DataLoss`: the store's metadata are
    damaged.
    """
    if isinstance(store, LocalStore):
        store.metadata.check()
    infos = sorted(store.walk(), key=lambda info: -info.size)
    broken = _hash_all(store, infos)
    needs = _Needs(store, [info.digest for info in infos if info.digest not in broken])
    problems = [Problem(digest, "broken", reason, needs.users(digest)) for digest, reason in broken.items()]
    problems += [
        Problem(digest, "missing", reason, needs.users(digest))
        for digest, reason in needs.missing.items()
        if digest not in broken
    ]
    if repair:
        client = registry or default_registry()
        problems = _repair(store, problems, needs, client)
    lazy = len(needs.lazy - broken.keys())
    return Verification(len(infos), sum(info.size for info in infos), lazy, tuple(problems))


def _hash_all(store: MetadataStore, infos: Sequence[Info]) -> dict[Digest, str]:
    """What is wrong with each blob that is not what it should be."""
    queue = _Queue(infos)
    broken: dict[Digest, str] = {}
    threads = min(len(infos) // _LANES + 1, os.cpu_count() or 1, 8)
    with tasks.meter("", "verify", sum(info.size for info in infos)) as progress:
        with unnoticed(), tasks.Group(name="blobtee-verify") as group:
            for _ in range(threads):
                group.spawn(_work, store, queue, broken, progress)
    return broken


class _Queue:
    """Blobs to read, the largest first, so that lanes run full to the end."""

    def __init__(self, infos: Iterable[Info]) -> None:
        self._lock = threading.Lock()
        self._infos = iter(infos)

    def take(self) -> Info | None:
        with self._lock:
            return next(self._infos, None)


class _Lane:
    """One open blob on its way through a hash."""

    def __init__(self, info: Info, reader: ReaderAt) -> None:
        self.info = info
        self.reader = reader
        self.buffer = bytearray(_SLOT)
        self.offset = 0
        self.hasher = digester(info.digest.algorithm)

    def fill(self) -> memoryview:
        n = self.reader.readinto_at(self.offset, self.buffer)
        self.offset += n
        return memoryview(self.buffer)[:n]

    def verdict(self) -> str | None:
        """What is wrong with the blob, now that it was read."""
        if self.offset != self.info.size:
            return f"{self.offset} bytes, {self.info.size} expected"
        actual = digest_of(self.info.digest.algorithm, self.hasher)
        return None if actual == self.info.digest else f"its bytes are {actual}"


def _work(store: MetadataStore, queue: _Queue, broken: dict[Digest, str], progress: tasks.Progress) -> None:
    lanes: list[_Lane] = []
    try:
        while True:
            tasks.check()
            while len(lanes) < _LANES and (info := queue.take()) is not None:
                lane = _opened(store, info, broken)
                if lane is not None:
                    lanes.append(lane)
            if not lanes:
                return
            lanes = _step(lanes, broken, progress)
    finally:
        for lane in lanes:
            lane.reader.close()


def _opened(store: MetadataStore, info: Info, broken: dict[Digest, str]) -> _Lane | None:
    try:
        return _Lane(info, store.reader_at(Descriptor("", info.digest, -1)))
    except NotFound:
        return None  # deleted meanwhile
    except (DataLoss, StorageError) as error:
        broken[info.digest] = str(error)
        return None


def _step(lanes: list[_Lane], broken: dict[Digest, str], progress: tasks.Progress) -> list[_Lane]:
    """Read and hash one slot of each lane; the lanes that go on."""
    going = []
    batch: list[tuple[core.Sha256, memoryview]] = []
    for lane in lanes:
        try:
            data = lane.fill()
        except (DataLoss, StorageError) as error:
            broken[lane.info.digest] = str(error)
            lane.reader.close()
            continue
        if not data:
            reason = lane.verdict()
            if reason is not None:
                broken[lane.info.digest] = reason
            lane.reader.close()
            continue
        going.append(lane)
        progress.advance(len(data))
        if isinstance(lane.hasher, core.Sha256):
            batch.append((lane.hasher, data))
        else:
            lane.hasher.update(data)
    core.update_many(batch)
    return going


class _Needs:
    """What the images of a store need, as far as their documents are here and good."""

    def __init__(self, store: MetadataStore, good: Sequence[Digest]) -> None:
        self.store = store
        self.missing: dict[Digest, str] = {}
        self.lazy: set[Digest] = set()
        self.descriptors: dict[Digest, Descriptor] = {}
        self.origins: dict[Digest, dict[str, Reference]] = {}
        self._users: dict[Digest, dict[str, None]] = {}
        self._good = frozenset(good)
        for name, root in images.names(store).items():
            reference = images.canonical(name)
            self._follow(name, root, [reference] if reference is not None else [], is_root=True)

    def users(self, digest: Digest) -> tuple[str, ...]:
        """The images that need a blob."""
        return tuple(self._users.get(digest, ()))

    def _follow(self, name: str, desc: Descriptor, origins: Sequence[Reference], *, is_root: bool) -> bool:
        """Note what `desc` and everything below it is needed for; whether the document is here."""
        tasks.check()
        self._note(name, desc, origins)
        try:
            document = images.StoredDocuments(self.store).document(desc)
        except BlobteeError as error:
            # A store that was pulled into for one platform has only that one's manifest of an index.
            if is_root and not isinstance(error, DataLoss):
                self.missing[desc.digest] = (
                    "the image's document is not here" if isinstance(error, NotFound) else str(error)
                )
            return False
        known = [*origins, *images.sources(self._labels(desc.digest))]
        if isinstance(document, Index):
            here = [self._follow(name, member, known, is_root=False) for member in document.manifests]
            if document.manifests and not any(here):
                for member in document.manifests:
                    self.missing[member.digest] = "none of the index's manifests is here"
            return True
        self._note(name, document.config, known)
        if document.config.digest not in self._good:
            self.missing[document.config.digest] = "the image's config is not here"
        for layer in document.layers:
            self._note(name, layer, known)
            if layer.digest not in self._good:
                if known:
                    self.lazy.add(layer.digest)
                else:
                    self.missing[layer.digest] = "a layer that is not here, and nothing says where it can be had"
        return True

    def _note(self, name: str, desc: Descriptor, origins: Sequence[Reference]) -> None:
        self.descriptors.setdefault(desc.digest, desc)
        self._users.setdefault(desc.digest, {})[name] = None
        self.origins.setdefault(desc.digest, {}).update({origin.name: origin for origin in origins})

    def _labels(self, digest: Digest) -> Mapping[str, str]:
        with contextlib.suppress(NotFound, DataLoss):
            return self.store.info(digest).labels
        return {}


def _repair(store: MetadataStore, problems: Sequence[Problem], needs: _Needs, registry: Registry) -> list[Problem]:
    with tasks.Group(_AT_ONCE, name="blobtee-repair") as group:
        running = [group.spawn(_repair_one, store, problem, needs, registry) for problem in problems]
    return [task.result() for task in running]


def _repair_one(store: MetadataStore, problem: Problem, needs: _Needs, registry: Registry) -> Problem:
    digest = problem.digest
    try:
        if problem.kind == "broken" and (_is_whole_now(store, digest) or _is_mended(store, digest)):
            return replace(problem, repaired=True)
        info = _take_out(store, digest) if problem.kind == "broken" else None
        known = dict(needs.origins.get(digest, {}))
        if info is not None:
            known.update({origin.name: origin for origin in images.sources(info.labels)})
        desc = needs.descriptors.get(digest) or Descriptor("", digest, info.size if info is not None else 0)
        if not known:
            return replace(problem, reason=f"{problem.reason}; nothing says where it can be had")
        provider = Repositories(registry, list(known.values()))
        labels = info.labels if info is not None else None
        try:
            content.copy(store, provider, desc, labels=labels)
        except NotFound:
            if desc.media_type:
                raise
            # A blob that no image names any more may have been a manifest.
            content.copy(store, provider, replace(desc, media_type=mediatypes.OCI_MANIFEST), labels=labels)
    except Cancelled:
        raise
    except BlobteeError as error:
        return replace(problem, reason=f"{problem.reason}; bringing it again failed: {error}")
    return replace(problem, repaired=True)


def _is_whole_now(store: MetadataStore, digest: Digest) -> bool:
    """Whether somebody else has repaired the blob since it was read: a good one must not be taken out."""
    try:
        info = store.info(digest)
    except (NotFound, DataLoss):
        return False
    with tasks.reporting(None):
        return not _hash_all(store, [info])


def _is_mended(store: MetadataStore, digest: Digest) -> bool:
    """Whether the bytes were right all the time: what says otherwise in the store is corrected then."""
    with contextlib.suppress(NotFound):
        return isinstance(store, LocalStore) and store.mend(digest)
    return False


def _take_out(store: MetadataStore, digest: Digest) -> Info | None:
    """Take a broken blob out of the store, set aside where the store can; what was known of it. None when somebody
    else was quicker."""
    with contextlib.suppress(NotFound):
        if isinstance(store, LocalStore):
            return store.quarantine(digest)
        info = store.info(digest)
        store.delete(digest)
        return info
    return None
