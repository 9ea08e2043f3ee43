"""Puts an image into a store as if it had been pulled, and makes room, to be recorded: `evicting.py ROOT`.

With `evicting.py ROOT killed` what proves the chunks was kept before, by who was killed just before it was durable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from blobtee.cache import labels as cache_labels
from blobtee.content import LocalStore, files
from blobtee.oci import Descriptor, parse_document
from blobtee.tee import digests
from blobtee.tee.proving import keep_proof
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


def dies_proving(store: LocalStore, desc: Descriptor) -> None:
    def die(directory: Path) -> None:
        if directory == digests.path_of(store.root, desc.digest).parent:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(files, "sync_directory", die)  # noqa: B010
    keep_proof(store, desc.digest, desc.size)


if __name__ == "__main__":
    how = sys.argv[2:]
    with prepare(Path(sys.argv[1])) as store:
        for number in range(len(SOURCE.layers)) if how == ["killed"] else ():
            again = [sys.executable, "-m", "tests.integration.power.evicting", sys.argv[1], str(number)]
            assert subprocess.run(again, check=False).returncode == -signal.SIGKILL
        if how and how != ["killed"]:
            dies_proving(store, SOURCE.layers[int(how[0])].descriptor)
        note("ready")
        assert len(shrink(store, 0).blobs) == 2
        note("gone")
    note("ended")
