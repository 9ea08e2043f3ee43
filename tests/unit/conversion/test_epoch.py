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
from tests.fuzz.test_tar import INTERESTING, KINDS, RECORDS, SEEDS, fix_checksums, record
from tests.unit.layers.test_reader import header

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
    check_against_reader(given_, epoch)


def check_against_reader(tar: bytes, epoch: int) -> None:
    """What the reader of tars reads, it reads after clamping too; of all else nothing but our errors comes."""
    try:
        before = expected(tar, epoch)
    except BlobteeError:
        with contextlib.suppress(BlobteeError):
            clamped(tar, epoch)
        return
    after = clamped(tar, epoch)
    assert listed(after) == before
    assert clamped(after, epoch) == after


def extended(kind: bytes, *bodies: bytes) -> bytes:
    block = b"".join(map(record, bodies))
    return header(b"extra", kind, len(block)) + block + bytes(-len(block) % 512)


def file(size: int, stated: int | None = None) -> bytes:
    """A file, whose header may say another size than it has."""
    return header(b"file", b"0", size if stated is None else stated) + b"q" * size + bytes(-size % 512)


@pytest.mark.parametrize(
    "tar",
    [
        extended(b"X", b"mtime=9000") + file(5),
        extended(b"X", b"size=1024") + file(1024, 0) + file(600),
        extended(b"g", b"size=1024") + file(5) + file(600),
        extended(b"g", b"size=1024") + extended(b"x", b"size=1024") + file(1024, 0) + file(600),
        extended(b"x", b"size=1024") + extended(b"x", b"path=z") + file(5) + file(600),
        extended(b"x", b"size=1024", b"size=") + file(5) + file(600),
        extended(b"x", b"size=1024") + extended(b"g", b"comment=a") + file(5) + file(600),
        extended(b"x", b"size=1024") + header(b"label", b"V") + file(1024, 0) + file(600),
        extended(b"x", b"mtime=3", b"atime=soon") + header(b"f", mtime=b"not a number"),
        header(b"d/", b"5", 1024) + file(5),
        header(b"d/", b"D", 5) + b"names".ljust(512, b"\0") + file(5),
    ],
)
def test_sizes_are_found_where_the_reader_finds_them(tar: bytes) -> None:
    assert len(expected(tar + bytes(1024), 5)) >= 1
    check_against_reader(tar + bytes(1024), 5)


def test_data_that_breaks_off_is_told_and_missing_padding_forgiven() -> None:
    for size in (5, 508, 512, 600, 3 << 20):
        tar = file(size)
        assert clamped(tar[: 512 + size]) == tar[: 512 + size]
        with pytest.raises(CorruptData, match="within a file"):
            clamped(tar[: 512 + size - 1])


def test_a_path_where_gnu_has_times_stays() -> None:
    """Go before 1.8 wrote such: GNU's magic, and a prefix as ustar has it."""
    for prefix in ("häuser/" * 9, "ünder/" * 9, "1/" * 30, "ordinary/path"):
        tar = header(b"f", magic=b"ustar  \0", prefix=prefix.encode()) + bytes(1024)
        assert clamped(tar, 5) == tar


def test_times_of_stars_own() -> None:
    block = bytearray(header(b"f", mtime=b"%011o\0" % LATE))
    block[476:500] = b"%011o %011o " % (LATE, EARLY)
    block[508:512] = b"tar\0"
    fix_checksums(block)
    result = clamped(bytes(block) + bytes(1024))
    assert result[476:500] == b"%011o\0%011o " % (EPOCH, EARLY)
    assert [entry.mtime_ns for entry, _ in listed(result)] == [EPOCH * 10**9]


def test_the_longest_extended_header_has_room() -> None:
    value = b"v" * ((1 << 20) - 600)
    tar = extended(b"x", b"comment=" + value, b"mtime=1700000000.5") + file(5)
    result = clamped(bytes(tar))
    assert listed(result) == expected(tar)
    assert value in result


def test_pieces_are_large_however_small_the_entries_and_the_reads_are() -> None:
    class Dribble(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return super().readinto(buffer[:1000])

    late = extended(b"x", b"mtime=1700000000.25", b"path=file")
    for entry in (file(5), late + file(5)):
        tar = entry * 3000 + bytes(1024)
        pieces: list[int] = []
        clamp(Dribble(tar), lambda piece, pieces=pieces: pieces.append(len(piece)), EPOCH)  # type: ignore
        assert sum(pieces) == len(tar)
        assert max(pieces) <= (1 << 20) + 512
        assert len(pieces) <= len(tar) // (1 << 19)


@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.lists(st.sampled_from(RECORDS), max_size=3),
            st.sampled_from([b"x", b"x", b"g", b"X"]),
            KINDS | st.just(b"S"),
            st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)]),
        ),
        max_size=4,
    ),
    cut=st.none() | st.integers(0, 8192),
)
def test_extended_headers_mean_what_they_mean_to_the_reader(
    parts: list[tuple[list[bytes], bytes, bytes, bytes]], cut: int | None
) -> None:
    tar = b""
    for bodies, extra, kind, magic in parts:
        if bodies:
            tar += extended(extra, *bodies)
        tar += header(b"f", kind, 5, magic=magic, linkname=b"link") + b"hello".ljust(512, b"\0")
    check_against_reader((tar + bytes(1024))[:cut], 1)
