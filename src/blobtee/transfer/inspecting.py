"""What is known of an image without bringing its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from blobtee.cache import MetadataStore, Ref, variants
from blobtee.cache import labels as cache_labels
from blobtee.compression import Type, from_media_type, is_estargz
from blobtee.errors import DataLoss, NotFound
from blobtee.image import Image
from blobtee.oci import Config, Descriptor, Digest, Index, Manifest, Platform, Reference, chain_ids, mediatypes
from blobtee.registry import Registry
from blobtee.transfer import images
from blobtee.transfer.addresses import parse
from blobtee.transfer.open import open_source
from blobtee.transfer.places import Documents, Source, select


@dataclass(frozen=True)
class LayerFacts:
    """One layer. `compression` is None for what is no layer of a known kind. `present`: no registry has to be asked for
    its bytes. `variants` are blobs of the store with the same contents in another packing, each with its type."""

    descriptor: Descriptor
    diff_id: Digest
    chain_id: Digest
    compression: Type | None
    present: bool
    variants: tuple[tuple[Descriptor, Type], ...] = ()


@dataclass(frozen=True)
class Inspection:
    """An image: `root` is what its name stands for, an index or `manifest` itself. `layers` are base to top."""

    name: str
    root: Manifest | Index
    manifest: Manifest
    config: Config
    platform: Platform
    layers: tuple[LayerFacts, ...]

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """What the index offers; empty when there is none."""
        members = self.root.manifests if isinstance(self.root, Index) else ()
        return tuple(each.platform for each in members if each.platform is not None and each.platform.os != "unknown")


def inspect(
    what: str,
    store: MetadataStore | None = None,
    *,
    platform: Platform | str | None = None,
    registry: Registry | None = None,
) -> Inspection:
    """What is known of the image that `store` knows by the name `what`, or else of the one at the address `what`.

    From a registry only documents are fetched, and nothing is kept. Of an index it is the image for `platform`, as for
    `open_image` and `pull`. `NotFound`, `UnsupportedMediaType`: no image.
    """
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    known = _stored(what, store)
    if store is not None and known is not None:
        name, root = known
        with images.open_root(store, name, root, wanted, registry) as image:
            return _of_stored(image, images.StoredDocuments(store).document(root), store)
    address = parse(what)
    with open_source(address, registry) as source:
        document = source.document(source.root())
        manifest = select(source, document, wanted or Platform.current())
        images.check_image(manifest)
        with source.reader_at(manifest.config) as reader:
            config = images.read_config(images.checked(reader, manifest.config), manifest)
        images.check_platform(document, config, wanted)
        is_local = not isinstance(address, Reference)
        layers = zip(manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True)
        facts = [_fact(source, store, is_local, layer, diff_id, chain) for layer, diff_id, chain in layers]
        return Inspection(source.name or what, document, manifest, config, config.platform, tuple(facts))


def raw_document(
    what: str,
    store: MetadataStore | None = None,
    *,
    platform: Platform | str | None = None,
    registry: Registry | None = None,
) -> bytes:
    """The bytes of the manifest or index that `what` stands for (see `inspect`), whatever it is; with `platform`, of
    the one image."""
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    with _documents(what, store, registry) as (documents, root):
        document = documents.document(root)
        return (document if wanted is None else select(documents, document, wanted)).raw


def _stored(what: str, store: MetadataStore | None) -> tuple[str, Descriptor] | None:
    if store is not None and images.has_names(store):
        try:
            return images.find(store, what)
        except NotFound:
            pass
    return None


@contextmanager
def _documents(
    what: str, store: MetadataStore | None, registry: Registry | None
) -> Iterator[tuple[Documents, Descriptor]]:
    known = _stored(what, store)
    if store is not None and known is not None:
        yield images.StoredDocuments(store), known[1]
        return
    with open_source(parse(what), registry) as source:
        yield source, source.root()


def _of_stored(image: Image, root: Manifest | Index, store: MetadataStore) -> Inspection:
    refs: Sequence[Ref] = image.ref.layer_chain() if image.ref is not None else ()
    try:
        chains = chain_ids(image.config.diff_ids)
        facts = []
        for layer, diff_id, chain, ref in zip(image.manifest.layers, image.config.diff_ids, chains, refs, strict=True):
            others = _variants(store, layer, variants.leased(ref))
            facts.append(LayerFacts(layer, diff_id, chain, _type(layer, store), _has(store, layer), others))
    finally:
        for ref in refs:
            ref.release()
    platform = image.platform or image.config.platform
    return Inspection(image.name, root, image.manifest, image.config, platform, tuple(facts))


def _fact(
    source: Source, store: MetadataStore | None, is_local: bool, layer: Descriptor, diff_id: Digest, chain: Digest
) -> LayerFacts:
    """A layer of an image that the store does not know by name; it may know the blob."""
    if store is not None and _has(store, layer):
        return LayerFacts(layer, diff_id, chain, _type(layer, store), True, _variants(store, layer, ()))
    kind = _type(layer, None)
    if is_local and kind is Type.GZIP:
        with source.reader_at(layer) as reader:
            kind = Type.ESTARGZ if is_estargz(reader) else kind
    return LayerFacts(layer, diff_id, chain, kind, is_local)


def _variants(store: MetadataStore, layer: Descriptor, others: Sequence[Digest]) -> tuple[tuple[Descriptor, Type], ...]:
    found = []
    for desc in variants.walk(store, layer.digest, *others):
        kind = _type(desc, store)
        if desc.digest != layer.digest and kind is not None:
            found.append((desc, kind))
    return tuple(found)


def _type(desc: Descriptor, store: MetadataStore | None) -> Type | None:
    """How the blob is packed; the bytes of one that `store` has tell eStargz, else the annotations."""
    if not mediatypes.is_layer(desc.media_type):
        return None
    kind = from_media_type(desc.media_type)
    if kind is not Type.GZIP:
        return kind
    if store is None:
        return Type.ESTARGZ if cache_labels.TOC_DIGEST in desc.annotations else kind
    return kind if variants.needs_conversion(store, desc, Type.ESTARGZ) else Type.ESTARGZ


def _has(store: MetadataStore, layer: Descriptor) -> bool:
    try:
        return store.info(layer.digest).size == layer.size
    except (NotFound, DataLoss):
        return False
