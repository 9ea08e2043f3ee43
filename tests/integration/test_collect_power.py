"""The power goes while blobs are collected that a killed process had let go of: an image that has its name is whole."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.content import LocalStore
from blobtee.oci import Digest
from tests.integration.power.evicting import NAME, SOURCE
from tests.integration.power.recording import record
from tests.integration.test_evict_power import make

CUTS = int(os.environ.get("BLOBTEE_POWER_CUTS", "60"))
"""States; the full run has 5,000."""

SEED = int(os.environ.get("BLOBTEE_POWER_SEED", "1"))

BLOBS = (SOURCE.descriptor.digest, Digest.of(SOURCE.config), *(layer.descriptor.digest for layer in SOURCE.layers))


@pytest.mark.timeout(3600)
def test_a_power_cut_leaves_no_image_without_its_blobs(memory_path: Path, recorder: Path) -> None:
    recording = record(recorder, memory_path, "tests.integration.power.collecting")
    killed = next(time for time in range(len(recording.events)) if recording.notes(time))
    root = memory_path / "after"
    there = 0
    for number in range(CUTS):
        seed = SEED * 1_000_000 + number
        draw = random.Random(seed)
        time = draw.randint(killed, len(recording.events))
        make(root, recording.cut(time, draw))
        with LocalStore(root) as store:
            if NAME in store.layout.names():
                there += 1
                missing = [digest for digest in BLOBS if not store.has(digest)]
                assert not missing, f"seed {seed}: cut at {time} of {len(recording.events)}, killed at {killed}"
            assert transfer.verify(store).good
        shutil.rmtree(root)
    assert there, "a power cut never brings the name back: there is nothing to test"
