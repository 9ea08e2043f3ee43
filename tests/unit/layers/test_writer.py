"""The tar writer, as our reader, Python, GNU tar and bsdtar read it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blobtee.errors import BlobteeError, Cancelled, Closed, InvalidArgument, SizeMismatch, TooLarge
from blobtee.layers import Entry, EntryType, TarWriter, entries
from blobtee.layers.blocks import PIECE
from blobtee.tasks import scope
from tests.unit.layers.trees import listed

BLANK = Entry("f", EntryType.FILE, 0, 0o644, 0, 0, 0, "", 0)


def entry(path: str = "f", type_: EntryType = EntryType.FILE, **changes: Any) -> Entry:
    return dataclasses.replace(BLANK, path=path, type=type_, **changes)


def tar_of(*given: tuple[Entry, bytes]) -> bytes:
    out = io.BytesIO()
    tar = TarWriter(out.write)
    for one, data in given:
        tar.add(one, io.BytesIO(data))
    tar.finish()
    return out.getvalue()


def round_trip(one: Entry, data: bytes = b"") -> Entry:
    (read,) = listed(tar_of((one, data)))
    return dataclasses.replace(read, offset=0)


def is_plain(one: Entry) -> bool:
    """Whether one header says it all."""
    return len(tar_of((one, bytes(one.size)))) == 512 + -(-one.size // 512) * 512 + 1024


PLAIN = [
    entry(),
    entry("a/b/c", mode=0o4755, uid=2097151, gid=2097151, mtime_ns=(2**33 - 1) * 10**9),
    entry("n" * 100),
    entry("p" * 155 + "/" + "n" * 100),
    entry("d/" * 100 + "n" * 50),
    entry("d/" * 75 + "d", EntryType.DIRECTORY),
    entry("d" * 99, EntryType.DIRECTORY),
    entry("p" * 155 + "/" + "n" * 99, EntryType.DIRECTORY),
    entry("", EntryType.DIRECTORY),
    entry("link", EntryType.SYMLINK, linkname="../" * 33 + "x"),
    entry("link", EntryType.HARDLINK, linkname="t" * 100),
    entry("dev", EntryType.CHARACTER_DEVICE, devmajor=4095, devminor=1048575),
    entry("dev", EntryType.BLOCK_DEVICE, devmajor=8),
    entry("fifo", EntryType.FIFO, mode=0),
    entry("größe", uname="u" * 32, gname="ü" * 16),
    entry("\udcff" * 100, uname="n"),
    entry("\udcff" * 155 + "/" + "\udcff" * 100, EntryType.SYMLINK, linkname="\udcff" * 100, uname="\udcff" * 32),
    entry("sized", size=1000),
]
EXTENDED = [
    entry("n" * 101),
    entry("p" * 156 + "/" + "n" * 100),
    entry("p" * 155 + "/" + "n" * 101),
    entry("d" * 100, EntryType.DIRECTORY),
    entry("x/" * 3000 + "x"),
    entry("\udcff" * 101),
    entry("ü" * 300, EntryType.SYMLINK, linkname="\udcfe" * 101),
    entry("link", EntryType.HARDLINK, linkname="t/" * 51),
    entry(uid=2097152),
    entry(gid=2**32 - 2),
    entry(mtime_ns=1),
    entry(mtime_ns=1_700_000_000_123_456_789),
    entry(mtime_ns=1_700_000_000_500_000_000),
    entry(mtime_ns=-1),
    entry(mtime_ns=-(10**9)),
    entry(mtime_ns=-1_500_000_000),
    entry(mtime_ns=2**33 * 10**9 + 1),
    entry(uname="u" * 33, gname="g" * 33),
    entry(xattrs={"security.capability": b"\x01\0\0\2\n=\xff", "user.empty": b"", "user.\udcff": b"x" * 600}),
    entry("dev", EntryType.BLOCK_DEVICE, devmajor=1, xattrs={"trusted.x": b"y"}, mtime_ns=5),
]


@pytest.mark.parametrize("one", [*PLAIN, *EXTENDED], ids=lambda one: f"{one.type.value} {one.path[:9]!a}")
def test_what_goes_in_comes_out(one: Entry) -> None:
    expected = one
    if one.type is EntryType.HARDLINK:
        expected = dataclasses.replace(one, linkname=one.linkname.rstrip("/"))
    assert round_trip(one, bytes(one.size)) == expected


@pytest.mark.parametrize("one", PLAIN, ids=lambda one: f"{one.type.value} {one.path[:9]!a}")
def test_extended_headers_are_not_there_without_need(one: Entry) -> None:
    assert is_plain(one)


@pytest.mark.parametrize("one", EXTENDED, ids=lambda one: f"{one.type.value} {one.path[:9]!a}")
def test_extended_headers_are_there_when_needed(one: Entry) -> None:
    assert not is_plain(one)


def test_files_from_8_gib_on_have_their_size_in_an_extended_header() -> None:
    class Enough(Exception):
        pass

    def first(piece: object) -> None:
        pieces.append(bytes(piece))  # type: ignore[call-overload]
        if len(pieces) == 2:
            raise Enough

    class Zeros(io.RawIOBase):
        def read(self, n: int = -1) -> bytes:
            return bytes(n)

    for size, records in ((2**33 - 1, b""), (2**33, b"19 size=8589934592\n")):
        pieces: list[bytes] = []
        with pytest.raises(Enough):
            TarWriter(first).add(entry(size=size), Zeros())  # type: ignore[arg-type]
        assert next(entries(io.BytesIO(b"".join(pieces)))).size == size
        assert records in pieces[0]
        assert len(pieces[0]) == (1536 if records else 512)


def test_the_content_of_each_file_is_kept_and_padded() -> None:
    data = [b"", b"a", bytes(512), os.urandom(513), os.urandom(3 * PIECE + 7)]
    tar = tar_of(*((entry(f"f{i}", size=len(one)), one) for i, one in enumerate(data)))
    assert len(tar) % 512 == 0
    for one, expected in zip(entries(io.BytesIO(tar)), data, strict=True):
        assert one.data().read() == expected
    with tarfile.open(fileobj=io.BytesIO(tar)) as python:
        assert [member.size for member in python] == [len(one) for one in data]


class Dribble(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._left = data

    def read(self, n: int = -1) -> bytes:
        piece, self._left = self._left[: min(n, 7)], self._left[min(n, 7) :]
        return piece


def test_data_may_come_in_small_pieces() -> None:
    out = io.BytesIO()
    tar = TarWriter(out.write)
    tar.add(entry(size=1000), Dribble(b"x" * 1000))  # type: ignore[arg-type]
    tar.finish()
    assert out.getvalue() == tar_of((entry(size=1000), b"x" * 1000))


def test_write_gets_large_pieces_in_order() -> None:
    sizes: list[int] = []
    tar = TarWriter(lambda piece: sizes.append(memoryview(piece).nbytes))
    for i in range(20_000):
        tar.add(entry(f"f{i}", size=100), io.BytesIO(bytes(100)))
    tar.finish()
    assert len(sizes) <= 20_000 * 1024 // PIECE + 1
    assert all(PIECE <= size < PIECE + 4096 for size in sizes[:-1])


def test_who_keeps_a_piece_does_no_harm() -> None:
    kept: list[Any] = []
    tar = TarWriter(lambda piece: kept.append(memoryview(piece)))
    for i in range(3000):
        tar.add(entry(f"f{i}", size=512), io.BytesIO(bytes(512)))
    tar.finish()
    assert len(listed(b"".join(kept))) == 3000


@pytest.mark.parametrize("data", [b"", b"x" * 99, b"x" * 101, b"x" * 3 * PIECE])
def test_data_of_another_length_is_refused_and_the_tar_is_broken_off(data: bytes) -> None:
    tar = TarWriter(lambda piece: None)
    with pytest.raises(SizeMismatch):
        tar.add(entry(size=100), io.BytesIO(data))
    with pytest.raises(Closed, match="broke off"):
        tar.add(entry())
    with pytest.raises(Closed, match="broke off"):
        tar.finish()


def test_an_error_of_write_passes_through_and_breaks_the_tar_off() -> None:
    def full(_: object) -> None:
        raise OSError(28, "no space")

    tar = TarWriter(full)
    with pytest.raises(OSError, match="no space"):
        tar.add(entry(size=PIECE), io.BytesIO(bytes(PIECE)))
    with pytest.raises(Closed):
        tar.finish()


def test_a_finished_tar_takes_no_more() -> None:
    tar = TarWriter(lambda piece: None)
    tar.finish()
    with pytest.raises(Closed, match="finished"):
        tar.add(entry())
    with pytest.raises(Closed, match="finished"):
        tar.finish()


@pytest.mark.parametrize(
    "one",
    [
        entry(""),
        entry("", EntryType.SYMLINK, linkname="x"),
        entry("/etc"),
        entry("a//b"),
        entry("a/"),
        entry("a/", EntryType.DIRECTORY),
        entry("../a"),
        entry("a/.."),
        entry("a\0b"),
        entry("\ud800"),
        entry(EntryType.SYMLINK.value, EntryType.SYMLINK),
        entry("l", EntryType.HARDLINK),
        entry("l", EntryType.SYMLINK, linkname="a\0"),
        entry("d", EntryType.BLOCK_DEVICE, devmajor=2**21),
        entry("d", EntryType.BLOCK_DEVICE, devminor=-1),
        entry(uid=-1),
        entry(gid=-1),
        entry(size=-1),
        entry(xattrs={"user.a=b": b""}),
        entry(xattrs={"": b""}),
        entry(xattrs={"user.\0": b""}),
    ],
    ids=lambda one: ascii(one)[:60],
)
def test_what_no_tar_can_say_is_refused_and_the_tar_goes_on(one: Entry) -> None:
    out = io.BytesIO()
    tar = TarWriter(out.write)
    with pytest.raises(InvalidArgument):
        tar.add(one, io.BytesIO())
    tar.add(entry("next"))
    tar.finish()
    assert [one.path for one in listed(out.getvalue())] == ["next"]


def test_a_file_without_data_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="without its data"):
        TarWriter(lambda piece: None).add(entry(size=1))


@pytest.mark.parametrize(
    "one",
    [
        entry(xattrs={f"user.{i}": bytes(65_536) for i in range(16)}),
        entry("x" * 32_769),
        entry("x" * 32_768, EntryType.DIRECTORY),
        entry("l", EntryType.SYMLINK, linkname="x" * 32_769),
    ],
    ids=lambda one: one.type.value,
)
def test_what_no_reader_takes_is_refused(one: Entry) -> None:
    with pytest.raises(TooLarge):
        TarWriter(lambda piece: None).add(one, io.BytesIO())


def test_writing_is_cancelled() -> None:
    with scope() as cancellation:
        cancellation.cancel()
        with pytest.raises(Cancelled):
            tar_of(*((entry(f"f{i}"), b"") for i in range(1000)))


TEXT = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=300)
BYTES = st.binary(min_size=1, max_size=300).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"n").replace(b"/", b"s")))


@given(
    path=st.lists(st.one_of(TEXT, BYTES).filter(lambda part: part not in (".", "..")), min_size=1, max_size=4),
    type_=st.sampled_from([EntryType.FILE, EntryType.DIRECTORY, EntryType.FIFO]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32),
    gid=st.integers(0, 2**32),
    mtime=st.integers(-(2**62), 2**62),
    xattrs=st.dictionaries(
        TEXT.filter(lambda key: "=" not in key).map(lambda key: "user." + key), st.binary(), max_size=3
    ),
    uname=st.one_of(st.just(""), TEXT),
)
@example(["x"], EntryType.FILE, 0, 0, 0, -(10**9) - 1, {}, "")
def test_any_entry_survives(
    path: list[str],
    type_: EntryType,
    mode: int,
    uid: int,
    gid: int,
    mtime: int,
    xattrs: dict[str, bytes],
    uname: str,
) -> None:
    one = entry("/".join(path), type_, mode=mode, uid=uid, gid=gid, mtime_ns=mtime, xattrs=xattrs, uname=uname)
    assert round_trip(one) == one


@given(st.binary(max_size=40), st.binary(max_size=200), st.integers(), st.integers(), st.integers())
def test_nonsense_ends_in_our_errors(path: bytes, linkname: bytes, number: int, size: int, mtime: int) -> None:
    one = entry(
        os.fsdecode(path), EntryType.HARDLINK, linkname=os.fsdecode(linkname), uid=number, size=size, mtime_ns=mtime
    )
    with contextlib.suppress(BlobteeError):
        round_trip(one)


def test_gnu_tar_and_bsdtar_list_what_we_write(tmp_path: Path) -> None:
    given = [one for one in (*PLAIN, *EXTENDED) if one.path and len(one.path) < 4000 and one.mtime_ns < 2**62]
    (tmp_path / "layer.tar").write_bytes(tar_of(*((one, bytes(one.size)) for one in given)))
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    names = [os.fsencode(one.path) + b"/" * (one.type is EntryType.DIRECTORY) for one in given]
    for command in (["tar", "--quoting-style=literal"], ["bsdtar"]):
        found = subprocess.run(
            [*command, "-tf", "layer.tar"], cwd=tmp_path, env=environment, check=True, capture_output=True
        )
        if command[0] == "tar":
            # The record that says that a long name is no UTF-8 is news to it; the name is not.
            assert all(b"hdrcharset" in line for line in found.stderr.splitlines())
            assert found.stdout.splitlines() == names
        else:
            assert found.stderr == b""
            assert len(found.stdout.splitlines()) == len(names)
