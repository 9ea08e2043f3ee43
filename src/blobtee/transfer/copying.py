"""Images from one address to another, and from a store to an address."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from blobtee.cache import CacheManager, MetadataStore, Remote
from blobtee.cache import labels as cache_labels
from blobtee.compression import Compression
from blobtee.content import MultiProvider, ReaderAt
from blobtee.errors import InvalidArgument, NotFound, UnsupportedMediaType
from blobtee.image import Image
from blobtee.oci import Config, Descriptor, Digest, Index, Manifest, Platform
from blobtee.registry import Registry
from blobtee.transfer import images
from blobtee.transfer.addresses import parse
from blobtee.transfer.building import packed
from blobtee.transfer.converting import check_archive, convert
from blobtee.transfer.nearby import Nearby, labels_of
from blobtee.transfer.open import open_sink, open_source
from blobtee.transfer.places import Report, run, whole
from blobtee.transfer.rewriting import Plan, Rewritten, described, rewrite


def copy(
    source: str,
    destination: str,
    *,
    platform: Platform | str | None = None,
    compression: Compression | None = None,
    store: MetadataStore | None = None,
    registry: Registry | None = None,
) -> Report:
    """Copy an image from one address to another, without keeping it here.

    An index is copied with all its images, unless `platform` names one; to a docker archive, which holds one only,
    goes this machine's. Within one registry nothing but documents moves: blobs are mounted. Otherwise they are
    streamed; what `store` has is read from there. Manifests keep their bytes, except that an image from a docker
    archive gets one of its own. With a `compression`, layers that are packed otherwise are converted: see `convert`.

    `NotFound`: no such image or file, or none for that platform. `DigestMismatch`, `SizeMismatch`: the source holds
    other bytes than it promises. After a failure the destination has no new name; a file is not touched, a registry or
    layout may have some blobs more.
    """
    if compression is not None:
        return convert(source, destination, compression, platform=platform, store=store, registry=registry)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    with open_source(parse(source), registry) as read, open_sink(parse(destination), registry) as written:
        root = read.root()
        documents = whole(read, root, wanted or (Platform.current() if written.single else None))
        images.check_copied(read, root, documents[-1], wanted)
        return run(read if store is None else Nearby(read, store), written, documents)


def push(
    what: Image | Remote,
    destination: str,
    store: MetadataStore,
    *,
    registry: Registry | None = None,
    all_platforms: bool = True,
    config: Config | None = None,
    compression: Compression | None = None,
) -> Report:
    """Push an image of `store` to an address, mostly a name in a registry.

    Layers that are lazy and have a source on the same registry are mounted: they are not pulled. What the registry
    has is left alone, all else is uploaded, lazy layers elsewhere being pulled first. Where the image's name stands
    for an index all of whose images are in the store, the index is pushed with them, unless `all_platforms` is off;
    else the image alone. Documents go last, when all they name is there.

    With a `compression`, layers of an image that are packed otherwise are converted, and known variants are used again
    whatever their level (`Ref.get_remote` with a forced compression); documents change as `convert` tells.

    A `Remote` is pushed with an OCI manifest of its own and `config`, whose diff ids must be the remote's; without one
    it gets a config that says no more than its layers. How it is packed was said to `get_remote`, so a `compression`
    here is `InvalidArgument`.
    """
    goal = parse(destination)
    if isinstance(what, Remote):
        if compression is not None:
            raise InvalidArgument("a remote is packed already; ask get_remote for the compression")
        source: _Stored = _of_remote(what, store, config)
    else:
        check_archive(goal, compression)
        source = _of_image(what, store, registry, all_platforms)
    with source, open_sink(goal, registry) as written, CacheManager(store).leases.hold():
        root = source.root()
        single = Platform.current() if written.single and isinstance(source.document(root), Index) else None
        documents = whole(source, root, single)
        if compression is None:
            return run(source, written, documents)
        rewritten = source.converted(documents, compression)
        return replace(run(source, written, rewritten.documents), dropped=rewritten.dropped)


class _Stored:
    """An image of a store, or an index of several. `documents` end with the root, as those of `whole` do. `images` are
    those that have layers to be read; the ones in `opened` are closed in the end."""

    def __init__(self, name: str, documents: Sequence[Manifest | Index], store: MetadataStore) -> None:
        self.name = name
        self.documents = documents
        self.provider = MultiProvider(store)
        self.images: list[Image] = []
        self.opened: list[Image] = []
        self._store = store
        self._by_digest = {document.digest: document for document in documents}
        self._annotations: dict[Digest, Mapping[str, str]] = {}

    def add_layers(self, remote: Remote) -> None:
        """Read layers through `remote`, which brings what is lazy."""
        for desc in remote.descriptors:
            self.provider.add(desc.digest, remote.provider)
            self._annotations[desc.digest] = desc.annotations

    def converted(self, documents: Sequence[Manifest | Index], compression: Compression) -> Rewritten:
        """`documents` with all layers packed as `compression` says; from here on those are what is read."""
        wanted = {document.digest for document in documents}
        plans = {}
        for image in self.images:
            if image.manifest.digest in wanted:
                layers = packed(image, compression)
                plans[image.manifest.digest] = Plan(image.config, layers.descriptors)
                self.add_layers(layers)
        rewritten = rewrite(documents, plans)
        for digest, raw in rewritten.blobs.items():
            self.provider.add(digest, images.Raw(raw))
        return rewritten

    def root(self) -> Descriptor:
        return self.documents[-1].descriptor

    def document(self, desc: Descriptor) -> Manifest | Index:
        try:
            return self._by_digest[desc.digest]
        except KeyError:
            raise NotFound(f"no document {desc.digest} in {self.name}") from None

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        return self.provider.reader_at(desc)

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        annotations = self._annotations.get(desc.digest, {})
        return cache_labels.repositories(
            cache_labels.merged_sources(labels_of(self._store, desc.digest), annotations), host
        )

    def __enter__(self) -> _Stored:
        return self

    def __exit__(self, *_: object) -> None:
        for image in self.opened:
            image.close()


def _of_image(image: Image, store: MetadataStore, registry: Registry | None, all_platforms: bool) -> _Stored:
    documents = _complete_index(image, store) if all_platforms else None
    source = _Stored(image.name, documents or [image.manifest], store)
    try:
        for document in source.documents:
            if isinstance(document, Manifest) and document.digest != image.manifest.digest:
                # Attestations and other artifacts have no layers that could be lazy.
                with contextlib.suppress(UnsupportedMediaType):
                    other = images.open_root(store, image.name, document.descriptor, None, registry)
                    source.opened.append(other)
        source.images = [image, *source.opened]
        for each in source.images:
            source.add_layers(each.get_remote())
    except BaseException:
        source.__exit__()
        raise
    return source


def _complete_index(image: Image, store: MetadataStore) -> list[Manifest | Index] | None:
    """The index that the image's name stands for and all below it; None when there is none, or not all is here."""
    root = images.names(store).get(image.name)
    if root is None or root.digest == image.manifest.digest:
        return None
    try:
        documents = whole(images.StoredDocuments(store), root, None)
    except NotFound:
        return None
    return documents if any(document.digest == image.manifest.digest for document in documents) else None


def _of_remote(remote: Remote, store: MetadataStore, config: Config | None) -> _Stored:
    manifest, raw_config = described(remote.descriptors, config)
    source = _Stored("the remote", [manifest], store)
    source.add_layers(remote)
    source.provider.add(manifest.config.digest, images.Raw(raw_config))
    return source
