"""New manifests, configs and indexes for layers that were packed anew. Pure: documents in, documents out.

What changes becomes OCI, because Docker types have no place for annotations, which eStargz needs. What does not change
keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from blobtee.cache import labels as cache_labels
from blobtee.errors import InvalidArgument
from blobtee.oci import Config, Descriptor, Digest, Index, Manifest, Platform, mediatypes, parse_document
from blobtee.oci.documents import rfc3339, to_raw

REFERENCE_DIGEST = "vnd.docker.reference.digest"
"""Annotation of a member of an index that says something of another member: BuildKit's attestations."""

_STALE = (
    "containerd.io/snapshot/",
    cache_labels.UNCOMPRESSED,
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
    "dev.blobtee.index.",
)
_INTERNAL = (cache_labels.UNCOMPRESSED, cache_labels.SOURCE, "buildkit/")


@dataclass(frozen=True)
class Plan:
    """What becomes of one image: `layers` are as they will be, base to top.

    A layer that was packed anew carries its diff id in the annotation `containerd.io/uncompressed`.
    """

    config: Config
    layers: Sequence[Descriptor]


@dataclass(frozen=True)
class Rewritten:
    """`documents` in the order of `places.whole`: the root is last. `blobs` are the bytes of new configs.

    `dropped` are members of indexes that spoke of an image that is another now.
    """

    documents: list[Manifest | Index]
    blobs: Mapping[Digest, bytes]
    dropped: tuple[Descriptor, ...] = ()


def is_image(manifest: Manifest) -> bool:
    """Whether there is an image to convert: attestations and signatures often have the config type of one."""
    layers = manifest.layers
    return manifest.config.media_type in mediatypes.CONFIGS and (
        not layers or any(mediatypes.is_layer(layer.media_type) for layer in layers)
    )


def rewrite(documents: Sequence[Manifest | Index], plans: Mapping[Digest, Plan], epoch: int | None = None) -> Rewritten:
    """`documents` (of `places.whole`) with the images in `plans`, by the manifests' digests, as planned.

    Attestations and other artifacts that refer to an image which changes are left out: they vouch for a digest that
    the new image does not have. `epoch`, in seconds, is the latest time that new configs tell.
    """
    work = _Work(plans, epoch)
    for document in documents:
        if document.digest in plans and isinstance(document, Manifest):
            work.image(document, plans[document.digest])
    for document in documents:
        if isinstance(document, Index):
            work.index(document)
        elif document.digest not in plans:
            work.artifact(document)
    root = work.new.get(documents[-1].digest) or documents[-1]
    wanted = _below(root, {document.digest: document for document in work.new.values() if document is not None})
    ordered = [new for document in documents if (new := work.new[document.digest]) is not None]
    kept = {document.digest: document for document in ordered if document.digest in wanted}
    return Rewritten(list(kept.values()), work.blobs, tuple(work.dropped))


@dataclass
class _Work:
    plans: Mapping[Digest, Plan]
    epoch: int | None
    new: dict[Digest, Manifest | Index | None] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    dropped: list[Descriptor] = field(default_factory=list)

    def image(self, manifest: Manifest, plan: Plan) -> None:
        config = new_config(plan.config, plan.layers, self.epoch)
        same_layers = [desc.digest for desc in plan.layers] == [desc.digest for desc in manifest.layers]
        if same_layers and config is plan.config:
            self.new[manifest.digest] = manifest
            return
        if config is not plan.config:
            self.blobs[config.digest] = config.raw
        self.new[manifest.digest] = new_manifest(manifest, plan.layers, config)

    def artifact(self, manifest: Manifest) -> None:
        subject = manifest.subject
        changed = subject is not None and self._changed(subject.digest)
        self.new[manifest.digest] = None if changed else manifest

    def index(self, index: Index) -> None:
        members = []
        for member in index.manifests:
            new = self.new.get(member.digest)
            if new is None or self._changed(member.annotations.get(REFERENCE_DIGEST, "")):
                self.dropped.append(member)
            elif new.digest == member.digest:
                members.append(member)
            else:
                members.append(
                    replace(member, media_type=new.media_type, digest=new.digest, size=len(new.raw), data=None)
                )
        if members == list(index.manifests):
            self.new[index.digest] = index
            return
        value = {
            **index.json,
            "mediaType": mediatypes.OCI_INDEX,
            "manifests": [member.to_json() for member in members],
        }
        document = parse_document(to_raw(value))
        assert isinstance(document, Index)
        self.new[index.digest] = document

    def _changed(self, digest: str) -> bool:
        """Whether this is an image that becomes another."""
        if digest not in self.plans:
            return False
        new = self.new[Digest(digest)]
        return new is None or new.digest != digest


