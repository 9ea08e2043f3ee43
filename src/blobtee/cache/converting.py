"""Variants made to order: a layer's blob packed as somebody insists on (`spec/remote.md` sections 1 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobtee import conversion
from blobtee.cache import labels, unlazy, variants
from blobtee.cache.flights import flights
from blobtee.cache.handlers import Means
from blobtee.compression import Compression
from blobtee.errors import NotFound
from blobtee.oci import Descriptor

if TYPE_CHECKING:
    from blobtee.cache.ref import Ref


def variant(layer: Ref, desc: Descriptor, wanted: Compression, create: bool, means: Means) -> Descriptor:
    """The layer's blob `desc` packed as `wanted` says: the first known variant of that type, whatever its level (only
    the type can be told of a blob), else one that is made now, of the blob, which is brought first when it is lazy.

    Callers who ask for the same share the work. The lease of the context holds the result, which has no urls.

    `NotFound`: there is none, and none may be created. Else the errors of `unlazy` and `conversion.convert`; nothing
    is left behind then.
    """
    manager = layer.manager
    found = _found(layer, desc, wanted)
    if found is not None:
        return found
    if not create:
        raise NotFound(f"no {wanted.type.value} variant of {desc.digest} is in the store")
    shared = flights(manager.store)

    def convert() -> tuple[str, Descriptor]:
        # The lease of whoever started this goes when he does; others may still wait.
        with manager.leases.hold(fresh=True), shared.turns.of((desc.digest, wanted.type)):
            return layer.id, _found(layer, desc, wanted) or _converted(layer, desc, wanted, means)

    by, result = shared.convert.do((desc.digest, wanted.type, wanted.level), convert)
    manager.leases.protect([result.digest])
    if by != layer.id:
        variants.link(manager, layer, result)
    return result


def _found(layer: Ref, desc: Descriptor, wanted: Compression) -> Descriptor | None:
    """A known variant, held by the lease of the context, and still there after it was."""
    manager = layer.manager
    try:
        found = variants.find(manager.store, desc.digest, wanted.type, *variants.leased(layer))
    except NotFound:
        return None
    manager.leases.protect([found.digest])
    return found if manager.has(found.digest) else None


def _converted(layer: Ref, desc: Descriptor, wanted: Compression, means: Means) -> Descriptor:
    manager = layer.manager
    unlazy.unlazy(layer, desc, means)
    if not variants.needs_conversion(manager.store, desc, wanted.type):
        return desc.bare().annotated(labels.kept(desc.annotations))  # only its bytes could tell that it is eStargz
    result = conversion.convert(
        manager.store,
        desc,
        wanted,
        before_commit=lambda made: manager.leases.protect([made.digest]),
    )
    result = result.bare().annotated(labels.kept(result.annotations))
    variants.link(manager, layer, result, made=True)
    return result
