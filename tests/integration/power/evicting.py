"""Puts an image into a store as if it had been pulled, and makes room, to be recorded: `evicting.py ROOT`."""

from __future__ import annotations

import sys
from pathlib import Path

from blobtee.cache import labels as cache_labels
from blobtee.content import LocalStore
from blobtee.oci import Descriptor, parse_document
from blobtee.testing import image
from blobtee.transfer import images
from blobtee.transfer.evicting import shrink
from tests.integration.power.recording import note

NAME = "registry.example/team/app:1"
SOURCE = image([{"first": b"1" * 100_000}, {"second": b"2" * 200_000}])
LABELS = cache_labels.with_source({}, NAME)


def put(store: LocalStore, desc: Descriptor, data: bytes) -> None:
    images.keep_document(store, desc, data, {**LABELS, "kept": desc.digest.hex[:8]})


def prepare(root: Path) -> LocalStore:
    store = LocalStore(root)
    for layer in SOURCE.layers:
        put(store, layer.descriptor, layer.data)
    manifest = parse_document(SOURCE.manifest, SOURCE.descriptor.media_type)
    put(store, manifest.config, SOURCE.config)  # type: ignore[union-attr]
    put(store, SOURCE.descriptor, SOURCE.manifest)
    store.layout.set(NAME, SOURCE.descriptor)
    return store


if __name__ == "__main__":
    with prepare(Path(sys.argv[1])) as store:
        note("ready")
        assert len(shrink(store, 0).blobs) == 2
        note("gone")
    note("ended")
