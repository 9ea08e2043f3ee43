"""Bringing an image into a store, lazily or whole."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from blobtee import tasks
from blobtee.cache import CacheManager, Handler, MetadataStore
from blobtee.cache import labels as cache_labels
from blobtee.compression import Compression
from blobtee.errors import DataLoss, InvalidArgument, NotFound
from blobtee.image import Image
from blobtee.oci import Descriptor, Index, Manifest, Platform, Reference
from blobtee.registry import Registry
from blobtee.transfer import images
from blobtee.transfer.addresses import parse
from blobtee.transfer.building import repacked
from blobtee.transfer.open import open_source
from blobtee.transfer.places import MAX_DEPTH, Source, too_deep
from blobtee.transfer.remote import RemoteSource


def pull(
    ref: str,
    store: MetadataStore,
    *,
    lazy: bool = False,
    platform: Platform | str | None = None,
    compression: Compression | None = None,
    bandwidth: float | str | None = None,
    registry: Registry | None = None,
    name: str | None = None,
) -> Image:
    """Have the image at the address `ref` in `store`, and return it; close it after use.

    With `lazy` only its documents are fetched (manifest, index, config); layers come when they are read, through
    `registry` (one for the process by default), which must stay open as long as the image. Otherwise all layers are
    brought, several at a time; with a `bandwidth` (`tasks.bandwidth_of`) at that, and behind others who use the store.
    `Image.fill` brings those of a lazy one while they are read. Of an index it is the image for `platform`, this
    machine's by default. The store knows it by `name`, else by its full reference, or by what the layout or archive
    calls it.

    With a `compression`, layers that are packed otherwise are brought and converted, also in a lazy pull; what the
    store knows of it is used again (`Ref.get_remote` with a forced compression). The image then has documents of its
    own, as `convert` makes them, and the name stands for its manifest alone.

    `NotFound`: no such image, or none for the platform. `UnsupportedMediaType`: not an image. `InvalidDocument`: a
    document that breaks the rules. `InvalidArgument`: lazy, but not from a registry; a `compression`, and a name with a
    digest; no such bandwidth. After any failure the store is sound: what came is kept and not fetched again by the next
    attempt, and the name is as it was.
    """
    address = parse(ref)
    rate = tasks.bandwidth_of(bandwidth)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    if lazy and not isinstance(address, Reference):
        raise InvalidArgument(f"{ref}: only images in a registry can be pulled lazily")
    if compression is not None and name is None and isinstance(address, Reference) and address.digest is not None:
        raise InvalidArgument(f"{ref}: converted, it would have another digest than its name says; give it a name")
    with open_source(address, registry) as source:
        if isinstance(source, RemoteSource) and not _may_be_here(store, source, name):
            source.fetch_root()
        documents = _documents(store, source, source.root(), wanted)
        manifest = documents[-1]
        assert isinstance(manifest, Manifest)
        images.check_image(manifest)
        raw_config = _config(store, source, manifest)
        config = images.read_config(raw_config, manifest)
        images.check_platform(documents[0], config, wanted)

        origin = source.reference if isinstance(source, RemoteSource) else None
        labels = cache_labels.with_source({}, str(origin)) if origin is not None else {}
        if origin is not None:
            handlers = images.handlers(manifest, [origin], registry)
        else:
            handlers = {layer.digest: Handler(lambda session: source) for layer in manifest.layers}
        known_as = name or source.name or ref
        manager = CacheManager(store)
        with manager.leases.hold():
            # Until the name holds them.
            manager.leases.protect([manifest.config.digest, *(document.digest for document in documents)])
            images.keep_document(store, manifest.config, raw_config, labels)
            for document in reversed(documents):
                told = {**images.child_labels(document), **labels}
                images.keep_document(store, document.descriptor, document.raw, told)
            image_ref = str(origin) if origin is not None else ""
            descriptor = _member(documents, manifest)
            image = images.assemble(store, known_as, descriptor, manifest, config, handlers, image_ref)
            try:
                root = documents[0].descriptor
                with tasks.in_background(rate) if rate is not None else contextlib.nullcontext():
                    if compression is not None:
                        image = repacked(image, store, compression, handlers, labels, image_ref)
                        root = root if image.descriptor == descriptor else image.manifest.descriptor
                    if not lazy:
                        image.get_remote().unlazy()
                _say_sources(store, manifest, labels)
                if images.has_names(store):
                    store.layout.set(known_as, root)
            except BaseException:
                image.close()
                raise
        return image


def _may_be_here(store: MetadataStore, source: RemoteSource, name: str | None) -> bool:
    """Whether asking for the digest alone may spare fetching the document: the name is known, or is a digest."""
    return source.reference.digest is not None or (name or source.name) in images.names(store)


def _say_sources(store: MetadataStore, manifest: Manifest, labels: Mapping[str, str]) -> None:
    """Layers that were here before can be had from this image too: whoever makes room goes by that."""
    for layer in manifest.layers if labels else ():
        with contextlib.suppress(NotFound, DataLoss):
            before = store.info(layer.digest).labels
            merged = cache_labels.merged_sources(before, labels)
            if any(before.get(key) != value for key, value in merged.items()):
                store.update(layer.digest, merged)


def _documents(
    store: MetadataStore, source: Source, root: Descriptor, platform: Platform | None
) -> list[Manifest | Index]:
    """The root document, and those below it down to the one image."""
    documents = [_document(store, source, root)]
    while isinstance(index := documents[-1], Index):
        if len(documents) > MAX_DEPTH:
            raise too_deep()
        documents.append(_document(store, source, index.select(platform or Platform.current())))
    return documents


def _document(store: MetadataStore, source: Source, desc: Descriptor) -> Manifest | Index:
    try:
        return images.StoredDocuments(store).document(desc)
    except (NotFound, DataLoss):
        return source.document(desc)


def _config(store: MetadataStore, source: Source, manifest: Manifest) -> bytes:
    try:
        return images.read_document(store, manifest.config)
    except (NotFound, DataLoss):
        with source.reader_at(manifest.config) as reader:
            return images.checked(reader, manifest.config)


def _member(documents: list[Manifest | Index], manifest: Manifest) -> Descriptor:
    for document in documents:
        if isinstance(document, Index):
            for member in document.manifests:
                if member.digest == manifest.digest:
                    return member
    return manifest.descriptor
