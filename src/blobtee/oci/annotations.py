"""Annotations that travel with a layer's descriptor: the names are containerd's and stargz-snapshotter's."""

from __future__ import annotations

UNCOMPRESSED = "containerd.io/uncompressed"
"""The diff id: digest of the bytes that decompressing the blob gives."""
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""Bytes that decompressing an eStargz blob gives, its table of contents included; decimal."""
