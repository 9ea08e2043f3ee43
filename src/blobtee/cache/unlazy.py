"""Bringing a lazy blob: once, however many ask."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from blobtee import compression, content
from blobtee.cache import creating, labels, variants
from blobtee.cache.flights import flights
from blobtee.cache.handlers import Handler, Means
from blobtee.content import LocalStore
from blobtee.content.api import Info, ReaderAt
from blobtee.content.trust import Trust
from blobtee.errors import (
    ConnectionFailed,
    DigestMismatch,
    LazyUnavailable,
    NeedsRemoteProvider,
    NotFound,
    TooManyRequests,
)
from blobtee.oci import Descriptor
from blobtee.tee import source_of, tee_of

if TYPE_CHECKING:
    from blobtee.cache.ref import Ref


def unlazy(ref: Ref, desc: Descriptor, means: Means) -> None:
    """Bring the blob of `desc` into the store of `ref` unless it is there, and link it to the ref.

    Callers who ask for the same digest share one fetch; each may be cancelled alone. Nothing else waits for it. A blob
    that has no handler, but was made here of directories, is made of them again (`creating.rebuild`).

    `UnsupportedMediaType`, before anything is fetched. `NeedsRemoteProvider`: no handler, nor directories.
    `LazyUnavailable`: the source does not answer, or has the blob no more, or the directories are gone or give other
    bytes (the text and the causes say which); a builder may take it as a cache miss. `SizeMismatch`, also when the
    blob is here in another size than `desc` says. The rest is the source's own (`Unauthenticated`, `DigestMismatch`,
    ...) or the store's. After a failure the store is as before, but for a partial ingest that the next attempt resumes.
    """
    manager = ref.manager
    if manager.has_all_of(desc):
        return
    compression.from_media_type(desc.media_type)
    handler = means.handlers.get(desc.digest)
    if handler is None and not ref.can_make(desc.digest):
        raise NeedsRemoteProvider((str(desc.digest),))

    def bring() -> str:
        # The lease of whoever started this goes when he does; others may still wait.
        with manager.leases.hold(fresh=True):
            if manager.has(desc.digest):
                return ref.id
            if handler is None:
                _make_again(ref, desc, means)
                return ref.id
            with (handler.progress or _silent)(desc):
                info = _copy(ref, desc, handler, means.session)
                _settle(ref, desc, info)
        return ref.id

    store = manager.store
    try:
        with tee_of(store).wanting(desc.digest) if isinstance(store, LocalStore) else nullcontext():
            by = flights(store).unlazy.do(desc.digest, bring)
    except NeedsRemoteProvider:
        raise
    except (ConnectionFailed, NotFound, TooManyRequests) as error:
        raise LazyUnavailable(f"layer {desc.digest} is not to be had now: {error}") from error
    manager.leases.protect([desc.digest])
    manager.has_all_of(desc)  # who shared the fetch may have said another size
    if by != ref.id:
        with suppress(NotFound):  # somebody made room already: it is lazy again, and is settled when it comes
            _settle(ref, desc, manager.store.info(desc.digest))


def _make_again(ref: Ref, desc: Descriptor, means: Means) -> None:
    try:
        creating.rebuild(ref, desc, means)
    except NeedsRemoteProvider:
        raise
    except (DigestMismatch, NotFound) as error:
        # Whoever waits with a handler can still fetch it.
        raise LazyUnavailable(f"layer {desc.digest} is gone, and cannot be made again: {error}") from error


def _silent(desc: Descriptor) -> nullcontext[None]:
    return nullcontext()


def reader_at(ref: Ref, desc: Descriptor, means: Means, trust: Trust) -> ReaderAt | None:
    """A reader that brings what is read of a lazy blob, and the whole by `unlazy`; None when there is nothing to bring,
    or the store has no place for parts of blobs. `UnsupportedMediaType`, before anything is fetched."""
    manager = ref.manager
    handler = means.handlers.get(desc.digest)
    if handler is None or manager.has_all_of(desc) or not isinstance(manager.store, LocalStore):
        return None
    compression.from_media_type(desc.media_type)
    return tee_of(manager.store).reader_at(
        desc,
        lambda: source_of(handler.provider(means.session), desc),
        trust,
        labels=labels.blob_labels(desc),
        fill=lambda: unlazy(ref, desc, means),
    )


def _copy(ref: Ref, desc: Descriptor, handler: Handler, session: object) -> Info:
    manager = ref.manager
    # Before it is a blob: there is no moment in which nothing holds it.
    manager.leases.protect([desc.digest])
    if isinstance(manager.store, LocalStore):
        return tee_of(manager.store).fill(
            desc, lambda: source_of(handler.provider(session), desc), labels.blob_labels(desc)
        )
    return content.copy(manager.store, handler.provider(session), desc, labels=labels.blob_labels(desc))


def _settle(ref: Ref, desc: Descriptor, info: Info) -> None:
    """What follows a fetch for each ref that has the blob: a description, and the link."""
    manager = ref.manager
    try:
        image_refs = ref.image_refs
    except NotFound:
        return  # the ref was removed meanwhile; a remote of it may still be read
    if image_refs:
        manager.records.describe(ref.id, f"pulled from {image_refs[0]}", only_when_empty=True)
    variants.link(manager, ref, desc, info)
