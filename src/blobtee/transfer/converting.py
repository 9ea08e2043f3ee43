"""Images with their layers packed otherwise: from address to address, each layer read once and in one pass."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from blobtee import conversion, tasks
from blobtee.cache import CacheManager, MetadataStore
from blobtee.cache import labels as cache_labels
from blobtee.compression import Compression, Type, from_media_type
from blobtee.content import Info, LocalStore, ReaderAt
from blobtee.errors import InvalidArgument, NotFound
from blobtee.oci import Descriptor, Digest, Index, Manifest, Platform, mediatypes
from blobtee.oci.documents import check_epoch
from blobtee.registry import Registry
from blobtee.transfer import images
from blobtee.transfer.addresses import Address, FileAddress, Form, parse
from blobtee.transfer.nearby import Nearby
from blobtee.transfer.open import open_sink, open_source
from blobtee.transfer.places import Report, Source, run, whole
from blobtee.transfer.rewriting import Plan, Rewritten, is_image, rewrite

MADE_OF = "blobtee.made-of."
"""Label of a converted layer: what it was made of, and how. A later conversion of the same finds it by that."""

_AT_ONCE = max(2, min(8, os.cpu_count() or 1))


def convert(
    source: str,
    destination: str,
    compression: Compression | Type | str,
    *,
    platform: Platform | str | None = None,
    epoch: int | None = None,
    store: MetadataStore | None = None,
    registry: Registry | None = None,
) -> Report:
    """Bring the image at `source` to `destination` with its layers packed as `compression` says.

    Layers that are packed so already are mounted or copied as `transfer.copy` does it, not read; with
    `compression.force` they are packed anew too, say for another level. All others are read once, from `store` where it
    has them. An index is converted with all its images, unless `platform` names one. With `epoch`, in seconds since
    1970, no file in a layer and no time in a config is younger; every layer has to be read for that.

    What changes becomes OCI: media types, configs (diff ids differ for eStargz, whose table of contents is in the tar,
    and where times were changed), manifests, indexes; platforms and annotations stay. Attestations and other artifacts
    that refer to an image which changed are left out (`Report.dropped`): they vouch for its old digest. Layers that may
    not be distributed, and what is no image, stay as they are. The same input gives the same digest, and where nothing
    needs to change, the old one.

    Converted layers are kept in `store`, where the next conversion of the same finds them, until they are collected;
    without one they are in a temporary directory meanwhile.

    Errors are those of `transfer.copy`; `DigestMismatch` and `CorruptData` for layers that are not what they should be;
    `InvalidArgument` for a docker archive, whose layers are always unpacked, and any compression but `uncompressed`.
    After a failure the destination has no new name.
    """
    wish = compression if isinstance(compression, Compression) else Compression(compression)
    check_epoch(epoch)
    goal = parse(destination)
    check_archive(goal, wish)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    with open_source(parse(source), registry) as read, open_sink(goal, registry) as written, _place(store) as place:
        near = read if store is None else Nearby(read, store)
        root = near.root()
        documents = whole(near, root, wanted or (Platform.current() if written.single else None))
        images.check_copied(near, root, documents[-1], wanted)
        if isinstance(documents[-1], Manifest):
            images.check_image(documents[-1])
        manager = CacheManager(place)
        with manager.leases.hold():
            work = _Work(near, manager, wish, epoch)
            rewritten = rewrite(documents, work.plans(documents), epoch)
            report = run(_Converted(near, place, rewritten, work.made), written, rewritten.documents)
    return replace(report, dropped=rewritten.dropped)


def check_archive(goal: Address, compression: Compression | None) -> None:
    """Refuse to write packed layers into a docker archive, which holds none: `InvalidArgument`."""
    unpacked = isinstance(goal, FileAddress) and goal.form is Form.DOCKER_ARCHIVE
    if unpacked and compression is not None and compression.type is not Type.UNCOMPRESSED:
        raise InvalidArgument(f"{goal}: a docker archive holds its layers uncompressed")


@contextmanager
def _place(store: MetadataStore | None) -> Iterator[MetadataStore]:
    """Where converted layers are put: the store, or a temporary one when there is none that can be written."""
    if store is not None and not getattr(store, "read_only", False):
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="blobtee-convert-") as folder, LocalStore(folder) as temporary:
        yield temporary


class _Work:
    """The conversion of the layers of some images. `made` are the blobs in the store that it came to."""

    def __init__(self, source: Source, manager: CacheManager, wish: Compression, epoch: int | None) -> None:
        self.made: set[Digest] = set()
        self._source = source
        self._manager = manager
        self._wish = wish
        self._epoch = epoch

    def plans(self, documents: Sequence[Manifest | Index]) -> dict[Digest, Plan]:
        """What becomes of each image, its layers converted."""
        plans = {each.digest: self._plan(each) for each in documents if isinstance(each, Manifest) and is_image(each)}
        layers = {_key(layer): layer for plan in plans.values() for layer in plan.layers}
        chosen = {key: layer for key, layer in layers.items() if self._is_chosen(layer)}
        known = self._known(chosen)
        with tasks.Group(_AT_ONCE, name="blobtee-convert") as group:
            running = {key: group.spawn(self._converted, layer) for key, layer in chosen.items() if key not in known}
        results = {**known, **{key: task.result() for key, task in running.items()}}
        results = {key: made for key, made in results.items() if self._is_other(made, layers[key])}
        self.made = {made.digest for made in results.values()}
        return {
            digest: Plan(plan.config, [results.get(_key(layer), layer) for layer in plan.layers])
            for digest, plan in plans.items()
        }

    def _plan(self, manifest: Manifest) -> Plan:
        """The image as it is, its layers with their diff ids."""
        with self._source.reader_at(manifest.config) as reader:
            config = images.read_config(images.checked(reader, manifest.config), manifest)
        told = zip(manifest.layers, config.diff_ids, strict=True)
        return Plan(config, [layer.annotated({cache_labels.UNCOMPRESSED: diff_id}) for layer, diff_id in told])

    def _is_chosen(self, layer: Descriptor) -> bool:
        """Whether the layer has to be read."""
        if not mediatypes.is_layer(layer.media_type) or mediatypes.is_nondistributable(layer.media_type):
            return False
        return self._wish.force or self._epoch is not None or self._is_packed_otherwise(layer)

    def _is_packed_otherwise(self, layer: Descriptor) -> bool:
        """As the manifest says: nothing is read to learn this, so it is the same wherever the image lies. eStargz that
        is not annotated as such is of no use to who wants eStargz, and is gzip to all others."""
        actual = from_media_type(layer.media_type)
        if actual is Type.GZIP and cache_labels.TOC_DIGEST in layer.annotations:
            actual = Type.ESTARGZ
        return actual is not self._wish.type

    def _is_other(self, made: Descriptor, layer: Descriptor) -> bool:
        """Whether the layer becomes `made`: times that are all before the epoch are no reason to pack it anew."""
        if self._wish.force or self._is_packed_otherwise(layer):
            return True
        return made.annotations[cache_labels.UNCOMPRESSED] != layer.annotations[cache_labels.UNCOMPRESSED]

    def _label(self, layer: Descriptor) -> str:
        wish = self._wish
        how = f"{wish.type.value}-{wish.effective_level}-{self._epoch}"
        return f"{MADE_OF}{layer.digest}.{layer.annotations[cache_labels.UNCOMPRESSED]}.{how}"

    def _known(self, layers: Mapping[object, Descriptor]) -> dict[object, Descriptor]:
        """The layers that were converted before, and what they became."""
        if not layers:
            return {}
        by_label = {self._label(layer): key for key, layer in layers.items()}
        store = self._manager.store
        found = {}
        for info in store.walk():
            tasks.check()
            labels = by_label.keys() & info.labels.keys()
            if not labels:
                continue
            self._manager.leases.protect([info.digest])
            made = _described(info)
            if made is not None and self._manager.has(info.digest):
                found.update({by_label[label]: made for label in labels})
        return found

    def _converted(self, layer: Descriptor) -> Descriptor:
        store = self._manager.store
        try:
            result = conversion.convert(
                store,
                layer,
                self._wish,
                provider=self._source,
                epoch=self._epoch,
                before_commit=lambda made: self._manager.leases.protect([made.digest]),
            )
        except NotFound as error:
            raise NotFound(f"layer {layer.digest} is not to be had: {error}") from error
        store.update(result.digest, {**cache_labels.made_labels(result), self._label(layer): "true"})
        return result


def _key(layer: Descriptor) -> object:
    """What makes layers one: images may say of the same blob what is not the same."""
    return layer.digest, layer.media_type, layer.annotations[cache_labels.UNCOMPRESSED]


def _described(info: Info) -> Descriptor | None:
    """A converted layer as its labels say; None when somebody has taken them off."""
    annotations = cache_labels.blob_annotations(info.labels)
    if annotations is None or cache_labels.UNCOMPRESSED not in annotations:
        return None
    return Descriptor(info.labels[cache_labels.MEDIA_TYPE], info.digest, info.size, annotations=annotations)


class _Converted:
    """The image as it will be: new documents, new layers in the store, and the rest at its source."""

    def __init__(self, source: Source, store: MetadataStore, rewritten: Rewritten, made: set[Digest]) -> None:
        self._source = source
        self._store = store
        self._rewritten = rewritten
        self._made = made
        self._documents = {document.digest: document for document in rewritten.documents}

    @property
    def name(self) -> str:
        return self._source.name

    def root(self) -> Descriptor:
        return self._rewritten.documents[-1].descriptor

    def document(self, desc: Descriptor) -> Manifest | Index:
        try:
            return self._documents[desc.digest]
        except KeyError:
            raise NotFound(f"no document {desc.digest} in {self.name}") from None

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        raw = self._rewritten.blobs.get(desc.digest)
        if raw is not None:
            return images.Raw(raw).reader_at(desc)
        return (self._store if desc.digest in self._made else self._source).reader_at(desc)

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        if desc.digest in self._rewritten.blobs or desc.digest in self._made:
            return []
        return self._source.repositories(desc, host)

    def __enter__(self) -> _Converted:
        return self

    def __exit__(self, *_: object) -> None:
        pass
