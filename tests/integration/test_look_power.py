"""The power goes after somebody was told of a blob that a killed process had left half way: it is there for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.oci import Descriptor
from tests.integration.power.cutting import each_cut
from tests.integration.power.looking import DATA, DIGEST, LABELS, LOOKS
from tests.integration.power.recording import record


def check(root: Path, _: object) -> None:
    with LocalStore(root) as store:
        assert store.has(DIGEST)
        assert store.info(DIGEST).labels == LABELS
        with store.reader_at(Descriptor("", DIGEST, len(DATA))) as reader:
            assert reader.read_at(0, reader.size) == DATA


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("look", LOOKS)
def test_who_was_told_of_a_blob_has_it_after_a_power_cut(look: str, memory_path: Path, recorder: Path) -> None:
    recording = record(recorder, memory_path, "tests.integration.power.looking", look)
    each_cut(recording, memory_path, check, since=recording.noted)
