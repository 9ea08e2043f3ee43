"""Bringing an image into a store, lazily or whole."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blobtee import tasks
from blobtee.cache import CacheManager, Handler, MetadataStore
from blobtee.cache import labels as cache_labels
from blobtee.compression import Compression
from blobtee.content import LocalStore
from blobtee.errors import DataLoss, InvalidArgument, NotFound
from blobtee.image import Image
from blobtee.oci import Config, Descriptor, Index, Manifest, Platform, Reference
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
    calls it; when `name` is "", by none, so that it goes with the next collection after it was closed.

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
        found = _looked_up(store, source, wanted, name)
        manifest, labels, origin = found.manifest, found.labels, found.origin
        if origin is not None:
            handlers = images.handlers(manifest, [origin], registry)
        else:
            handlers = {layer.digest: Handler(lambda session: source) for layer in manifest.layers}
        known_as = name or source.name or ref
        manager = CacheManager(store)
        with manager.leases.hold():
            _keep(store, manager, found)
            image_ref = str(origin) if origin is not None else ""
            descriptor = found.descriptor
            image = images.assemble(store, known_as, descriptor, manifest, found.config, handlers, image_ref)
            try:
                root = found.documents[0].descriptor
                with tasks.in_background(rate) if rate is not None else contextlib.nullcontext():
                    if compression is not None:
                        image = repacked(image, store, compression, handlers, labels, image_ref)
                        root = root if image.descriptor == descriptor else image.manifest.descriptor
                    if not lazy:
                        image.get_remote().unlazy()
                _say_sources(store, manifest, labels)
                if images.has_names(store) and name != "":
                    store.layout.set(known_as, root)
            except BaseException:
                image.close()
                raise
        return image


@dataclass(frozen=True)
class Known:
    """What an image is made of, and where it came from. `descriptor` is the manifest's, as an index has it."""

    name: str
    source: Reference
    descriptor: Descriptor
    manifest: Manifest
    platform: Platform | None


def know(
    ref: str, store: LocalStore, *, platform: Platform | str | None = None, registry: Registry | None = None
) -> Known:
    """As a lazy `pull`, for who keeps the layers' sources himself: the documents of the image are in the store and it
    has its name, but there are no refs, which would hold what comes of its layers until they are collected.

    Errors are those of `pull`.
    """
    address = parse(ref)
    if not isinstance(address, Reference):
        raise InvalidArgument(f"{ref}: only images in a registry can be pulled lazily")
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    manager = CacheManager(store)
    with open_source(address, registry) as source:
        found = _looked_up(store, source, wanted, None)
        for layer in found.manifest.layers:
            manager.has_all_of(layer)
        known_as = source.name or ref
        with manager.leases.hold():
            _keep(store, manager, found)
            _say_sources(store, found.manifest, found.labels)
            store.layout.set(known_as, found.documents[0].descriptor)
    platform_ = found.descriptor.platform or found.config.platform
    return Known(known_as, address, found.descriptor, found.manifest, platform_)


@dataclass(frozen=True)
class _Found:
    """The documents on the way to an image, checked. `labels` say where they came from, if they came from anywhere."""

    documents: Sequence[Manifest | Index]
    manifest: Manifest
    raw_config: bytes
    config: Config
    origin: Reference | None
    labels: Mapping[str, str]

    @property
    def descriptor(self) -> Descriptor:
        for document in self.documents:
            if isinstance(document, Index):
                for member in document.manifests:
                    if member.digest == self.manifest.digest:
                        return member
        return self.manifest.descriptor


def _looked_up(store: MetadataStore, source: Source, wanted: Platform | None, name: str | None) -> _Found:
    """Nothing of the store changes."""
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
    return _Found(documents, manifest, raw_config, config, origin, labels)


def _keep(store: MetadataStore, manager: CacheManager, found: _Found) -> None:
    """Under a lease: until a name holds the documents."""
    manager.leases.protect([found.manifest.config.digest, *(document.digest for document in found.documents)])
    images.keep_document(store, found.manifest.config, found.raw_config, found.labels)
    for document in reversed(found.documents):
        told = {**images.child_labels(document), **found.labels}
        images.keep_document(store, document.descriptor, document.raw, told)


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
