"""The power goes after somebody was told of a blob that a killed process had left half way: it is there for good."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.oci import Descriptor
from tests.integration.power.looking import DATA, DIGEST, LABELS, LOOKS
from tests.integration.power.recording import record
from tests.integration.test_evict_power import make

CUTS = int(os.environ.get("BLOBTEE_POWER_CUTS", "60"))
"""States for each way to look."""

SEED = int(os.environ.get("BLOBTEE_POWER_SEED", "1"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("look", LOOKS)
def test_who_was_told_of_a_blob_has_it_after_a_power_cut(look: str, memory_path: Path, recorder: Path) -> None:
    recording = record(recorder, memory_path, "tests.integration.power.looking", look)
    told = next(time for time in range(len(recording.events)) if recording.notes(time))
    root = memory_path / "after"
    for number in range(CUTS):
        seed = SEED * 1_000_000 + number
        draw = random.Random(seed)
        time = draw.randint(told, len(recording.events))
        make(root, recording.cut(time, draw))
        with LocalStore(root) as store:
            assert store.has(DIGEST), f"seed {seed}: cut at {time} of {len(recording.events)}, told at {told}"
            assert store.info(DIGEST).labels == LABELS
            with store.reader_at(Descriptor("", DIGEST, len(DATA))) as reader:
                assert reader.read_at(0, reader.size) == DATA
        shutil.rmtree(root)
