"""Images made of given files, for tests: into a `MemoryRegistry`, or as an OCI layout on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import zstandard

from blobtee.oci import Compressed, Descriptor, Digest, Platform
from blobtee.oci.mediatypes import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from blobtee.testing.registry import MemoryRegistry

Files = Mapping[str, bytes | str | None]
"""Path to contents; None is a directory, text is a symbolic link's target. A whiteout is an empty `.wh.` file."""


@dataclass(frozen=True)
class Layer:
    """One layer, packed. `descriptor` describes `data`; `diff_id` is the digest of the tar inside."""

    data: bytes = field(repr=False)
    descriptor: Descriptor
    diff_id: Digest


@dataclass(frozen=True)
class ImageSource:
    """An image or an index, complete: `documents` are raw manifests by digest, the root's among them."""

    descriptor: Descriptor
    documents: Mapping[Digest, tuple[str, bytes]] = field(repr=False)
    blobs: Mapping[Digest, bytes] = field(repr=False)
    layers: tuple[Layer, ...]
    config: bytes = field(repr=False)

    @property
    def manifest(self) -> bytes:
        return self.documents[self.descriptor.digest][1]

    def push(self, registry: MemoryRegistry, repository: str, tag: str = "latest") -> str:
        """Put it into `registry`, behind its API; the name under which it can be pulled."""
        for data in self.blobs.values():
            registry.add_blob(repository, data)
        for digest, (media_type, raw) in self.documents.items():
            registry.add_document(repository, raw, media_type, tag if digest == self.descriptor.digest else None)
        return f"{registry.host}/{repository}:{tag}"

    def write_layout(self, folder: str | Path, tag: str = "latest") -> Path:
        """Write it as an OCI image layout (OCI image specification, image-layout.md)."""
        root = Path(folder)
        everything = {**self.blobs, **{digest: raw for digest, (_, raw) in self.documents.items()}}
        for digest, data in everything.items():
            path = root / "blobs" / digest.algorithm / digest.hex
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        named = self.descriptor.annotated({"org.opencontainers.image.ref.name": tag})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [named.to_json()]}
        (root / "index.json").write_text(json.dumps(index))
        return root


def tar(files: Files, *, mtime: int = 0) -> bytes:
    """A tar of `files`, in their order, owned by root; the directories come first, as real layers have them."""
    buffer = io.BytesIO()
    said: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, contents in files.items():
            say_directories(archive, path, said, mtime)
            said.add(path)
            member = tarfile.TarInfo(path)
            member.mtime = mtime
            if contents is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            elif isinstance(contents, str):
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, contents, 0o777
                archive.addfile(member)
            else:
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def say_directories(archive: tarfile.TarFile, name: str, said: set[str], mtime: int = 0) -> None:
    """Add the directories above `name` that are not in `said`."""
    for directory in reversed([str(above) for above in PurePosixPath(name).parents if above.name]):
        if directory not in said:
            said.add(directory)
            member = tarfile.TarInfo(directory)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, mtime
            archive.addfile(member)


def layer(
    contents: Files | bytes, *, compression: Compressed = Compressed.GZIP, docker: bool = False, level: int = 1
) -> Layer:
    """Pack files, or a tar that is there already."""
    unpacked = contents if isinstance(contents, bytes) else tar(contents)
    if compression is Compressed.GZIP:
        data = gzip.compress(unpacked, level, mtime=0)
    elif compression is Compressed.ZSTD:
        data = zstandard.ZstdCompressor(level, write_checksum=True).compress(unpacked)
    else:
        data = unpacked
    suffix = "" if compression is Compressed.NONE else (("." if docker else "+") + compression.value)
    media_type = (DOCKER_LAYER if docker else OCI_LAYER) + suffix
    return Layer(data, Descriptor(media_type, _digest(data), len(data)), _digest(unpacked))


def image(
    layers: Sequence[Layer | Files],
    *,
    docker: bool = False,
    platform: Platform | None = None,
    compression: Compressed = Compressed.GZIP,
    config: Mapping[str, object] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> ImageSource:
    """An image of `layers`, base to top; files are packed with `compression`.

    `config` is merged into the image's configuration. The same input makes the same bytes.
    """
    packed = tuple(
        given if isinstance(given, Layer) else layer(given, compression=compression, docker=docker) for given in layers
    )
    target = platform or Platform.current()
    settings = {
        **target.to_json(),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in packed]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(packed))],
        **(config or {}),
    }
    raw_config = json.dumps(settings).encode()
    config_type, manifest_type = (DOCKER_CONFIG, DOCKER_MANIFEST) if docker else (OCI_CONFIG, OCI_MANIFEST)
    config_descriptor = Descriptor(config_type, _digest(raw_config), len(raw_config))
    manifest: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config_descriptor.to_json(),
        "layers": [each.descriptor.to_json() for each in packed],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    raw = json.dumps(manifest).encode()
    descriptor = Descriptor(manifest_type, _digest(raw), len(raw))
    blobs = {config_descriptor.digest: raw_config, **{each.descriptor.digest: each.data for each in packed}}
    return ImageSource(descriptor, {descriptor.digest: (manifest_type, raw)}, blobs, packed, raw_config)


def index(images: Mapping[str, ImageSource], *, docker: bool = False) -> ImageSource:
    """An index of one image for each platform (`linux/arm64`)."""
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    members = [
        {**source.descriptor.to_json(), "platform": Platform.parse(name).to_json()} for name, source in images.items()
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": members}).encode()
    documents: dict[Digest, tuple[str, bytes]] = {}
    blobs: dict[Digest, bytes] = {}
    for source in images.values():
        documents.update(source.documents)
        blobs.update(source.blobs)
    descriptor = Descriptor(media_type, _digest(raw), len(raw))
    documents[descriptor.digest] = (media_type, raw)
    layers = tuple(each for source in images.values() for each in source.layers)
    return ImageSource(descriptor, documents, blobs, layers, b"")


def _digest(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
