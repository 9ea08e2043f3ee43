"""Times clamped to an epoch: nothing else of a tar changes, whoever wrote it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.conversion.epoch import clamp
from blobtee.errors import BlobteeError, CorruptData, TooLarge
from blobtee.layers import Entry, entries
from tests.fuzz.test_tar import INTERESTING, SEEDS, fix_checksums

EPOCH = 1_000_000_000
LATE, EARLY = 1_700_000_000, 900_000_000


def clamped(tar: bytes, epoch: int = EPOCH) -> bytes:
    out = io.BytesIO()
    clamp(io.BytesIO(tar), out.write, epoch)  # type: ignore[arg-type]
    return out.getvalue()


def listed(tar: bytes) -> list[tuple[Entry, bytes]]:
    """The entries with what they hold; where they lie may change."""
    found = []
    for entry in entries(io.BytesIO(tar)):
        with entry.data() as data:
            found.append((replace(entry.detached(), offset=0), data.read(1 << 20)))
    return found


def expected(tar: bytes, epoch: int = EPOCH) -> list[tuple[Entry, bytes]]:
    most = epoch * 1_000_000_000
    return [(replace(entry, mtime_ns=min(entry.mtime_ns, most)), data) for entry, data in listed(tar)]


def archive(format_: int, *times: float, pax: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_, pax_headers=pax) as made:
        for number, mtime in enumerate(times):
            for kind, size in (
                (tarfile.REGTYPE, 700),
                (tarfile.DIRTYPE, 0),
                (tarfile.SYMTYPE, 0),
                (tarfile.LNKTYPE, 0),
            ):
                member = tarfile.TarInfo(f"{number}/{'long' * 40}/{kind.decode()}")
                member.type, member.size, member.mtime, member.linkname = kind, size, mtime, f"{number}/x" * (size == 0)
                made.addfile(member, io.BytesIO(b"x" * size))
    return buffer.getvalue()


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_late_times_become_the_epoch_and_others_stay(format_: int) -> None:
    tar = archive(format_, LATE, EARLY, 0, EPOCH, EPOCH + 1)
    result = clamped(tar)
    assert listed(result) == expected(tar)
    with tarfile.open(fileobj=io.BytesIO(result)) as theirs:
        assert {member.mtime for member in theirs} == {EPOCH, EARLY, 0}


def test_what_has_no_late_time_keeps_every_byte() -> None:
    for tar in (archive(tarfile.PAX_FORMAT, EARLY, 12.5), archive(tarfile.GNU_FORMAT, EARLY, -5), bytes(1024), b""):
        assert clamped(tar) == tar


def test_fractions_and_other_times_of_pax_records_are_clamped_too() -> None:
    member = tarfile.TarInfo("f")
    member.pax_headers = {"mtime": f"{EPOCH}.000000001", "atime": str(LATE), "ctime": "5.5", "comment": str(LATE)}
    tar = member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(clamped(tar))) as theirs:
        (found,) = theirs.getmembers()
    assert found.pax_headers == {"mtime": str(EPOCH), "atime": str(EPOCH), "ctime": "5.5", "comment": str(LATE)}


def test_global_headers_and_the_size_of_records_are_followed() -> None:
    tar = archive(tarfile.PAX_FORMAT, LATE, pax={"mtime": str(LATE), "comment": "kept"})
    result = clamped(tar)
    assert listed(result) == expected(tar)
    with tarfile.open(fileobj=io.BytesIO(result)) as theirs:
        assert theirs.pax_headers == {"mtime": str(EPOCH), "comment": "kept"}
    member = tarfile.TarInfo("big in a record")
    member.size, member.mtime = 9 << 30, LATE
    head = member.tobuf(tarfile.PAX_FORMAT)
    with pytest.raises(CorruptData, match="within a file"):
        clamped(head)


def test_times_of_gnus_own_and_in_base_256() -> None:
    member = tarfile.TarInfo("f")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[136:148] = (1 << 95 | LATE).to_bytes(12, "big")
    header[345:357] = b"%011o\0" % LATE
    header[357:369] = b"%011o\0" % EARLY
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    result = clamped(bytes(header) + bytes(1024))
    assert (result[136:148], result[345:357], result[357:369]) == (
        b"%011o\0" % EPOCH,
        b"%011o\0" % EPOCH,
        b"%011o\0" % EARLY,
    )
    assert [entry.mtime_ns for entry, _ in listed(result)] == [EPOCH * 10**9]
    early = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    early[136:148] = (-7 & ((1 << 96) - 1)).to_bytes(12, "big")
    early[148:156] = b"%06o\0 " % (sum(early[:148]) + sum(early[156:]) + 256)
    assert clamped(bytes(early) + bytes(1024)) == bytes(early) + bytes(1024)


@pytest.mark.parametrize(
    "options", [["--format=gnu", "-S"], ["--format=posix", "-S"], ["--format=v7"], ["--format=ustar"]]
)
def test_what_gnu_tar_writes_keeps_its_holes_and_all_else(options: list[str], tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        for place in range(40):
            file.seek(place * 65536)
            file.write(b"data")
        file.truncate(4 << 20)
    (tmp_path / "text").write_text("words")
    done = subprocess.run(["tar", *options, "-C", tmp_path, "-c", "."], capture_output=True, check=True)
    tar = done.stdout
    assert listed(clamped(tar)) == expected(tar)
    assert len(clamped(tar)) in (len(tar), len(tar) - 512)


def test_what_is_behind_the_end_stays_where_it_is() -> None:
    tar = archive(tarfile.GNU_FORMAT, LATE)
    assert clamped(tar + b"something else")[-14:] == b"something else"
    assert clamped(tar + bytes(700)) == clamped(tar) + bytes(700)


def test_what_is_no_tar_or_breaks_off_is_told() -> None:
    tar = archive(tarfile.GNU_FORMAT, LATE)
    for broken in (b"x" * 512, tar[:1500], b"\1" + tar[1:]):
        with pytest.raises(CorruptData):
            clamped(broken)
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2 << 20
    with pytest.raises(TooLarge):
        clamped(member.tobuf(tarfile.GNU_FORMAT) + bytes(3 << 20))


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    damage=st.lists(st.tuples(st.integers(0, 8191), st.sampled_from(INTERESTING) | st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 8192),
    epoch=st.integers(0, 3),
)
def test_damaged_tars_end_in_our_errors_or_read_as_before(
    seed: bytes, damage: list[tuple[int, int]], cut: int | None, epoch: int
) -> None:
    tar = bytearray(seed)
    for position, value in damage:
        tar[position % len(tar)] = value
    fix_checksums(tar)
    given_ = bytes(tar[:cut])
    try:
        before = expected(given_, epoch)
    except BlobteeError:
        with contextlib.suppress(BlobteeError):
            clamped(given_, epoch)
        return
    with contextlib.suppress(BlobteeError):
        assert listed(clamped(given_, epoch)) == before
