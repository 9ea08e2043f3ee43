"""Media types, and what they say of a layer."""

from __future__ import annotations

from enum import Enum

from blobtee.errors import UnsupportedMediaType

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)
"""What a registry is asked for, best first."""


class Compressed(Enum):
    """How a layer's tar is packed, as far as its media type tells: eStargz layers say gzip."""

    NONE = "uncompressed"
    GZIP = "gzip"
    ZSTD = "zstd"


_SUFFIXES = {
    OCI_LAYER: {"": Compressed.NONE, "+gzip": Compressed.GZIP, "+zstd": Compressed.ZSTD},
    OCI_LAYER_NONDISTRIBUTABLE: {"": Compressed.NONE, "+gzip": Compressed.GZIP, "+zstd": Compressed.ZSTD},
    DOCKER_LAYER: {"": Compressed.NONE, ".gzip": Compressed.GZIP, ".zstd": Compressed.ZSTD},
    DOCKER_LAYER_FOREIGN: {"": Compressed.NONE, ".gzip": Compressed.GZIP},
}
_LAYERS = {base + suffix: kind for base, kinds in _SUFFIXES.items() for suffix, kind in kinds.items()}
_DISTRIBUTABLE = {
    base + suffix: distributable + suffix
    for base, distributable in ((OCI_LAYER_NONDISTRIBUTABLE, OCI_LAYER), (DOCKER_LAYER_FOREIGN, DOCKER_LAYER))
    for suffix in _SUFFIXES[base]
}
_NONDISTRIBUTABLE = {plain: foreign for foreign, plain in _DISTRIBUTABLE.items()}
_OCI = {
    docker + suffix: oci + suffix.replace(".", "+")
    for docker, oci in ((DOCKER_LAYER, OCI_LAYER), (DOCKER_LAYER_FOREIGN, OCI_LAYER_NONDISTRIBUTABLE))
    for suffix in _SUFFIXES[docker]
}


def is_layer(media_type: str) -> bool:
    return media_type in _LAYERS


def layer_compression(media_type: str) -> Compressed:
    """What packs a layer of this type; `UnsupportedMediaType` names a type that is not a layer's."""
    try:
        return _LAYERS[media_type]
    except KeyError:
        raise UnsupportedMediaType(f"unhandled layer media type: {media_type[:200]!r}") from None


def is_nondistributable(media_type: str) -> bool:
    return media_type in _DISTRIBUTABLE


def distributable(media_type: str) -> str:
    """The type with the same bytes that registries may hold; any other type comes back as it is."""
    return _DISTRIBUTABLE.get(media_type, media_type)


def nondistributable(media_type: str) -> str:
    """The type with the same bytes that says "do not distribute"; any other type, and Docker's zstd, which has no such
    twin, comes back as it is."""
    return _NONDISTRIBUTABLE.get(media_type, media_type)


def oci_layer(media_type: str) -> str:
    """The OCI type for the same bytes as a Docker layer type; any other type comes back as it is."""
    return _OCI.get(media_type, media_type)
