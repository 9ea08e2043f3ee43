"""Images of a store: their documents, their names, and the refs of their layers with the means to bring them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard

from blobtee import content, tasks
from blobtee.cache import CacheManager, Handler, MetadataStore, Ref
from blobtee.cache import labels as cache_labels
from blobtee.content import Layout, LocalStore, ReaderAt
from blobtee.content.digester import digest_of, digester
from blobtee.errors import (
    BlobteeError,
    DataLoss,
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    NotFound,
    SizeMismatch,
    TooLarge,
    UnsupportedMediaType,
)
from blobtee.image import Image
from blobtee.oci import Config, Descriptor, Index, Manifest, Platform, Reference, layer_compression, parse_document
from blobtee.oci.documents import MAX_DOCUMENT, parse_config
from blobtee.oci.mediatypes import CONFIGS
from blobtee.registry import Registry
from blobtee.registry.fetcher import DocumentReader
from blobtee.transfer.places import Documents, Source, select
from blobtee.transfer.remote import opener


class NamedStore(MetadataStore, Protocol):
    """A store that keeps names of images."""

    @property
    def layout(self) -> Layout: ...


def has_names(store: MetadataStore) -> TypeGuard[NamedStore]:
    return isinstance(getattr(store, "layout", None), Layout)


def names(store: MetadataStore) -> dict[str, Descriptor]:
    """The images that the store knows by name; none when it keeps no names."""
    return store.layout.names() if has_names(store) else {}


def find(store: MetadataStore, text: str) -> tuple[str, Descriptor]:
    """The name as the store has it, and what it stands for: `text` itself, else the full name that it is short for."""
    if not has_names(store):
        raise InvalidArgument("this store keeps no names of images")
    known = store.layout.names()
    if text in known:
        return text, known[text]
    try:
        full = str(Reference.parse(text))
    except InvalidReference:
        full = ""
    if full not in known:
        raise NotFound(f"no image {text[:300]!r} in the store")
    return full, known[full]


class StoredDocuments:
    """The documents of a store (see `Documents`)."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    def document(self, desc: Descriptor) -> Manifest | Index:
        return parse_document(read_document(self._store, desc), desc.media_type)


def read_document(store: MetadataStore, desc: Descriptor) -> bytes:
    """A small blob of the store, checked. `NotFound`, `TooLarge`, `DataLoss` when it is not what its name says."""
    with store.reader_at(desc) as reader:
        return checked(reader, desc, DataLoss)


def checked(reader: ReaderAt, desc: Descriptor, wrong: type[BlobteeError] | None = None) -> bytes:
    """All bytes of a document. `TooLarge`; `SizeMismatch` and `DigestMismatch`, or `wrong` in their place."""
    if desc.size > MAX_DOCUMENT:
        raise TooLarge(f"{desc.digest} has {desc.size} bytes; documents may have {MAX_DOCUMENT}")
    raw = reader.read_at(0, desc.size + 1)
    hasher = digester(desc.digest.algorithm)
    hasher.update(raw)
    actual = digest_of(desc.digest.algorithm, hasher)
    if actual == desc.digest and len(raw) == desc.size:
        return raw
    if wrong is not None:
        raise wrong(f"document {desc.digest} is damaged in the store; `blobtee verify --repair` can bring it again")
    if len(raw) != desc.size:
        raise SizeMismatch(f"document {desc.digest}", desc.size, len(raw))
    raise DigestMismatch(f"document {desc.digest}", desc.digest, actual)


def keep_document(store: MetadataStore, desc: Descriptor, raw: bytes, labels: Mapping[str, str]) -> None:
    """Have a document in the store, with `labels` beside those it has; lists of sources are merged."""
    # Progress is about layers, not about documents.
    with tasks.reporting(None):
        content.copy(store, Raw(raw), desc.bare(), ref=f"document-{desc.digest}", labels=labels)
    before = store.info(desc.digest).labels
    merged = {**labels, **cache_labels.merged_sources(before, labels)}
    changed = {key: value for key, value in merged.items() if before.get(key) != value}
    if changed:
        store.update(desc.digest, changed)


