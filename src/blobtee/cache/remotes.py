"""From a ref to its remotes (`spec/remote.md` section 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from blobtee.cache import converting, labels, variants
from blobtee.cache.creating import AT_ONCE, compute_blob_chain
from blobtee.cache.handlers import Handlers, Means, current_session
from blobtee.cache.records import Recipe
from blobtee.cache.remote import MAX_REMOTES, LazyMultiProvider, LazyProvider, RefConfig, Remote
from blobtee.compression import Type, detect
from blobtee.errors import UnsupportedMediaType
from blobtee.oci import Compressed, Descriptor, mediatypes
from blobtee.tasks import Group, check

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
    means = Means(handlers, session if session is not None else current_session())
    recipe = Recipe(config.compression, config.epoch)
    with ref.manager.leases.hold():
        layers = compute_blob_chain(ref, create_if_needed, recipe, means)
        providers = _providers(layers, create_if_needed, config, means)
    main = Remote(tuple(provider.desc for provider in providers), LazyMultiProvider(providers))
    if not all_variants or config.compression.force or not providers:
        return iter([main])
    return islice(_distinct(main, _combinations(providers, config.compression.type)), MAX_REMOTES)


def _providers(layers: Sequence[Ref], create_if_needed: bool, config: RefConfig, means: Means) -> list[LazyProvider]:
    """The provider of each layer; a layer that is there twice shares one."""
    distinct = {layer.id: layer for layer in layers}
    if not config.compression.force:
        made = {layer_id: _provider(layer, config, means) for layer_id, layer in distinct.items()}
        return [made[layer.id] for layer in layers]
    with Group(AT_ONCE, name="blobtee-convert") as group:
        tasks = {
            layer_id: group.spawn(_forced, layer, create_if_needed, config, means)
            for layer_id, layer in distinct.items()
        }
    return [tasks[layer.id].result() for layer in layers]


def _provider(layer: Ref, config: RefConfig, means: Means) -> LazyProvider:
    """The layer's own blob."""
    check()
    return LazyProvider(layer, _described(layer, config, means)[0], means)


def _forced(layer: Ref, create_if_needed: bool, config: RefConfig, means: Means) -> LazyProvider:
    """The layer's own blob if it is packed as is wanted, else a variant that is."""
    desc, sources = _described(layer, config, means)
    own = LazyProvider(layer, desc, means)
    wanted = config.compression
    if not variants.needs_conversion(layer.manager.store, desc, wanted.type):
        return own
    variant = converting.variant(layer, desc, wanted, create_if_needed, means)
    if variant.digest == desc.digest:
        return own
    # A new object in all its parts: nothing of the old blob (urls, annotations) may stick to the variant.
    return LazyProvider(layer, replace(variant, annotations={**sources, **variant.annotations}), means, own)


def _described(layer: Ref, config: RefConfig, means: Means) -> tuple[Descriptor, dict[str, str]]:
    """The descriptor of the layer's own blob, and the annotations in it that say where it can be had, if lazy."""
    desc = layer.oci_desc(means.handlers, prefer_nondistributable=config.prefer_nondistributable)
    lazy = layer.is_lazy(means.handlers)
    if not desc.media_type:
        desc = replace(desc, media_type=_detected(layer, desc, lazy=lazy))
    sources: dict[str, str] = {}
    if lazy:
        for image_ref in layer.image_refs:
            sources |= labels.with_source({**desc.annotations, **sources}, image_ref)
    return desc.annotated(sources), sources


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
    """The layer's own blob, then its variants."""
    ref = provider.ref
    choices = [provider]
    for desc in variants.walk(ref.manager.store, provider.desc.digest, *variants.leased(ref)):
        if desc.digest != provider.desc.digest and mediatypes.is_layer(desc.media_type):
            choices.append(LazyProvider(ref, desc, provider.means, provider))
    return choices


def _distinct(main: Remote, others: Iterator[Remote]) -> Iterator[Remote]:
    seen = {tuple(desc.digest for desc in main.descriptors)}
    yield main
    for remote in others:
        digests = tuple(desc.digest for desc in remote.descriptors)
        if digests not in seen:
            seen.add(digests)
            yield remote