def _below(root: Manifest | Index, documents: Mapping[Digest, Manifest | Index]) -> set[Digest]:
    """The digests of `root` and all documents below it."""
    found = {root.digest}
    waiting = [root]
    while waiting:
        document = waiting.pop()
        if isinstance(document, Index):
            for member in document.manifests:
                if member.digest not in found and member.digest in documents:
                    found.add(member.digest)
                    waiting.append(documents[member.digest])
    return found


def new_config(config: Config, layers: Sequence[Descriptor], epoch: int | None) -> Config:
    """`config` for `layers`, and with no time after `epoch`; the same object when that changes nothing."""
    told = [layer.annotations.get(cache_labels.UNCOMPRESSED, "") for layer in layers]
    diff_ids = [new or old for new, old in zip(told, config.diff_ids, strict=True)]
    if list(config.diff_ids) != diff_ids:
        config = config.with_diff_ids(diff_ids)
    return config if epoch is None else _clamped(config, epoch)


def _clamped(config: Config, epoch: int) -> Config:
    changes: dict[str, object] = {}
    created = _earlier(config.json.get("created"), epoch)
    if created != config.json.get("created"):
        changes["created"] = created
    history = config.json.get("history")
    if isinstance(history, list):
        entries = [
            {**entry, "created": _earlier(entry["created"], epoch)}
            if isinstance(entry, dict) and "created" in entry
            else entry
            for entry in history
        ]
        if entries != history:
            changes["history"] = entries
    return config.changed(changes) if changes else config


def _earlier(moment: object, epoch: int) -> object:
    """`moment`, unless it is a time after `epoch`. What is no time stays as it is."""
    nanoseconds = cache_labels.from_rfc3339(moment) if isinstance(moment, str) else None
    return rfc3339(epoch) if nanoseconds is not None and nanoseconds > epoch * 1_000_000_000 else moment


def new_manifest(manifest: Manifest, layers: Sequence[Descriptor], config: Config) -> Manifest:
    """An OCI manifest like `manifest`, of `layers` and `config`. Its annotations stay, as do those of the layers, but
    for what older bytes were described by."""
    listed = [_listed(new, old) for new, old in zip(layers, manifest.layers, strict=True)]
    described = replace(
        manifest.config,
        media_type=mediatypes.OCI_CONFIG,
        digest=config.digest,
        size=len(config.raw),
        urls=(),
        data=None,
    )
    value = {
        **manifest.json,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": described.to_json(),
        "layers": [layer.to_json() for layer in listed],
    }
    document = parse_document(to_raw(value))
    assert isinstance(document, Manifest)
    return document


def _listed(new: Descriptor, old: Descriptor) -> Descriptor:
    """How a manifest describes a layer."""
    if new.digest == old.digest:
        return replace(old, media_type=mediatypes.oci_layer(old.media_type))
    kept = {key: text for key, text in old.annotations.items() if not key.startswith(_STALE)}
    out = exported(new)
    return replace(out, annotations={**kept, **out.annotations})


def exported(layer: Descriptor) -> Descriptor:
    """A layer as it goes into a manifest: without the annotations that are between a builder and its store."""
    annotations = {key: text for key, text in layer.annotations.items() if not key.startswith(_INTERNAL)}
    media_type = mediatypes.oci_layer(layer.media_type)
    return Descriptor(media_type, layer.digest, layer.size, layer.urls, annotations)


def described(layers: Sequence[Descriptor], config: Config | None) -> tuple[Manifest, bytes]:
    """An OCI manifest of `layers`, and the bytes of its config. `InvalidArgument` when `config` is of other layers."""
    diff_ids = [layer.annotations.get(cache_labels.UNCOMPRESSED, "") for layer in layers]
    if config is not None and list(config.diff_ids) != diff_ids:
        raise InvalidArgument("the config lists other diff ids than the remote has")
    raw = (config or Config.scratch(Platform.current()).with_diff_ids(diff_ids)).raw
    listed = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": Descriptor(mediatypes.OCI_CONFIG, Digest.of(raw), len(raw)).to_json(),
        "layers": [exported(layer).to_json() for layer in layers],
    }
    manifest = parse_document(to_raw(listed))
    assert isinstance(manifest, Manifest)
    return manifest, raw