class Raw:
    """A provider of bytes at hand, whatever it is asked for."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        return DocumentReader(self._raw)


def child_labels(document: Manifest | Index) -> dict[str, str]:
    """What keeps a document's children from containerd's GC (containerd `core/images`, child labels)."""
    if isinstance(document, Index):
        return {f"{cache_labels.GC_LINK}.m.{number}": member.digest for number, member in enumerate(document.manifests)}
    layers = {f"{cache_labels.GC_LINK}.l.{number}": layer.digest for number, layer in enumerate(document.layers)}
    return {f"{cache_labels.GC_LINK}.config": document.config.digest, **layers}


def check_image(manifest: Manifest) -> None:
    """Refuse what is no image before anything of it is fetched: `UnsupportedMediaType`."""
    if manifest.config.media_type not in CONFIGS:
        kind = manifest.json.get("artifactType") or manifest.config.media_type
        raise UnsupportedMediaType(f"not an image but an artifact of type {str(kind)[:200]!r}")
    for layer in manifest.layers:
        layer_compression(layer.media_type)


def read_config(raw: bytes, manifest: Manifest) -> Config:
    """The config of `manifest`; `InvalidDocument` when it counts other layers than that."""
    config = parse_config(raw, manifest.config.media_type)
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidDocument(
            f"the manifest has {len(manifest.layers)} layers, but the config {len(config.diff_ids)} diff ids"
        )
    return config


def assemble(
    store: MetadataStore,
    name: str,
    descriptor: Descriptor,
    manifest: Manifest,
    config: Config,
    handlers: Mapping[str, Handler],
    image_ref: str = "",
) -> Image:
    """The image with refs for its layers, made or found again. `NeedsRemoteProvider`: see `get_by_blob`."""
    manager = CacheManager(store)
    top: Ref | None = None
    try:
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            described = layer.annotated({cache_labels.UNCOMPRESSED: diff_id})
            ref = manager.get_by_blob(described, top, handlers, image_ref=image_ref)
            if top is not None:
                top.release()
            top = ref
    except BaseException:
        if top is not None:
            top.release()
        raise
    return Image(name, descriptor, manifest, config, top, store, descriptor.platform or config.platform)


def canonical(name: str) -> Reference | None:
    """The reference that a stored name is, when it is a full one: `latest` alone names no registry."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return None
    return reference if str(reference) == name else None


def origins(store: MetadataStore, name: str, manifest: Descriptor) -> list[Reference]:
    """The repositories that the image's blobs can be had from: its name's first, then those its manifest came from.

    The name of an image that was made here, on layers from elsewhere, says where it is to go; it is left out.
    """
    reference = canonical(name)
    known: list[Reference] = []
    with contextlib.suppress(NotFound, DataLoss):
        known = list(sources(store.info(manifest.digest).labels))
    told = {origin.name: origin for origin in known}
    if reference is not None and (not told or reference.name in told):
        told = {reference.name: reference, **{key: origin for key, origin in told.items() if key != reference.name}}
    return list(told.values())


def sources(labels: Mapping[str, str]) -> Iterator[Reference]:
    """The repositories that labels or annotations name as sources."""
    for key, value in labels.items():
        if key.startswith(cache_labels.SOURCE):
            host = key.removeprefix(cache_labels.SOURCE)
            for repository in filter(None, value.split(",")):
                with contextlib.suppress(InvalidReference):
                    reference = Reference.parse(f"{host}/{repository}")
                    if reference.name == f"{host}/{repository}":
                        yield reference


def repositories(store: LocalStore) -> set[str]:
    """All that blobs of the store are known to come from."""
    infos = itertools.chain(store.walk(), store.quarantined(), store.evicted())
    return {source.name for info in infos for source in sources(info.labels)}


