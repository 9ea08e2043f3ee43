"""From a ref to its remotes (`spec/remote.md` section 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from blobtee.cache import chain, labels, variants
from blobtee.cache.handlers import Handlers, current_session
from blobtee.cache.remote import MAX_REMOTES, LazyMultiProvider, LazyProvider, RefConfig, Remote
from blobtee.compression import Type, detect
from blobtee.errors import NoBlobs, NotFound, Unimplemented, UnsupportedMediaType
from blobtee.oci import Compressed, Descriptor, mediatypes
from blobtee.tasks import check

if TYPE_CHECKING:
    from blobtee.cache.ref import Ref

_DOCKER_LAYERS = {
    Compressed.NONE: mediatypes.DOCKER_LAYER,
    Compressed.GZIP: mediatypes.DOCKER_LAYER + ".gzip",
    Compressed.ZSTD: mediatypes.DOCKER_LAYER + ".zstd",
}


def of(
    ref: Ref, create_if_needed: bool, config: RefConfig, handlers: Handlers, *, all_variants: bool, session: object
) -> Iterator[Remote]:
    """See `Ref.get_remotes`."""
    session = session if session is not None else current_session()
    with ref.manager.leases.hold():
        layers = _blob_chain(ref, create_if_needed)
        providers = [_provider(layer, create_if_needed, config, handlers, session) for layer in layers]
    main = Remote(tuple(provider.desc for provider in providers), LazyMultiProvider(providers))
    if not all_variants or config.compression.force or not providers:
        return iter([main])
    return islice(_distinct(main, _combinations(providers, config.compression.type)), MAX_REMOTES)


def _blob_chain(ref: Ref, create_if_needed: bool) -> list[Ref]:
    """The refs of the layers; each has a blob.

    They are views on the ref for its remotes, which may outlive it, and so do not count as in use.
    """
    layers = [ref.view(record.id) for record in chain.layers(ref.ancestry, ref.id)]
    for layer in layers:
        if layer.blob is not None:
            continue
        if create_if_needed:
            raise Unimplemented(f"ref {layer.id} has no blob, and making one of a snapshot is not implemented yet")
        raise NoBlobs(f"ref {layer.id} has no blob, and none may be created")
    return layers


def _provider(
    layer: Ref, create_if_needed: bool, config: RefConfig, handlers: Handlers, session: object
) -> LazyProvider:
    check()
    store = layer.manager.store
    desc = layer.oci_desc(handlers, prefer_nondistributable=config.prefer_nondistributable)
    lazy = layer.is_lazy(handlers)
    if not desc.media_type:
        desc = replace(desc, media_type=_detected(layer, desc, lazy=lazy))
    sources: dict[str, str] = {}
    if lazy:
        for image_ref in layer.image_refs:
            sources |= labels.with_source({**desc.annotations, **sources}, image_ref)
        desc = desc.annotated(sources)
    handler = handlers.get(desc.digest)
    wanted = config.compression
    if wanted.force and variants.needs_conversion(store, desc, wanted.type):
        try:
            variant = variants.find(store, desc.digest, wanted.type)
        except NotFound:
            if not create_if_needed:
                raise
            raise Unimplemented(
                f"layer {desc.digest} would have to be converted to {wanted.type.value}, which is not implemented yet"
            ) from None
        # A new object in all its parts: nothing of the old blob (urls, annotations) may stick to the variant.
        desc = replace(variant, annotations={**sources, **variant.annotations})
    return LazyProvider(layer, desc, handler, session)


def _detected(layer: Ref, desc: Descriptor, *, lazy: bool) -> str:
    """The Docker media type of a blob whose record has none: it comes from the time before leases."""
    if lazy:
        raise UnsupportedMediaType(f"layer {desc.digest} is lazy and has no media type")
    with layer.manager.store.reader_at(desc) as reader:
        return _DOCKER_LAYERS[detect(reader.read_at(0, 4))]


def _combinations(providers: Sequence[LazyProvider], wanted: Type) -> Iterator[Remote]:
    """Each choice of one blob a layer, the top one of the type `wanted`. Made one at a time: they multiply."""
    *lower, top = providers
    store = top.ref.manager.store
    tops = [choice for choice in _choices(top) if not variants.needs_conversion(store, choice.desc, wanted)]
    if not tops:
        return
    for chosen in product(*(_choices(provider) for provider in lower), tops):
        yield Remote(tuple(choice.desc for choice in chosen), LazyMultiProvider(chosen))


def _choices(provider: LazyProvider) -> list[LazyProvider]:
    """The layer's own blob, then its variants. Only its own may be lazy; it keeps its handler."""
    choices = [provider]
    for desc in variants.walk(provider.ref.manager.store, provider.desc.digest):
        if desc.digest != provider.desc.digest and mediatypes.is_layer(desc.media_type):
            choices.append(LazyProvider(provider.ref, desc, None, provider.session))
    return choices


def _distinct(main: Remote, others: Iterator[Remote]) -> Iterator[Remote]:
    seen = {tuple(desc.digest for desc in main.descriptors)}
    yield main
    for remote in others:
        digests = tuple(desc.digest for desc in remote.descriptors)
        if digests not in seen:
            seen.add(digests)
            yield remote
