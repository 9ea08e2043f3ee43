"""Manifests, indexes and configs: read once, and their bytes never written anew.

A manifest's digest covers its bytes, so a parsed document keeps them in `raw`, unknown members and all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blobtee.errors import InvalidDocument, NotFound, TooLarge, UnsupportedMediaType
from blobtee.oci import mediatypes
from blobtee.oci.descriptor import Descriptor, annotations_from_json
from blobtee.oci.digest import Digest
from blobtee.oci.platform import Platform

MAX_DOCUMENT = 8 << 20
"""Bytes of a manifest, index or config that are read: twice the 4 MiB that registries must accept."""

MAX_LAYERS = 10_000


@dataclass(frozen=True)
class _Document:
    raw: bytes
    media_type: str
    json: Mapping[str, Any]

    @property
    def digest(self) -> Digest:
        return Digest.of(self.raw)

    @property
    def descriptor(self) -> Descriptor:
        """A descriptor of the document itself."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    @property
    def annotations(self) -> dict[str, str]:
        return annotations_from_json(self.json)

    @property
    def subject(self) -> Descriptor | None:
        """What this document refers to, for referrers (distribution specification 1.1)."""
        value = self.json.get("subject")
        return None if value is None else Descriptor.from_json(value)


@dataclass(frozen=True)
class Manifest(_Document):
    """An image of one platform, or an artifact. `layers` are base to top."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything the manifest needs, each digest once: the config, then the layers."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())

    @property
    def artifact_type(self) -> str:
        return str(self.json.get("artifactType") or self.config.media_type)


@dataclass(frozen=True)
class Index(_Document):
    """A list of manifests, mostly one for each platform."""

    manifests: tuple[Descriptor, ...]

    def select(self, platform: Platform) -> Descriptor:
        """The best manifest for `platform`; the first of equals. `NotFound` lists what there is."""
        ranked = []
        for position, manifest in enumerate(self.manifests):
            if manifest.platform is None:
                continue
            rank = platform.rank(manifest.platform)
            if rank is not None:
                ranked.append((rank, position, manifest))
        if ranked:
            return min(ranked, key=lambda entry: entry[:2])[2]
        if len(self.manifests) == 1 and self.manifests[0].platform is None:
            return self.manifests[0]
        offered = sorted({str(m.platform) for m in self.manifests if m.platform and m.platform.os != "unknown"})
        raise NotFound(f"no image for {platform}; there is: {', '.join(offered) or 'none with a platform'}")


@dataclass(frozen=True)
class Config(_Document):
    """An image's configuration."""

    @property
    def platform(self) -> Platform:
        return Platform.from_json(self.json)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """Digests of the layers' tars, base to top."""
        rootfs = self.json.get("rootfs") or {}
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(ids, list) or not all(isinstance(diff_id, str) for diff_id in ids):
            raise InvalidDocument("an image config must list its layers' diff ids in rootfs.diff_ids")
        return tuple(Digest(diff_id) for diff_id in ids)


def parse_document(raw: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index. `media_type` is what the descriptor or the registry says.

    Where it says nothing useful, the document's own `mediaType` counts, then its members. A document that is both
    (`layers` and `manifests`) is refused, as is Docker's schema 1 (CVE-2021-41190).
    """
    value = _load(raw)
    stated = value.get("mediaType")
    kind = stated if isinstance(stated, str) and stated else media_type
    if kind in mediatypes.DOCKER_SCHEMA1 or value.get("schemaVersion") == 1:
        raise UnsupportedMediaType(
            "Docker schema 1 manifests are not supported; push the image anew with a current tool"
        )
    if "manifests" in value and ("layers" in value or "config" in value):
        raise InvalidDocument("a document that is a manifest and an index at once")
    known = mediatypes.INDEXES | mediatypes.MANIFESTS
    if media_type in known and kind in known and media_type != kind:
        raise InvalidDocument(f"a document announced as {media_type} says that it is {kind}")
    if kind not in known:
        kind = mediatypes.OCI_INDEX if "manifests" in value else mediatypes.OCI_MANIFEST if "config" in value else kind
    if kind in mediatypes.INDEXES:
        return Index(raw, kind, value, _descriptors(value, "manifests"))
    if kind in mediatypes.MANIFESTS:
        layers = _descriptors(value, "layers") if value.get("layers") is not None else ()
        return Manifest(raw, kind, value, Descriptor.from_json(value.get("config")), layers)
    raise UnsupportedMediaType(f"neither a manifest nor an index: {kind[:200]!r}")


def parse_config(raw: bytes, media_type: str = mediatypes.OCI_CONFIG) -> Config:
    return Config(raw, media_type, _load(raw))


def _load(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_DOCUMENT:
        raise TooLarge(f"a document of {len(raw)} bytes; the limit is {MAX_DOCUMENT}")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise InvalidDocument("not a JSON object")
    return value


def _descriptors(value: Mapping[str, Any], key: str) -> tuple[Descriptor, ...]:
    members = value.get(key)
    if not isinstance(members, list):
        raise InvalidDocument(f"{key} must be a list")
    if len(members) > MAX_LAYERS:
        raise TooLarge(f"{len(members)} {key}; the limit is {MAX_LAYERS}")
    return tuple(Descriptor.from_json(member) for member in members)
