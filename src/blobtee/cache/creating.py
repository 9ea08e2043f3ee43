"""Blobs for refs that have none: a ref's blob chain (`spec/remote.md` section 3)."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from blobtee import conversion, tasks
from blobtee.cache import chain, labels, mounting, variants
from blobtee.cache.flights import flights
from blobtee.cache.handlers import Means
from blobtee.cache.piping import Write
from blobtee.cache.records import Recipe
from blobtee.compression import Compression, Type, from_media_type
from blobtee.content.api import Info, Writer
from blobtee.errors import AlreadyExists, DigestMismatch, NoBlobs, PermissionDenied, RefLocked
from blobtee.oci import Descriptor, Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

    from blobtee.cache.ref import Ref

AT_ONCE = max(2, min(8, os.cpu_count() or 1))
"""Layers that are made at a time; each is packed by several threads."""

_LOCK_WAIT = 0.1


def compute_blob_chain(ref: Ref, create_if_needed: bool, recipe: Recipe, means: Means) -> list[Ref]:
    """See that each layer of `ref` has a blob, and return the layers, base to top.

    Needs a lease in the context, which takes over what is made. Layers are made several at a time, and each once
    however many ask. The blob of a layer is what the first caller wished for: one who wishes for another type finds a
    blob and is content, unless his compression is forced (see `converting`). The first error cancels the other layers;
    what they made so far stays theirs.

    The layers are views on the ref for its remotes, which may outlive it, and so do not count as in use.

    `NoBlobs`: a layer has none, and none may be created. `NotFound`: a directory is gone.
    """
    views = _layers(ref)
    lacking = {layer.id: layer for layer in views if layer.blob is None}
    if lacking and not create_if_needed:
        raise NoBlobs(f"ref {next(iter(lacking))} has no blob, and none may be created")
    if lacking:
        with tasks.Group(AT_ONCE, name="blobtee-create") as group:
            for layer in lacking.values():
                group.spawn(_ensure, layer, recipe, means)
    if ref.chain_id is None:
        _set_chain_ids(ref)
    return _layers(ref)


def rebuild(layer: Ref, desc: Descriptor, means: Means) -> None:
    """Make the layer's own blob, which is gone from the store, again of the directories that it was made of.

    `DigestMismatch`: they give other bytes now, or it was packed by somebody else. `NotFound`: a directory is gone.
    """
    recipe = layer.recipe or Recipe(_guessed(desc))
    info = _pack(layer, recipe, means, expected=desc)[1]
    variants.link(layer.manager, layer, desc, info, made=True)


def _layers(ref: Ref) -> list[Ref]:
    ancestry = ref.ancestry
    return [ref.view(record.id) for record in chain.layers(ancestry, ref.id)]


def _ensure(layer: Ref, recipe: Recipe, means: Means) -> None:
    manager = layer.manager
    compression = recipe.compression
    shared = flights(manager.store)

    def create() -> None:
        # The lease of whoever started this goes when he does; others may still wait.
        with manager.leases.hold(fresh=True), shared.turns.of(("create", layer.id)):
            if layer.blob is None:
                _create(layer, recipe, means)

    shared.create.do((layer.id, compression.type, compression.level, recipe.epoch), create)
    if layer.blob is not None:
        manager.leases.protect([layer.blob])


def _create(layer: Ref, recipe: Recipe, means: Means) -> None:
    manager = layer.manager
    desc, info = _pack(layer, recipe, means)
    with manager.store.metadata.transaction():
        made = replace(recipe, annotations=labels.kept(desc.annotations))
        manager.records.set_blob(layer.id, desc, Digest(desc.annotations[labels.UNCOMPRESSED]), made)
        manager.leases.ensure(layer.id)
        manager.leases.add(layer.id, [desc.digest])
    # Another process may have been first with another blob; ours is a variant of it then.
    variants.link(manager, layer, desc, info, made=True)


def _pack(layer: Ref, recipe: Recipe, means: Means, *, expected: Descriptor | None = None) -> tuple[Descriptor, Info]:
    """Write the layer's changes as a blob into the store, held by the lease of the context before it is one."""
    store = layer.manager.store
    kind = recipe.compression.type
    name = f"create-{layer.id}-{kind.value}"
    with tasks.meter(layer.id, "create") as progress, _writer(layer, name) as writer:
        try:
            with conversion.Packer(recipe.compression, writer.write) as packer:
                mounting.write_changes(layer, _counted(packer.write, progress), means, epoch=recipe.epoch)
                packed = packer.finish()
            desc = Descriptor(kind.media_type, writer.digest, writer.status.offset, annotations=packed.annotations)
            if expected is not None and expected.digest != desc.digest:
                raise DigestMismatch(f"layer {expected.digest}, made again", expected.digest, desc.digest)
            layer.manager.leases.protect([desc.digest])
            with suppress(AlreadyExists):
                writer.commit(desc.size, desc.digest, labels.made_labels(desc))
        except BaseException:
            writer.close()
            with tasks.shield():
                store.abort(name)
            raise
    return desc, store.info(desc.digest)


def _writer(layer: Ref, name: str) -> Writer:
    """A new ingest; while another process makes the same blob, wait. What a killed process left is overwritten."""
    while True:
        tasks.check()
        try:
            writer = layer.manager.store.writer(name)
        except RefLocked:
            tasks.sleep(_LOCK_WAIT)
            continue
        try:
            if writer.status.offset:
                writer.truncate(0)
        except BaseException:
            writer.close()
            raise
        return writer


def _counted(write: Write, progress: tasks.Progress) -> Write:
    def counted(data: Buffer) -> None:
        tasks.check()
        write(data)
        progress.advance(memoryview(data).nbytes)

    return counted


def _guessed(desc: Descriptor) -> Compression:
    return Compression(Type.ESTARGZ if labels.TOC_DIGEST in desc.annotations else from_media_type(desc.media_type))


def _set_chain_ids(ref: Ref) -> None:
    """Write down the ids of all in the ref's ancestry that can have them by now."""
    with suppress(PermissionDenied), ref.manager.store.metadata.transaction():
        for record_id, ids in chain.missing_ids(ref.ancestry).items():
            ref.manager.records.set_chain_ids(record_id, *ids)
