"""The reader of plain tar headers: what it gives, where it stops, and that it stays within its buffers."""

from __future__ import annotations

import io
import tarfile
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.core import TarScanner
from blobtee.errors import InvalidArgument
from tests.unit.core.support import thorough

BLOCK = 512


def tar(*members: tarfile.TarInfo, format_: Literal[0, 1, 2] = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    for info in members:
        buffer.write(info.tobuf(format_, "utf-8", "surrogateescape"))
        buffer.write(bytes(-(-info.size // BLOCK) * BLOCK))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    info.mode, info.uid, info.gid, info.mtime, info.uname, info.gname = 0o4755, 1000, 1001, 7, "u", "g"
    return info


def test_fields_are_read_and_content_is_passed_over() -> None:
    data = tar(
        member("./a//b", size=600),
        member("d", tarfile.DIRTYPE),
        member("s", tarfile.SYMTYPE, link="../x//y"),
        member("h", tarfile.LNKTYPE, link="./a//b"),
        member("p", tarfile.FIFOTYPE),
    )
    found = TarScanner().scan(b"??" + data, 2)
    assert found.paths == ["a/b", "d", "s", "h", "p"]
    assert found.linknames == ["", "", "../x//y", "a/b", ""]
    assert list(zip(*found.columns, strict=True)) == [
        (0, 0o4755, 1000, 1001, 7 * 10**9, 600, 512, 0),
        (3, 0o4755, 1000, 1001, 7 * 10**9, 0, 2048, 0),
        (2, 0o4755, 1000, 1001, 7 * 10**9, 0, 2560, 0),
        (1, 0o4755, 1000, 1001, 7 * 10**9, 0, 3072, 0),
        (4, 0o4755, 1000, 1001, 7 * 10**9, 0, 3584, 0),
    ]
    assert (found.owners, found.next, found.needs_input) == ([("u", "g")], len(data), True)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_fractions_and_large_numbers_are_read(format_: Literal[1, 2]) -> None:
    info = member("d/" * 100 + "ü", tarfile.SYMTYPE, link="t" * 200)
    info.uid = 3_000_000_000
    info.mtime = 7 if format_ == tarfile.GNU_FORMAT else 7.25
    found = TarScanner().scan(tar(info, format_=format_), 0)
    assert (found.paths, found.linknames) == (["d/" * 100 + "ü"], ["t" * 200])
    assert found.columns[2] == [3_000_000_000]
    assert found.columns[4] == [7 * 10**9 if format_ == tarfile.GNU_FORMAT else 7_250_000_000]


def test_headers_that_are_not_whole_ask_for_more_and_content_may_be_missing() -> None:
    data = tar(member("a"), member("b", size=5000))
    for nbytes in range(0, 1024, 100):
        found = TarScanner().scan(data[:nbytes], 0)
        assert (len(found.paths), found.needs_input) == (nbytes // BLOCK, True)
    found = TarScanner().scan(data[:1024], 0)
    assert (found.paths, found.next) == (["a", "b"], len(data))


@pytest.mark.parametrize(
    "odd",
    [
        member("c", tarfile.CHRTYPE),
        member("..", tarfile.DIRTYPE),
        member("a/../b"),
        member("h", tarfile.LNKTYPE),
        member("s", tarfile.SYMTYPE),
        member("h", tarfile.LNKTYPE, link="../x"),
        member("./"),
        member("S", b"S"),
        member("g", b"g"),
    ],
    ids=lambda info: f"{info.type!r} {info.name}",
)
def test_what_is_not_plain_is_left_to_others(odd: tarfile.TarInfo) -> None:
    found = TarScanner().scan(tar(member("a"), odd, member("b")), 0)
    assert (found.paths, found.needs_input, found.next) == (["a"], False, BLOCK)


def test_a_wrong_checksum_and_the_end_are_not_plain() -> None:
    broken = bytearray(tar(member("a")))
    broken[0] ^= 1
    for data in (bytes(broken), bytes(1024)):
        found = TarScanner().scan(data, 0)
        assert (found.paths, found.needs_input, found.next) == ([], False, 0)


def test_owners_are_told_once_for_each_run() -> None:
    infos = [member(str(n)) for n in range(6)]
    for n, info in enumerate(infos):
        info.uname = "x" if n in (2, 3) else ""
    found = TarScanner().scan(tar(*infos), 0)
    assert found.owners == [("", "g"), ("x", "g"), ("", "g")]
    assert found.columns[7] == [0, 0, 1, 1, 2, 2]


def test_more_than_one_batch_goes_on_where_the_last_one_stopped() -> None:
    data = tar(*[member(str(n)) for n in range(1300)])
    scanner, start, paths = TarScanner(), 0, list[str]()
    while found := scanner.scan(data, start).paths:
        paths += found
        start += scanner.scan(data, start).next
    assert paths == [str(n) for n in range(1300)]


def test_a_start_outside_the_data_is_refused() -> None:
    for start in (-1, 3):
        with pytest.raises(InvalidArgument):
            TarScanner().scan(b"xx", start)


SEED = tar(member("a/b", size=3), member("d/", tarfile.DIRTYPE), member("n" * 150), format_=tarfile.PAX_FORMAT)


@thorough
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(SEED)))
def test_damage_is_left_to_others_or_does_not_matter(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(SEED)
    for position, value in damage:
        data[position] = value
    for start in range(0, len(data) - 511, BLOCK):
        block = data[start : start + BLOCK]
        if block[257:262] == b"ustar":
            data[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    found = TarScanner().scan(data[:cut], 0)
    assert len(found.paths) == len(found.linknames) == len(found.columns[0])
    assert not any(path.startswith("/") or ".." in path.split("/") or "\0" in path for path in found.paths)
