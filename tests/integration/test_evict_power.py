"""The power goes while room is made: a blob is there, or is lazy with its labels and what proves its chunks."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.errors import NotFound
from blobtee.registry import Registry
from blobtee.tee.digests import ChunkDigests
from blobtee.transfer.evicting import shrink
from tests.integration.power.evicting import LABELS, NAME, SOURCE
from tests.integration.power.recording import record
from tests.integration.power.replay import Cut

CUTS = int(os.environ.get("BLOBTEE_POWER_CUTS", "60"))
"""States; the full run has 5,000."""

SEED = int(os.environ.get("BLOBTEE_POWER_SEED", "1"))


def make(root: Path, cut: Cut) -> None:
    for folder in cut.folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path, content in cut.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def check(root: Path, *, gone: bool) -> None:
    """`gone`: that all were, had been said."""
    with LocalStore(root) as store, Registry() as registry:
        away = {info.digest: info.labels for info in store.evicted()}
        for layer in SOURCE.layers:
            desc = layer.descriptor
            labels = {**LABELS, "kept": desc.digest.hex[:8]}
            try:
                with store.reader_at(desc) as reader:
                    assert reader.read_at(0, desc.size) == layer.data
                assert not gone, "it came back after it was said to be gone"
                assert store.info(desc.digest).labels == labels
            except NotFound:
                assert away[desc.digest] == labels
                proof = ChunkDigests.load(store.root, desc.digest, desc.size)
                assert proof is not None
                assert all(proof.agree(0, [memoryview(layer.data)]))
        assert transfer.verify(store).good
        with transfer.open_image(NAME, store, registry=registry) as image:
            assert len(image.get_remote().descriptors) == 2
        CacheManager(store).collect(grace=0)
        assert {info.digest for info in store.evicted()} == away.keys()
        shrink(store, 0)
        assert {info.digest for info in store.evicted()} == {layer.descriptor.digest for layer in SOURCE.layers}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("before", [(), ("killed",)])
def test_a_power_cut_loses_no_blob_and_no_proof(memory_path: Path, recorder: Path, before: tuple[str, ...]) -> None:
    recording = record(recorder, memory_path, "tests.integration.power.evicting", *before)
    ready = next(time for time in range(len(recording.events)) if recording.notes(time))
    root = memory_path / "after"
    for number in range(CUTS):
        seed = SEED * 1_000_000 + number
        draw = random.Random(seed)
        time = draw.randint(ready, len(recording.events))
        make(root, recording.cut(time, draw))
        try:
            check(root, gone="gone 0 0" in recording.notes(time))
        except BaseException as error:
            error.add_note(f"seed {seed}: cut at {time} of {len(recording.events)}, ready at {ready}")
            raise
        shutil.rmtree(root)
