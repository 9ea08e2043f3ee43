"""The power goes while blobs come: one that has its name has its bytes, and one of which somebody was told is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.oci import Descriptor
from tests.integration.power.committing import DATA
from tests.integration.power.cutting import each_cut
from tests.integration.power.recording import record
from tests.integration.power.replay import Cut

SLOW_US = 50_000
"""What the bytes of a file take: longer than what else is waited for before it gets its name."""


@pytest.mark.timeout(3600)
def test_a_blob_that_is_there_after_a_power_cut_has_its_bytes(memory_path: Path, recorder: Path) -> None:
    recording = record(recorder, memory_path, "tests.integration.power.committing", file_sync_us=SLOW_US)
    assert len(recording.notes(len(recording.events))) == len(DATA) + 2

    def check(root: Path, cut: Cut) -> None:
        told = {note.split()[0] for note in recording.notes(cut.time)} - {"opened", "ended"}
        with LocalStore(root) as store:
            there = {info.digest: info.size for info in store.walk()}
            assert told <= there.keys() <= DATA.keys()
            for digest, size in there.items():
                with store.reader_at(Descriptor("", digest, size)) as reader:
                    assert reader.read_at(0, reader.size) == DATA[digest], f"{digest} is not whole"

    each_cut(recording, memory_path, check, since=recording.noted)
