"""The cache over one store: finds refs, makes them of blobs, and knows which are in use."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from blobtee.cache import labels, mounting
from blobtee.cache.chain import load
from blobtee.cache.collect import GRACE_SECONDS, Collected, collect
from blobtee.cache.handlers import Handler, Handlers, Means, current_session
from blobtee.cache.inuse import in_use
from blobtee.cache.leases import Leases, variants_lease
from blobtee.cache.records import Kind, Record, Records, new_id
from blobtee.cache.ref import Ref
from blobtee.cache.scratch import Scratch
from blobtee.cache.snapshots import Form, Snapshot, Snapshots, registered
from blobtee.content.api import Store
from blobtee.content.database import Database
from blobtee.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    InvalidReference,
    NeedsRemoteProvider,
    NotFound,
    PermissionDenied,
    SizeMismatch,
)
from blobtee.oci import Descriptor, Digest, Reference, chain_id


class MetadataStore(Store, Protocol):
    """A store that has a database in which the cache keeps its tables."""

    @property
    def metadata(self) -> Database: ...

    def discard(self, digest: str) -> bool:
        """Remove a blob without waiting for anybody, and so also inside a transaction of `metadata`. False when it is
        not there, or somebody is changing it."""
        ...

    def is_locked(self, ref: str) -> bool:
        """Whether the ingest is being written."""
        ...


class CacheManager:
    """Refs of one store. Thread-safe. The records are in the store: a new manager finds what an older one made, and
    several may work on one store at once. Which refs are open is known to each manager for itself.
    """

    def __init__(self, store: MetadataStore) -> None:
        self.store = store
        self.records = Records(store.metadata)
        self.leases = Leases(store.metadata)
        self.snapshots = Snapshots(store.metadata)
        root = getattr(store, "root", None)  # a store in memory has none
        self._root = Path(root) if root is not None else None
        self.scratch = Scratch(self._root / "scratch" if self._root is not None else None)
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        with suppress(PermissionDenied):  # a store that is only read keeps them for its next writer
            self.leases.drop_stale()
            self.scratch.drop_stale()

    def get(self, ref_id: str, handlers: Handlers | None = None) -> Ref:
        """The ref with this id; release it after use. `NotFound` when there is none.

        `NeedsRemoteProvider` names the blobs of the ref and its ancestors, base to top, that are neither in the store,
        nor have a handler in `handlers`, nor a snapshot that they could be made from again. `DataLoss`: an ancestor's
        record is gone, or the records form a loop.
        """
        with self._retained(ref_id):  # from before the look, so that it is not collected in between
            records = load(self.records, ref_id)
            missing = [
                record.blob
                for record in records.values()
                if record.blob is not None and record.blob_only and not self._can_have(record.blob, handlers or {})
            ]
            if missing:
                raise NeedsRemoteProvider(tuple(dict.fromkeys(str(digest) for digest in missing)))
            return Ref(self, ref_id, records, dict(handlers or {}))

    def get_by_blob(
        self,
        desc: Descriptor,
        parent: Ref | None = None,
        handlers: Handlers | None = None,
        *,
        image_ref: str = "",
        description: str = "",
    ) -> Ref:
        """A ref for the layer blob `desc` on top of `parent`; release it after use.

        `desc` needs the annotation `containerd.io/uncompressed`, the diff id. A record of the same blobs on each other
        is used again, if it says the same of them; one of the same contents lends its snapshot. `image_ref` (or what
        the handler calls its `ref`, where that is an image reference) is added to those the record knows. The handlers
        of `parent` are kept.

        `InvalidArgument`: no diff id, or a parent that has no blobs itself (not yet, or a merge). `InvalidReference`.
        `NeedsRemoteProvider`: the blob is not in the store, and `handlers` has nobody to bring it. `SizeMismatch`: the
        store has it, and in another size.
        """
        diff_id = _diff_id(desc)
        known: dict[str, Handler] = {**(parent.handlers if parent is not None else {}), **(handlers or {})}
        if not self.has_all_of(desc) and desc.digest not in known:
            raise NeedsRemoteProvider((str(desc.digest),))
        image_refs = _image_refs(image_ref, known.get(desc.digest))
        record = self._new_record(desc, diff_id, parent, image_refs, description)
        ref: Ref | None = None
        try:
            with self.store.metadata.transaction():
                ref = self._matching(record, parent, known) or self._inserted(record, desc.digest, parent, known)
        except PermissionDenied:
            # A store that can only be read: the records that it has will do.
            ref = self._matching(record, parent, known)
            if ref is None:
                raise
        except BaseException:
            if ref is not None:
                ref.release()
            raise
        return ref

    def add_directory(
        self,
        path: str | os.PathLike[str],
        parent: Ref | None = None,
        *,
        overlay: bool = False,
        description: str = "",
    ) -> Ref:
        """A ref for a layer whose blob is yet to be made of the directory `path`; release it after use.

        The directory is a whole tree, and the layer is what differs from the tree of `parent`; or, with `overlay`, the
        upper directory of an overlay mount, and the layer is what is in it. It is the caller's, is never changed, and
        is remembered by its real path. It has to stay as it is until the blob is made, and those of refs built on it:
        after that it may be removed.

        `NotFound`, `PermissionDenied`; `InvalidArgument`: no directory, or one that holds the store.
        """
        real = registered(path, self._root)
        record = Record(
            id=new_id(),
            kind=Kind.BASE if parent is None else Kind.LAYER,
            parents=() if parent is None else (parent.id,),
            description=description,
            created_at=time.time_ns(),
        )
        record = replace(record, snapshot_id=record.id)
        with self.store.metadata.transaction():
            self.snapshots.insert(Snapshot(record.snapshot_id, Form.OVERLAY if overlay else Form.TREE, real))
            return self._derived(record, [] if parent is None else [parent])

    @contextmanager
    def mounted(self, ref: Ref | None, handlers: Handlers | None = None, *, session: object = None) -> Iterator[Path]:
        """A directory with the tree of `ref`, for the block; not to be written to. None is nothing at all.

        It is the registered directory itself where that is the whole tree. Else the layers are put on each other in a
        temporary directory under the store's root, lazy ones after being brought; it is removed at the end. Owners,
        devices and some attributes are there only as root (`layers.apply`). `handlers` and `session` are as for
        `Ref.get_remotes`.

        `NotFound`: a directory is gone, and there is no blob that was made of it. `NeedsRemoteProvider`,
        `LazyUnavailable`; `TooLarge`: trees within trees (`mounting.MAX_NESTING`).
        """
        if ref is None:
            with self.scratch.directory() as path:
                yield path
            return
        means = Means(ref.handlers if handlers is None else handlers, current_session() if session is None else session)
        with self.leases.hold(), mounting.mounted(ref, means) as path:
            yield path

    def merge(self, parents: Sequence[Ref | None], *, description: str = "") -> Ref:
        """A ref whose layers are those of `parents`, one after another; None has none. `InvalidArgument` without any
        ref."""
        refs = [ref for ref in parents if ref is not None]
        if not refs:
            raise InvalidArgument("a merge needs refs to merge")
        record = Record(new_id(), Kind.MERGE, tuple(ref.id for ref in refs), description=description)
        return self._derived(replace(record, created_at=time.time_ns()), refs)

    def diff(self, lower: Ref | None, upper: Ref, *, description: str = "") -> Ref:
        """A ref for what `upper` changes over `lower`; None is nothing at all."""
        parents = (lower.id if lower is not None else "", upper.id)
        record = Record(new_id(), Kind.DIFF, parents, description=description, created_at=time.time_ns())
        return self._derived(record, [upper] if lower is None else [lower, upper])

    def remove(self, ref_id: str) -> None:
        """Forget a ref and drop its leases; blobs stay until they are collected, and directories are the caller's. One
        that is not there is no error.

        `FailedPrecondition` while it is open in this manager, or another ref is built on it.
        """
        # The database first, then the lock, as everywhere.
        with self.store.metadata.transaction(), self._lock:
            if self._open[ref_id]:
                raise FailedPrecondition(f"ref {ref_id} is in use")
            children = self.records.children(ref_id)
            if children:
                raise FailedPrecondition(f"ref {ref_id} has {len(children)} refs built on it")
            self.forget(ref_id)

    def forget(self, ref_id: str) -> bool:
        """The record goes, and its leases, in the transaction of whoever has seen that nobody needs it; False when
        there was none."""
        self.leases.delete(variants_lease(ref_id))
        self.leases.delete(ref_id)
        try:
            snapshot_id = self.records.get(ref_id).snapshot_id
        except NotFound:
            return False
        self.records.remove(ref_id)
        self.snapshots.remove_unused(snapshot_id)
        return True

    def collect(self, *, dry_run: bool = False, grace: float = GRACE_SECONDS) -> Collected:
        """Remove what nothing needs any more (`collecting`): refs, leases, blobs, partial blobs. See `Collected`.

        What is younger than `grace` seconds stays, as does what other programs have just written. With `dry_run`
        nothing is removed, and the answer is what would be. May run while others work on the store.

        `InvalidArgument`: a grace that is no duration. `InvalidDocument`, `TooLarge`: the list of images cannot be
        read; then, and when an image's document is damaged so that nobody knows what belongs to it
        (`Collected.problems`), nothing is removed. After any other error or a crash the store is sound.
        """
        return collect(self, dry_run=dry_run, grace=grace)

    def in_use(self, ref_id: str) -> int:
        """How many refs of this manager are open on the record, their descendants' not counted."""
        with self._lock:
            return self._open[ref_id]

    def retain(self, ref_id: str) -> None:
        """One more `Ref` is open on the record: nobody collects it."""
        in_use(self.store).retain(ref_id)
        with self._lock:
            self._open[ref_id] += 1

    def let_go(self, ref_id: str) -> None:
        """The opposite of `retain`, once for each."""
        with self._lock:
            self._open[ref_id] -= 1
            if self._open[ref_id] <= 0:
                del self._open[ref_id]
        in_use(self.store).release(ref_id)

    def has(self, digest: str) -> bool:
        """Whether the store has the blob, in a state to be read."""
        try:
            self.store.info(digest)
        except (NotFound, DataLoss):
            return False
        return True

    def has_all_of(self, desc: Descriptor) -> bool:
        """As `has`, for a blob that is said to have a size; `SizeMismatch` when it has another."""
        try:
            size = self.store.info(desc.digest).size
        except (NotFound, DataLoss):
            return False
        if size != desc.size:
            raise SizeMismatch(f"layer {desc.digest}, as the image describes it", desc.size, size)
        return True

    def _can_have(self, digest: str, handlers: Mapping[str, Handler]) -> bool:
        return digest in handlers or self.has(digest)

    def _matching(self, wanted: Record, parent: Ref | None, handlers: dict[str, Handler]) -> Ref | None:
        """A ref on a record of the same blobs, which learns the image references of `wanted`.

        Ids are made of digests, but size, media type and urls are only what some manifest said. A record made of a
        manifest that lies must not stand in the way of the true one, and neither must a layer on top of such a record.
        """
        assert wanted.blob_chain_id is not None
        for match in self.records.by_blob_chain(wanted.blob_chain_id):
            if _said(match) == _said(wanted):
                for name in wanted.image_refs:
                    if name not in match.image_refs:
                        self.records.add_image_ref(match.id, name)
                ancestry = parent.ancestry if parent is not None else {}
                return Ref(self, match.id, {**ancestry, match.id: match}, handlers)
        return None

    def _inserted(self, record: Record, blob: Digest, parent: Ref | None, handlers: dict[str, Handler]) -> Ref:
        assert record.chain_id is not None
        if not self._can_have(blob, handlers):  # it was collected since the first look; from here on it cannot be
            raise NeedsRemoteProvider((str(blob),))
        for match in self.records.by_chain(record.chain_id):
            if match.snapshot_id:  # merges and diffs have the same contents, and no directory of their own
                record = replace(record, snapshot_id=match.snapshot_id, blob_only=match.blob_only)
                break
        self.records.insert(record)
        # Content is held by a lease of the ref's id from its first moment on.
        self.leases.ensure(record.id)
        self.leases.add(record.id, [blob])
        ancestry = parent.ancestry if parent is not None else {}
        return Ref(self, record.id, {**ancestry, record.id: record}, handlers)

    def _new_record(
        self, desc: Descriptor, diff_id: Digest, parent: Ref | None, image_refs: tuple[str, ...], description: str
    ) -> Record:
        chain, blob_chain = diff_id, chain_id(desc.digest, diff_id)
        if parent is not None:
            if parent.chain_id is None or parent.blob_chain_id is None:
                raise InvalidArgument(f"ref {parent.id} has no blobs of its own to put a layer on")
            chain = chain_id(parent.chain_id, diff_id)
            blob_chain = chain_id(parent.blob_chain_id, blob_chain)
        return Record(
            id=new_id(),
            kind=Kind.BASE if parent is None else Kind.LAYER,
            parents=() if parent is None else (parent.id,),
            blob=desc.digest,
            size=desc.size,
            media_type=desc.media_type,
            diff_id=diff_id,
            chain_id=chain,
            blob_chain_id=blob_chain,
            urls=desc.urls,
            image_refs=image_refs,
            description=description,
            created_at=labels.from_rfc3339(desc.annotations.get(labels.CREATED_AT, "")) or time.time_ns(),
            snapshot_id=str(chain),
            blob_only=True,
        )

    def _derived(self, record: Record, parents: Sequence[Ref]) -> Ref:
        ancestry: dict[str, Record] = {}
        handlers: dict[str, Handler] = {}
        for parent in parents:
            ancestry |= parent.ancestry
            handlers |= parent.handlers
        with self._retained(record.id):
            with self.store.metadata.transaction():
                self.records.insert(record)
                self.leases.ensure(record.id)
            return Ref(self, record.id, {**ancestry, record.id: record}, handlers)

    @contextmanager
    def _retained(self, ref_id: str) -> Iterator[None]:
        self.retain(ref_id)
        try:
            yield
        finally:
            self.let_go(ref_id)


def _said(record: Record) -> tuple[object, ...]:
    """What a record has from a manifest, beside digests."""
    return record.parents, record.size, record.media_type, record.urls


def _diff_id(desc: Descriptor) -> Digest:
    text = desc.annotations.get(labels.UNCOMPRESSED)
    if not text:
        raise InvalidArgument(f"the descriptor of layer {desc.digest} lacks the annotation {labels.UNCOMPRESSED}")
    return Digest(text)


def _image_refs(image_ref: str, handler: Handler | None) -> tuple[str, ...]:
    if image_ref:
        Reference.parse(image_ref)
        return (image_ref,)
    origin = handler.ref if handler is not None else ""
    try:
        Reference.parse(origin)
    except InvalidReference:
        return ()
    return (origin,)
