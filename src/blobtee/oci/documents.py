"""Manifests, indexes and configs.

A manifest's digest covers its bytes, so a document that was read keeps them in `raw`, unknown members and all; what is
changed is a new document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blobtee.errors import InvalidArgument, InvalidDocument, NotFound, TooLarge, UnsupportedMediaType
from blobtee.oci import mediatypes
from blobtee.oci.descriptor import Descriptor, annotations_from_json
from blobtee.oci.digest import Digest
from blobtee.oci.platform import Platform

MAX_DOCUMENT = 8 << 20
"""Bytes of a manifest, index or config that are read: twice the 4 MiB that registries must accept."""

MAX_LAYERS = 10_000

MAX_EPOCH = 253_402_300_799
"""The last second that RFC 3339 can write, in seconds since the epoch."""


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

    @classmethod
    def scratch(cls, platform: Platform) -> Config:
        """The configuration of an image without layers."""
        settings = {**platform.to_json(), "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
        return parse_config(to_raw(settings))

    def changed(self, members: Mapping[str, Any]) -> Config:
        """An OCI configuration with `members` of the JSON object replaced, all others kept."""
        return parse_config(to_raw({**self.json, **members}))

    def with_diff_ids(self, diff_ids: Sequence[str]) -> Config:
        """The configuration for layers whose tars are these; all else is kept."""
        return self.changed({"rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]}})

    def extended(
        self,
        diff_ids: Sequence[str],
        *,
        created: int | None = None,
        created_by: str = "",
        entrypoint: Sequence[str] | None = None,
        cmd: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Config:
        """The configuration of an image built on this one. `diff_ids` are those of all its layers, base to top.

        The history gets an entry for each layer that is new, or one without a layer when none is. `created` is in
        seconds since the epoch; None leaves it away. What is None of the rest stays as it is; `env` and `labels` are
        merged, and a new entrypoint without a `cmd` ends the old one's, as for a Dockerfile. The format is that of the
        image specification, config.md. `InvalidArgument`: fewer layers than before, or nonsense in the settings.
        """
        added = len(diff_ids) - len(self.diff_ids)
        if added < 0:
            raise InvalidArgument(f"an image on {len(self.diff_ids)} layers cannot have {len(diff_ids)}")
        entry = {"created_by": created_by, **({} if added else {"empty_layer": True})}
        moment = {} if created is None else {"created": rfc3339(created)}
        own = _history(self.json, len(self.diff_ids))
        settings = dict(_object(self.json, "config"))
        if entrypoint is not None:
            settings["Entrypoint"] = _words("an entrypoint", entrypoint)
            settings.pop("Cmd", None)
        if cmd is not None:
            settings["Cmd"] = _words("a command", cmd)
        if env:
            settings["Env"] = _merged_env(settings.get("Env"), env)
        if workdir is not None:
            settings["WorkingDir"] = workdir
        if user is not None:
            settings["User"] = user
        if labels:
            settings["Labels"] = {**_object(settings, "Labels"), **labels}
        members = {key: value for key, value in self.json.items() if key != "created"}
        return parse_config(
            to_raw(
                {
                    **members,
                    **moment,
                    "config": settings,
                    "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
                    "history": [*own, *([{**moment, **entry}] * max(added, 1))],
                }
            )
        )


def _words(what: str, given: Sequence[str]) -> list[str]:
    # A string is a sequence of strings too.
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise InvalidArgument(f"{what} is a list of words, not {given!r:.80}")
    return list(given)


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


def to_raw(value: Mapping[str, Any]) -> bytes:
    """The bytes of a document that is made here: the same value makes the same bytes."""
    try:
        return json.dumps(value, separators=(",", ":")).encode()
    except (ValueError, RecursionError, TypeError) as error:
        raise InvalidDocument(f"cannot be written as JSON: {str(error)[:100]}") from None


def check_epoch(epoch: int | None) -> None:
    """Refuse what is no moment in whole seconds from 1970 to the year 9999: `InvalidArgument`."""
    if epoch is not None and (type(epoch) is not int or not 0 <= epoch <= MAX_EPOCH):
        raise InvalidArgument(f"an epoch is a whole number of seconds since 1970, not {epoch!r:.40}")


def rfc3339(seconds: int) -> str:
    """A moment in seconds since the epoch, in UTC. `InvalidArgument`: see `check_epoch`."""
    check_epoch(seconds)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    member = value.get(key)
    if member is not None and not isinstance(member, dict):
        raise InvalidDocument(f"{key} of an image config must be a JSON object")
    return member or {}


def _history(value: Mapping[str, Any], layers: int) -> list[Any]:
    """The history, with an entry for each layer: what an older tool left out is filled in, so that entries to come
    belong to the layers to come."""
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise InvalidDocument("history of an image config must be a list of JSON objects")
    told = sum(not entry.get("empty_layer") for entry in history)
    return [*history, *([{"comment": "no history"}] * (layers - told))]


def _merged_env(before: object, changes: Mapping[str, str]) -> list[str]:
    """Variables in the order of their first coming."""
    if before is not None and (not isinstance(before, list) or not all(isinstance(text, str) for text in before)):
        raise InvalidDocument("Env of an image config must be a list of strings")
    merged = dict(text.partition("=")[::2] for text in before or [])
    for name, value in changes.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument(f"not a variable of the environment: {name[:100]!r}")
        merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]