def handlers(manifest: Manifest, references: Sequence[Reference], registry: Registry | None) -> dict[str, Handler]:
    """Handlers that bring the layers of `manifest` from the first of `references` that has them."""
    if not references:
        return {}
    provider = opener(registry, references)
    ref = str(references[0])
    return {layer.digest: Handler(provider, annotations=layer.annotations, ref=ref) for layer in manifest.layers}


def open_image(
    name: str, store: MetadataStore, *, platform: Platform | str | None = None, registry: Registry | None = None
) -> Image:
    """An image that the store knows by `name` (a short one will do); close it after use. Nothing is fetched.

    Of an index it is the image for `platform`; by default this machine's, or the only one that was pulled. Lazy layers
    are brought through `registry` (one for the process by default) from where the image came from.

    `NotFound`: no such name, or no image for the platform in the store. `DataLoss`: a document is damaged.
    `NeedsRemoteProvider`: layers are missing and nothing says where they can be had.
    """
    try:
        full, root = find(store, name)
    except NotFound as error:
        raise NotFound(f"{error}; pull it first") from None
    return open_root(store, full, root, platform, registry)


def open_root(
    store: MetadataStore, name: str, root: Descriptor, platform: Platform | str | None, registry: Registry | None
) -> Image:
    documents = StoredDocuments(store)
    document = documents.document(root)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    manifest = choose(documents, document, wanted, name)
    check_image(manifest)
    config = read_config(read_document(store, manifest.config), manifest)
    check_platform(document, config, wanted)
    descriptor = _described(document, manifest)
    references = origins(store, name, descriptor)
    image_ref = name if references and str(references[0]) == name else ""
    return assemble(store, name, descriptor, manifest, config, handlers(manifest, references, registry), image_ref)


def check_platform(root: Manifest | Index, config: Config, wanted: Platform | None) -> None:
    """Refuse an image that cannot run on a platform that was asked for by name. An index has the last word on that:
    configs of images for other platforms are sometimes wrong."""
    offered = config.platform
    if isinstance(root, Manifest) and wanted is not None and offered.architecture and wanted.rank(offered) is None:
        raise NotFound(f"no image for {wanted}; there is: {offered}")


def check_copied(source: Source, root: Descriptor, image: Manifest | Index, wanted: Platform | None) -> None:
    """As `check_platform`, for who has no use for the config: `image` is what was chosen of `root`."""
    if wanted is None or image.digest != root.digest:
        return
    if isinstance(image, Manifest) and image.config.media_type in CONFIGS:
        with source.reader_at(image.config) as reader:
            check_platform(image, read_config(checked(reader, image.config), image), wanted)


def choose(documents: Documents, document: Manifest | Index, wanted: Platform | None, name: str) -> Manifest:
    """The image in `document` that is meant: of an index that for `wanted`, by default this machine's, or the only one
    that is here. `NotFound` lists what there is."""
    if isinstance(document, Manifest):
        return document
    try:
        return select(documents, document, wanted or Platform.current())
    except NotFound as error:
        present = list(present_manifests(documents, document))
        if wanted is None and len(present) == 1:
            return present[0]
        pulled = ", ".join(sorted(str(_described(document, each).platform or each.digest) for each in present))
        raise NotFound(
            f"{name}: not in the store for {wanted or Platform.current()}; there is: {pulled or 'none'}"
        ) from error


def present_manifests(documents: Documents, index: Index) -> Iterator[Manifest]:
    """The images directly in `index` that `documents` has."""
    for member in index.manifests:
        tasks.check()
        with contextlib.suppress(NotFound, UnsupportedMediaType):
            document = documents.document(member)
            if isinstance(document, Manifest) and document.config.media_type in CONFIGS:
                yield document


def _described(root: Manifest | Index, manifest: Manifest) -> Descriptor:
    """The manifest's descriptor, as the index has it."""
    if isinstance(root, Index):
        for member in root.manifests:
            if member.digest == manifest.digest:
                return member
    return manifest.descriptor
