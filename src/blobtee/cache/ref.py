"""A ref: a counted handle on a record, with the means to bring its lazy blobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from blobtee.cache import chain, labels, remotes, variants
from blobtee.cache.handlers import Handler, Handlers, Means
from blobtee.cache.records import Kind, Recipe, Record
from blobtee.cache.remote import LazyProvider, RefConfig, Remote
from blobtee.compression import decompress
from blobtee.content.api import Info
from blobtee.errors import Closed, DataLoss, NeedsRemoteProvider, NotFound
from blobtee.oci import Descriptor, Digest, mediatypes

if TYPE_CHECKING:
    from blobtee.cache.manager import CacheManager


class Ref:
    """One user's hold on a record; as many as wished may be open on the same one. Thread-safe.

    Release it after use (or use it as a context manager). What never changes of a record is an attribute here, what
    concerns the blob as soon as there is one; `description` and `image_refs` are read from the store each time.
    """

    def __init__(
        self,
        manager: CacheManager,
        ref_id: str,
        ancestry: Mapping[str, Record],
        handlers: Mapping[str, Handler],
        *,
        counted: bool = True,
    ) -> None:
        """Made by the manager only. `ancestry` holds the record itself and all its ancestors."""
        self.manager = manager
        self.id = ref_id
        self.handlers = handlers
        self._known = dict(ancestry)
        self._lock = threading.Lock()
        self._released = not counted
        if counted:
            manager.retain(ref_id)

    @property
    def ancestry(self) -> Mapping[str, Record]:
        """The record and all its ancestors by id, each after its own ancestors, as they are now."""
        return {record_id: self._current(record_id) for record_id in list(self._known)}

    @property
    def kind(self) -> Kind:
        return self._record.kind

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the parents (see `Record.parents`)."""
        return self._record.parents

    @property
    def blob(self) -> Digest | None:
        return self._record.blob

    @property
    def size(self) -> int:
        """Bytes of the blob; 0 without one."""
        return self._record.size

    @property
    def media_type(self) -> str:
        return self._record.media_type

    @property
    def diff_id(self) -> Digest | None:
        return self._record.diff_id

    @property
    def chain_id(self) -> Digest | None:
        """OCI ChainID over the diff ids, base to here."""
        return self._record.chain_id

    @property
    def blob_chain_id(self) -> Digest | None:
        """The same over the pairs of blob and diff id."""
        return self._record.blob_chain_id

    @property
    def urls(self) -> tuple[str, ...]:
        return self._record.urls

    @property
    def created_at(self) -> int:
        """Nanoseconds since the epoch; 0 when not set."""
        return self._record.created_at

    @property
    def snapshot_id(self) -> str:
        return self._record.snapshot_id

    @property
    def blob_only(self) -> bool:
        """There is no snapshot that the blob could be made from again."""
        return self._record.blob_only

    @property
    def recipe(self) -> Recipe | None:
        """How the blob was made here of directories; None when it was not."""
        return self._record.recipe

    @property
    def image_refs(self) -> tuple[str, ...]:
        """The images that this is known to be part of, the first known first."""
        return self.manager.records.get(self.id).image_refs

    @property
    def description(self) -> str:
        return self.manager.records.get(self.id).description

    @description.setter
    def description(self, text: str) -> None:
        self.manager.records.describe(self.id, text)

    def is_lazy(self, handlers: Handlers | None = None) -> bool:
        """Whether the blob has to be brought before it can be read: the store decides (`spec/remote.md` section 2).

        `NeedsRemoteProvider`: it is gone from the store, and neither a handler nor a snapshot can bring it back.
        """
        if self.blob is None or self.manager.has(self.blob):
            return False
        if self.blob_only and self.blob not in (self.handlers if handlers is None else handlers):
            raise NeedsRemoteProvider((str(self.blob),))
        return True

    def can_make(self, digest: str) -> bool:
        """Whether the blob is this ref's own, and directories are known that it could be made of again."""
        return digest == self.blob and not self.blob_only

    def layer_chain(self) -> tuple[Ref, ...]:
        """The refs whose blobs are the layers of this one, base to top, with the same handlers. Release each."""
        records = chain.layers(self.ancestry, self.id)
        return tuple(self._sibling(record.id) for record in records)

    def oci_desc(self, handlers: Handlers | None = None, *, prefer_nondistributable: bool = False) -> Descriptor:
        """The descriptor of the blob (`spec/remote.md` section 2). `NotFound` when the ref has no blob.

        Annotations are those kept in the store, else those that the blob was made with here, else those of the handler
        that belong to the blob; then diff id and creation time. Layers that may not be distributed say so only when
        that is preferred and urls are known.
        """
        record = self._record
        if record.blob is None:
            raise NotFound(f"ref {self.id} has no blob")
        media_type = mediatypes.distributable(record.media_type)
        urls: tuple[str, ...] = ()
        if prefer_nondistributable and record.urls:
            media_type, urls = mediatypes.nondistributable(record.media_type), record.urls
        annotations = self._annotations(record.blob, self.handlers if handlers is None else handlers)
        if record.diff_id is not None:
            annotations[labels.UNCOMPRESSED] = record.diff_id
        if record.created_at:
            annotations[labels.CREATED_AT] = labels.rfc3339(record.created_at)
        return Descriptor(media_type, record.blob, record.size, urls, annotations)

    def get_remote(
        self,
        create_if_needed: bool = False,
        config: RefConfig | None = None,
        handlers: Handlers | None = None,
        *,
        session: object = None,
    ) -> Remote:
        """The layers as descriptors with a provider that brings what is lazy. As the first of `get_remotes`."""
        return next(self.get_remotes(create_if_needed, config, handlers, session=session))

    def get_remotes(
        self,
        create_if_needed: bool = False,
        config: RefConfig | None = None,
        handlers: Handlers | None = None,
        *,
        all: bool = False,
        session: object = None,
    ) -> Iterator[Remote]:
        """The remote of the layers' own blobs, or of their variants when `config` forces a compression.

        With `create_if_needed`, layers that have no blob get one (`creating.compute_blob_chain`), packed as wished;
        what has one keeps it, unless the compression is forced: then layers that are packed otherwise are converted,
        lazy ones after being brought (`converting.variant`). Nothing else is downloaded.

        With `all` (and nothing forced), then each combination of known variants whose top layer is of the type asked
        for, without repetition, `MAX_REMOTES` in all at most. `handlers` None means the ref's own; `session` None
        the context's (see `using_session`).

        `NoBlobs`: a layer has no blob, and creating is not allowed. `NotFound`: the same for a forced variant; or a
        directory that a blob should be made of is gone. `InvalidReference`: a lazy layer's image is not a name.
        `NeedsRemoteProvider`: see `is_lazy`. What fetching and writing raise. All are raised here, not by the iterator,
        and what was not finished then leaves nothing behind.
        """
        return remotes.of(
            self,
            create_if_needed,
            config or RefConfig(),
            self.handlers if handlers is None else handlers,
            all_variants=all,
            session=session,
        )

    def view(self, ref_id: str) -> Ref:
        """The ref of this one or an ancestor, not counted as in use: for what may outlive this ref, as remotes do."""
        return Ref(self.manager, ref_id, self.ancestry, self.handlers, counted=False)

    @contextmanager
    def tar(self, means: Means) -> Iterator[BinaryIO]:
        """The contents of the ref's own blob, unpacked, which is brought first when it is lazy. `NotFound` without."""
        desc = self.oci_desc(means.handlers)
        with LazyProvider(self, desc, means).reader_at(desc) as reader, reader.open() as raw:
            with decompress(raw, desc.media_type or None) as tar:
                yield cast(BinaryIO, tar)

    def usage(self) -> int:
        """Bytes that belong to the ref: the directory that it was made of (as `du` counts), its blob, and each known
        variant once. What is lazy or gone counts nothing."""
        snapshot = self.manager.snapshots.find(self.snapshot_id) if self.snapshot_id else None
        taken = snapshot.usage() if snapshot is not None else 0
        if self.blob is None:
            return taken
        store = self.manager.store
        known = {desc.digest: desc.size for desc in variants.walk(store, self.blob, *variants.leased(self))}
        try:
            known[self.blob] = store.info(self.blob).size
        except (NotFound, DataLoss):
            known.pop(self.blob, None)
        return taken + sum(known.values())

    def clone(self) -> Ref:
        """One more handle on the same record, released on its own."""
        return self._sibling(self.id)

    def release(self) -> None:
        """Give the handle back. A second call does nothing."""
        with self._lock:
            if self._released:
                return
            self._released = True
        self.manager.let_go(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Ref {self.id[:12]} {self.kind.value} {self.blob or 'without a blob'}>"

    @property
    def _record(self) -> Record:
        return self._current(self.id)

    def _current(self, record_id: str) -> Record:
        """A record gets its blob, and then its chain ids, at most once: one that has them is not looked at again."""
        record = self._known[record_id]
        if record.chain_id is None:
            with suppress(NotFound):  # a remote of a ref that was removed may still be read
                record = self._known[record_id] = self.manager.records.get(record_id)
        return record

    def _sibling(self, ref_id: str) -> Ref:
        if self._released:
            raise Closed(f"ref {self.id} was released")
        return Ref(self.manager, ref_id, self.ancestry, self.handlers)

    def _annotations(self, blob: Digest, handlers: Handlers) -> dict[str, str]:
        try:
            info: Info | None = self.manager.store.info(blob)
        except (NotFound, DataLoss):
            info = None
        kept = labels.blob_annotations(info.labels) if info is not None else None
        if kept is not None:
            return kept
        if self.recipe is not None:
            return dict(self.recipe.annotations)
        handler = handlers.get(blob)
        return labels.kept(handler.annotations) if handler is not None else {}
