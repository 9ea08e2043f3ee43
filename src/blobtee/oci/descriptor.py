"""Descriptors: type, digest and size of content that lives elsewhere."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from blobtee.errors import InvalidDocument
from blobtee.oci.digest import Digest
from blobtee.oci.platform import Platform

_KNOWN = frozenset({"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"})
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True)
class Descriptor:
    """`size` is in bytes. `extra` keeps the JSON members that this version does not know."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None
    platform: Platform | None = None
    artifact_type: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.digest, self.size, self.media_type))

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Read a JSON object; `InvalidDocument` says what is wrong with it."""
        if not isinstance(value, dict):
            raise InvalidDocument("a descriptor must be a JSON object")
        size = value.get("size")
        if type(size) is not int or not 0 <= size <= _MAX_SIZE:
            raise InvalidDocument(f"a descriptor's size must be a whole number of bytes, not {size!r:.40}")
        urls = value.get("urls") or []
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise InvalidDocument("a descriptor's urls must be a list of strings")
        platform = value.get("platform")
        if platform is not None and not isinstance(platform, dict):
            raise InvalidDocument("a descriptor's platform must be a JSON object")
        return cls(
            media_type=_text(value, "mediaType"),
            digest=Digest(_text(value, "digest")),
            size=size,
            urls=tuple(urls),
            annotations=annotations_from_json(value),
            data=_data(value),
            platform=Platform.from_json(platform) if platform is not None else None,
            artifact_type=_text(value, "artifactType"),
            extra={key: member for key, member in value.items() if key not in _KNOWN},
        )

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            value["urls"] = list(self.urls)
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.data is not None:
            value["data"] = base64.b64encode(self.data).decode()
        if self.platform is not None:
            value["platform"] = self.platform.to_json()
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return {**value, **self.extra}

    def annotated(self, annotations: Mapping[str, str]) -> Descriptor:
        """A copy with `annotations` added; an equal key is replaced."""
        return replace(self, annotations={**self.annotations, **annotations})

    def bare(self) -> Descriptor:
        """Type, digest and size alone."""
        return Descriptor(self.media_type, self.digest, self.size)


def annotations_from_json(value: Mapping[str, Any]) -> dict[str, str]:
    """The `annotations` member of a JSON object."""
    annotations = value.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(text, str) for text in annotations.values()):
        raise InvalidDocument("annotations must be strings")
    return annotations


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidDocument(f"a descriptor's {key} must be a string")
    return text


def _data(value: Mapping[str, Any]) -> bytes | None:
    text = value.get("data")
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidDocument("a descriptor's data must be base64") from None
