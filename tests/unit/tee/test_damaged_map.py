"""Maps that are damaged in every way, of files as they are on the disk: nobody gets a wrong byte by one."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore, Trust
from blobtee.core import crc32c
from blobtee.tee import Tee
from blobtee.tee import map as maps
from blobtee.tee.map import map_nbytes
from tests.unit.tee.support import Origin, chunks, desc_of, some_bytes

DATA = some_bytes(chunks(12) + 5)
DESC = desc_of(DATA)
HERE = (9, 5, 3, 0)
"""Chunks that are here, in an order that nothing is read ahead of."""

HEADER, SLOTS, SLOT_NBYTES = maps._HEADER, (0, 512), 512
LIVE = 1024

Damage = Callable[[bytearray], None]


@pytest.fixture(params=["raw", "proven"])
def trust(request: pytest.FixtureRequest) -> Trust:
    """What readers ask for; of a blob whose chunks are proven by digests, the most."""
    return Trust.RAW if request.param == "raw" else Trust.BLOB


@pytest.fixture
def store(memory_path: Path, trust: Trust) -> Iterator[LocalStore]:
    """With a partial blob, whose files are as `before` has them."""
    with LocalStore(memory_path / "root") as store:
        tee = Tee(store)
        if trust is Trust.BLOB:
            tee.fill(DESC, Origin(DATA).source)
            store.delete(DESC.digest)
        with tee.reader_at(DESC, Origin(DATA).source, trust) as reader:
            for number in HERE:
                reader.read_at(chunks(number), 10)
        tee.close()
        yield store


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.tee.blob.SMALL", 0)
    monkeypatch.setattr("blobtee.tee.blob.FILL_FROM", 2)


def folder(store: LocalStore) -> Path:
    return store.root / "partial" / "sha256" / DESC.digest.hex


def read(store: LocalStore, trust: Trust) -> set[int]:
    """Read all of it, by a tee of its own, chunk by chunk; the chunks that were asked for."""
    tee = Tee(store)
    origin = Origin(DATA)
    with tee.reader_at(DESC, origin.source, trust) as reader:
        for number in reversed(range(13)):
            assert reader.read_at(chunks(number), 1 << 16) == DATA[chunks(number) : chunks(number + 1)]
    tee.close()
    return {start >> 16 for start, _ in origin.requests}


MISSING = set(range(13)) - set(HERE)


def every_damage(store: LocalStore, trust: Trust, damages: Iterator[Damage]) -> list[set[int]]:
    """Read after each of the damages to the map as it was before; what was asked for."""
    map_path, data_path = folder(store) / "map", folder(store) / "data"
    raw, data = map_path.read_bytes(), data_path.read_bytes()
    asked = []
    for damage in damages:
        if not folder(store).exists():
            raise AssertionError("it became a blob")
        damaged = bytearray(raw)
        damage(damaged)
        # The same files: a map belongs to the number of its data.
        with open(data_path, "r+b") as file:
            file.write(data)
        inode = data_path.stat().st_ino
        for slot in SLOTS:
            renumber(damaged, raw, slot, inode)
        map_path.write_bytes(damaged)
        asked.append(read(store, trust))
    return asked


def renumber(damaged: bytearray, raw: bytes, slot: int, inode: int) -> None:
    """The data were made anew when a map before was thrown away: have this one belong to them, where it is sound."""
    if len(damaged) < slot + SLOT_NBYTES or damaged[slot : slot + SLOT_NBYTES] != raw[slot : slot + SLOT_NBYTES]:
        return
    fields = list(HEADER.unpack_from(damaged, slot))
    if fields[0]:
        fields[3] = inode
        seal(damaged, slot, fields)


def seal(raw: bytearray, slot: int, fields: list[object]) -> None:
    HEADER.pack_into(raw, slot, *fields)
    struct.pack_into("<I", raw, slot + HEADER.size, crc32c(raw[slot : slot + HEADER.size]))


def flips(places: range | list[int], seed: int) -> Iterator[Damage]:
    draw = random.Random(seed)
    for place in places:
        bit = 1 << draw.randrange(8)

        def flip(raw: bytearray, place: int = place, bit: int = bit) -> None:
            raw[place] ^= bit

        yield flip


def test_a_bit_of_the_header_that_is_another(store: LocalStore, trust: Trust) -> None:
    step = 1 if trust is Trust.RAW else 7
    asked = every_damage(store, trust, flips(range(0, 1024, step), 1))
    # The slot of the higher sequence is the second or the first; a flip in what has no meaning costs nothing.
    assert all(each >= MISSING for each in asked)
    assert sum(each == MISSING for each in asked) > len(asked) // 3


@pytest.mark.parametrize("boot", ["same", "another"])
def test_a_bit_behind_the_header_that_is_another(
    store: LocalStore, trust: Trust, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if boot == "another":
        monkeypatch.setattr(maps, "boot_id", lambda: "another")
    places = list(range(LIVE, map_nbytes(len(DATA)))) * 3
    asked = every_damage(store, trust, flips(places, 2))
    assert all(each >= MISSING for each in asked)
    assert all(len(each) <= len(MISSING) + 1 for each in asked), "a bit costs a chunk"


def test_a_map_of_any_other_length(store: LocalStore, trust: Trust) -> None:
    draw = random.Random(3)

    def cut(raw: bytearray) -> None:
        del raw[draw.randrange(len(raw)) :]

    def grow(raw: bytearray) -> None:
        raw += draw.randbytes(draw.randrange(1, 5000))

    assert every_damage(store, trust, iter([cut, grow] * 20)) == [set(range(13))] * 40


def test_a_map_that_says_something_else(store: LocalStore, trust: Trust) -> None:
    """Headers that are sealed as they should be, of an older version, another blob, another size, another file."""

    def saying(place: int, value: object) -> Damage:
        def damage(raw: bytearray) -> None:
            for slot in SLOTS:
                fields = list(HEADER.unpack_from(raw, slot))
                fields[place] = value
                seal(raw, slot, fields)

        return damage

    others = [
        saying(0, b"blobtee\x01"),
        saying(0, b"blobtee\x03"),
        saying(2, len(DATA) - 1),
        saying(3, 12345),
        saying(6, desc_of(b"another").digest.encode()),
        saying(6, b"\xff" * 136),
    ]
    assert every_damage(store, trust, iter(others)) == [set(range(13))] * len(others)


def test_a_map_of_another_run_of_the_machine(store: LocalStore, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of it, and every time where nobody says which it is: what was settled counts, and no more."""

    def unsettled(boot: str) -> Damage:
        def damage(raw: bytearray) -> None:
            monkeypatch.setattr(maps, "boot_id", lambda: boot)
            raw[LIVE + 13 + 5] = 0
            raw[LIVE + 12] = 1

        return damage

    boots = ["another", "a third", ""]
    assert every_damage(store, trust, map(unsettled, boots)) == [MISSING | {5}] * len(boots)


def test_data_that_are_another_file(store: LocalStore, trust: Trust) -> None:
    data = folder(store) / "data"
    shutil.copy(data, data.with_name("copy"))
    os.replace(data.with_name("copy"), data)
    assert read(store, trust) == set(range(13))


def test_data_that_changed_behind_the_map(store: LocalStore, trust: Trust) -> None:
    """Also without a restart of the machine: who has not brought a chunk himself looks at it before its first use."""
    with open(folder(store) / "data", "r+b") as file:
        file.seek(chunks(5) + 100)
        file.write(b"other bytes")
    assert read(store, trust) == MISSING | {5}
