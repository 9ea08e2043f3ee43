"""The labels and annotations that blobs carry: the names are BuildKit's and containerd's (`spec/remote.md` 1, 2, 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from blobtee.errors import InvalidArgument
from blobtee.oci import Descriptor, Digest, Reference
from blobtee.oci.annotations import (
    CHUNKED_DIGEST,
    CHUNKED_POSITION,
    CHUNKED_TARSPLIT_POSITION,
    INDEX_DIGEST,
    INDEX_POSITION,
    STARGZ_CHUNKED_DIGEST,
    STARGZ_CHUNKED_POSITION,
)
from blobtee.oci.annotations import TOC_DIGEST as TOC_DIGEST
from blobtee.oci.annotations import UNCOMPRESSED as UNCOMPRESSED
from blobtee.oci.annotations import UNCOMPRESSED_SIZE as UNCOMPRESSED_SIZE
from blobtee.oci.times import from_rfc3339 as from_rfc3339

CREATED_AT = "buildkit/createdat"
SOURCE = "containerd.io/distribution.source."
GC_LINK = "containerd.io/gc.ref.content"
"""containerd's labels for "as long as this stays, that does": the key, perhaps with `.` and a name after it."""
LINK = f"{GC_LINK}.blob-"
MEDIA_TYPE = "buildkit.io/blob/mediatype"
ANNOTATION = "buildkit.io/blob/annotation."
IS_ESTARGZ = "buildkit.io/compression/estargz"

KEPT = (
    UNCOMPRESSED,
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
    INDEX_DIGEST,
    INDEX_POSITION,
    CHUNKED_DIGEST,
    CHUNKED_POSITION,
    CHUNKED_TARSPLIT_POSITION,
    STARGZ_CHUNKED_DIGEST,
    STARGZ_CHUNKED_POSITION,
)
"""Annotations that stay with a blob in the store; the others belong to the manifest they came in."""

MAX_LABEL = 4096
"""Characters of a label's key and value together (containerd `pkg/labels`)."""


def kept(annotations: Mapping[str, str]) -> dict[str, str]:
    """Those of `annotations` that stay with a blob."""
    return {key: annotations[key] for key in KEPT if annotations.get(key)}


def blob_labels(desc: Descriptor) -> dict[str, str]:
    """The labels that say what the blob of `desc` is, and where it can be had. Over-long ones are left out."""
    labels = {MEDIA_TYPE: desc.media_type}
    labels |= {ANNOTATION + key: value for key, value in kept(desc.annotations).items()}
    labels |= {key: value for key, value in desc.annotations.items() if key.startswith(SOURCE)}
    return {key: value for key, value in labels.items() if value and len(key) + len(value) <= MAX_LABEL}


def made_labels(desc: Descriptor) -> dict[str, str]:
    """The labels of a blob that was made here: containerd looks for the diff id under its own name."""
    return {UNCOMPRESSED: desc.annotations[UNCOMPRESSED], **blob_labels(desc)}


def blob_annotations(labels: Mapping[str, str]) -> dict[str, str] | None:
    """The annotations kept in a blob's labels; None when the labels do not say what the blob is."""
    if not labels.get(MEDIA_TYPE):
        return None
    return kept({key[len(ANNOTATION) :]: value for key, value in labels.items() if key.startswith(ANNOTATION)})


def with_source(annotations: Mapping[str, str], image_ref: str) -> dict[str, str]:
    """The one annotation that says a blob can be had from `image_ref`'s repository, merged with what is there.

    The key keeps the host's port; the value is a comma list, order kept, no duplicate. `InvalidReference`.
    """
    reference = Reference.parse(image_ref)
    key = SOURCE + reference.host
    return {key: _joined([annotations.get(key, ""), reference.repository])}


def merged_sources(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The source labels of both, those of `first` first. Lists that would be too long for a label lose their end."""
    result: dict[str, str] = {}
    for key in dict.fromkeys((*first, *second)):
        if not key.startswith(SOURCE):
            continue
        joined = _joined([first.get(key, ""), second.get(key, "")])
        while joined and len(key) + len(joined) > MAX_LABEL:
            joined = joined.rpartition(",")[0]
        if joined:
            result[key] = joined
    return result


def repositories(labels: Mapping[str, str], host: str) -> list[str]:
    """The repositories on `host` (with its port, if any) that labels or annotations name as sources of a blob.

    Upstream writes the host without its port, so that key is read too, after the exact one.
    """
    return [part for part in _joined([labels.get(SOURCE + name, "") for name in _spellings(host)]).split(",") if part]


def links(labels: Mapping[str, str]) -> list[Digest]:
    """The blobs that `labels` link to, sorted. What is no digest is passed over."""
    result = []
    for key in sorted(labels):
        if key.startswith(LINK):
            try:
                result.append(Digest(labels[key]))
            except InvalidArgument:
                continue
    return result


def rfc3339(nanoseconds: int) -> str:
    """A moment as Go writes it with RFC3339Nano, in UTC: `2024-05-01T12:00:00.123456789Z`, no zeros at the end."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{fraction:09}".rstrip("0") if fraction else "") + "Z"


def _spellings(host: str) -> tuple[str, ...]:
    bare, colon, port = host.rpartition(":")
    return (host, bare) if colon and port.isdigit() else (host,)


def _joined(lists: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(part for text in lists for part in text.split(",") if part))
