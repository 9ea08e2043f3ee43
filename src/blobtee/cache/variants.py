"""Variants: blobs with the same contents in another compression, linked by labels (`spec/remote.md` section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from blobtee.cache import labels
from blobtee.cache.leases import CONTENT, variants_lease
from blobtee.compression import Type, from_media_type, is_estargz
from blobtee.content.api import Info, Store
from blobtee.errors import DataLoss, NotFound, PermissionDenied
from blobtee.oci import Descriptor, Digest, mediatypes

if TYPE_CHECKING:
    from blobtee.cache.manager import CacheManager
    from blobtee.cache.ref import Ref


def link(manager: CacheManager, ref: Ref, desc: Descriptor, info: Info | None = None, *, made: bool = False) -> None:
    """Make the blob of `desc`, which is in the store (`info`, where known), a variant of the ref's blob, or say on
    that blob itself what it is. Safe to repeat. `NotFound` when the blob is not in the store.

    `made`: here, so that its diff id is known for sure and may be said under containerd's own name for it.
    """
    info = info if info is not None else manager.store.info(desc.digest)
    lease = variants_lease(ref.id)
    with manager.store.metadata.transaction():
        manager.leases.ensure(lease)
        manager.leases.add(lease, [desc.digest])
    wanted = labels.made_labels(desc) if made else labels.blob_labels(desc)
    wanted |= labels.merged_sources(info.labels, wanted)
    main = ref.blob
    if main is not None and main != desc.digest:
        with suppress(NotFound, DataLoss):  # a main blob that is lazy or gone has no labels to link from
            before = manager.store.info(main)
            # A blob that was there before the ref may have no labels, and would not be seen from its variants.
            said = labels.blob_labels(ref.oci_desc(prefer_nondistributable=True))
            _label(manager.store, before, {**said, **before.labels, labels.LINK + desc.digest: desc.digest})
            wanted[labels.LINK + main] = main
    _label(manager.store, info, wanted)


def _label(store: Store, info: Info, wanted: dict[str, str]) -> None:
    changed: dict[str, str | None] = {key: text for key, text in wanted.items() if info.labels.get(key) != text}
    if changed:
        store.update(info.digest, changed)


def leased(ref: Ref) -> list[Digest]:
    """The variants that the ref's own lease holds, sorted: a blob that is gone from the store links to none."""
    held = ref.manager.leases.resources(variants_lease(ref.id))
    return [Digest(resource) for kind, resource in held if kind == CONTENT]


def walk(store: Store, digest: str, *others: Digest) -> Iterator[Descriptor]:
    """The blob and what it is linked to, directly or not, each once; what is gone or has no type is left out.

    The order is fixed: breadth first, the links of each blob sorted. The walk begins at `others` too.
    """
    queue = list(dict.fromkeys([Digest(digest), *others]))
    visited = set(queue)
    for current in queue:
        try:
            info = store.info(current)
        except (NotFound, DataLoss):
            continue
        annotations = labels.blob_annotations(info.labels)
        if annotations is not None:
            yield Descriptor(info.labels[labels.MEDIA_TYPE], info.digest, info.size, annotations=annotations)
        for linked in labels.links(info.labels):
            if linked not in visited:
                visited.add(linked)
                queue.append(linked)


def find(store: Store, digest: str, wanted: Type, *others: Digest) -> Descriptor:
    """The first of `walk` that is packed as `wanted`; `NotFound`."""
    for desc in walk(store, digest, *others):
        if mediatypes.is_layer(desc.media_type) and not needs_conversion(store, desc, wanted):
            return desc
    raise NotFound(f"no {wanted.value} variant of {digest} is in the store")


def needs_conversion(store: Store, desc: Descriptor, wanted: Type) -> bool:
    """Whether the blob of `desc` has to be packed anew to be `wanted` (`spec/remote.md` section 5).

    What is not a layer never has. Whether a gzip blob is eStargz is told by its bytes, and kept as a label; of a lazy
    one by its annotations.
    """
    if not mediatypes.is_layer(desc.media_type):
        return False
    actual = from_media_type(desc.media_type)
    if wanted not in (Type.GZIP, Type.ESTARGZ) or actual is not Type.GZIP:
        return actual is not wanted
    return _is_estargz(store, desc) is not (wanted is Type.ESTARGZ)


def _is_estargz(store: Store, desc: Descriptor) -> bool:
    try:
        info = store.info(desc.digest)
        known = info.labels.get(labels.IS_ESTARGZ)
        if known:
            return known == "true"
        with store.reader_at(desc) as reader:
            answer = is_estargz(reader)
    except NotFound:
        return labels.TOC_DIGEST in desc.annotations
    with suppress(NotFound, PermissionDenied):  # a label saves the next look, no more
        store.update(desc.digest, {labels.IS_ESTARGZ: "true" if answer else "false"})
    return answer
