"""The power goes while a blob is read or filled by parts: every state that the disk may be in then, or many of them.

The work is recorded once for each shape of it; states are drawn from the recording by seed (`power.replay`) and opened
as after another start of the machine. Nobody gets a wrong byte, what was settled is not fetched again, what was said
to be in the store is in it, and a collection leaves nothing.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from blobtee.core import crc32c
from blobtee.tee import map as maps
from blobtee.tee.map import CHUNK
from tests.integration.power.cutting import each_cut
from tests.integration.power.recording import record
from tests.integration.power.replay import CREATE, RENAME, UNLINK, Cut, Recording
from tests.integration.power.worker import SPACING
from tests.integration.tee_crash_worker import DATA, DESC, PIECE, SHAPES
from tests.integration.test_tee_crash import Said, check, chunks_in

_PARTIAL = f"partial/sha256/{DESC.digest.hex}"


def recorded(recorder: Path, folder: Path, shape: str) -> Recording:
    return record(recorder, folder, "tests.integration.power.worker", shape)


def adapt(root: Path, cut: Cut, recording: Recording) -> None:
    """Files have other numbers here, and maps name the number of their file."""
    data = cut.number.get(f"{_PARTIAL}/data")
    if data is not None and f"{_PARTIAL}/map" in cut.files:
        raw = bytearray(cut.files[f"{_PARTIAL}/map"])
        for slot in (0, 512):
            renumber(raw, slot, recording.inodes[data], (root / _PARTIAL / "data").stat().st_ino)
        (root / _PARTIAL / "map").write_bytes(raw)


def renumber(raw: bytearray, slot: int, old: int, new: int) -> None:
    """Let a sound header say `new` where it says `old`."""
    header = maps._HEADER
    if len(raw) >= slot + 512 and sealed(raw, slot) == crc32c(raw[slot : slot + header.size]):
        fields = list(header.unpack_from(raw, slot))
        if fields[3] == old:
            fields[3] = new
            header.pack_into(raw, slot, *fields)
            struct.pack_into("<I", raw, slot + header.size, crc32c(raw[slot : slot + header.size]))


def sealed(raw: bytearray, slot: int) -> int:
    (crc,) = struct.unpack_from("<I", raw, slot + maps._HEADER.size)
    return int(crc)


def settled(recording: Recording, time: int, numbers: dict[str, int]) -> set[int]:
    """Chunks that the map, as it is on the disk for sure, says to be there."""
    file, data = numbers.get(f"{_PARTIAL}/map"), numbers.get(f"{_PARTIAL}/data")
    if file is None or data is None:
        return set()
    raw = recording.content(file, recording.durable(file, time))
    if len(raw) != maps.map_nbytes(len(DATA)):
        return set()
    sound = [slot for slot in (0, 512) if sealed(raw, slot) == crc32c(raw[slot : slot + maps._HEADER.size])]
    if not any(maps._HEADER.unpack_from(raw, slot)[3] == recording.inodes[data] for slot in sound):
        return set()
    chunks = maps.chunks_of(len(DATA))
    return {number for number in range(chunks) if raw[1024 + chunks + number]}


def touched(recording: Recording, time: int) -> bool:
    """Whether anything of the partial blob had been renamed or removed."""
    return any(
        event.kind in (RENAME, UNLINK) and event.names[0].startswith(_PARTIAL) for event in recording.events[:time]
    )


def names_made(recording: Recording, time: int) -> dict[str, int]:
    """Which file was made last by each name."""
    return {event.names[0]: event.file for event in recording.events[:time] if event.kind == CREATE}


def said(recording: Recording, time: int) -> Said:
    notes = (note.rsplit(" ", 2) for note in recording.notes(time))
    return [(what, int(start), int(end)) for what, start, end in notes]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_power_cut_costs_what_was_not_settled(
    shape: str, memory_path: Path, recorder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = recorded(recorder, memory_path, shape)
    monkeypatch.setattr(maps, "boot_id", lambda: "another")

    def check_chunks(root: Path, cut: Cut) -> None:
        adapt(root, cut, recording)
        time = cut.time
        # Names may be gone of what was just made, or is just going away; but not before that.
        kept = settled(recording, time, cut.number if touched(recording, time) else names_made(recording, time))
        check(root, shape, said(recording, time), lost=set(range(maps.chunks_of(len(DATA)))) - kept)

    each_cut(recording, memory_path, check_chunks)


def test_what_a_power_cut_costs_is_bounded(memory_path: Path, recorder: Path) -> None:
    """At every moment of a fill: what had come and was not settled."""
    recording = recorded(recorder, memory_path, "filled")
    worst = 0
    for time in range(len(recording.events)):
        if touched(recording, time):
            break
        came = set().union(*(chunks_in(start, end) for what, start, end in said(recording, time) if what == "sent"))
        worst = max(worst, len(came - settled(recording, time, names_made(recording, time))))
    assert 0 < worst * CHUNK <= SPACING + 3 * PIECE, "the spacing, what came while it was synced, what is on its way"
