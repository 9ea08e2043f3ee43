"""The power goes while room is made: a blob is there, or is lazy with its labels and what proves its chunks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.errors import NotFound
from blobtee.registry import Registry
from blobtee.tee.digests import ChunkDigests
from blobtee.transfer.evicting import shrink
from tests.integration.power.cutting import each_cut
from tests.integration.power.evicting import LABELS, NAME, SOURCE
from tests.integration.power.recording import record
from tests.integration.power.replay import Cut, Recording


def check(recording: Recording, root: Path, cut: Cut) -> None:
    gone = "gone 0 0" in recording.notes(cut.time)
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
    each_cut(recording, memory_path, partial(check, recording), since=recording.noted)
