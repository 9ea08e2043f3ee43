"""The power goes while blobs are collected that a killed process had let go of: an image that has its name is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.content import LocalStore
from blobtee.oci import Digest
from tests.integration.power.cutting import each_cut
from tests.integration.power.evicting import NAME, SOURCE
from tests.integration.power.recording import record

BLOBS = (SOURCE.descriptor.digest, Digest.of(SOURCE.config), *(layer.descriptor.digest for layer in SOURCE.layers))


@pytest.mark.timeout(3600)
def test_a_power_cut_leaves_no_image_without_its_blobs(memory_path: Path, recorder: Path) -> None:
    there = 0

    def check(root: Path, _: object) -> None:
        nonlocal there
        with LocalStore(root) as store:
            if NAME in store.layout.names():
                there += 1
                assert not [digest for digest in BLOBS if not store.has(digest)]
            assert transfer.verify(store).good

    recording = record(recorder, memory_path, "tests.integration.power.collecting")
    each_cut(recording, memory_path, check, since=recording.noted)
    assert there, "a power cut never brings the name back: there is nothing to test"
