"""Damaged tars: nothing but our errors, no wrong sizes, and memory that stays small."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import BlobteeError
from blobtee.layers import Entry, entries
from tests.unit.layers.test_reader import header


def _seed(format_: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for name, kind, size in (
            ("d", tarfile.DIRTYPE, 0),
            ("d/" + "long" * 40, tarfile.REGTYPE, 700),
            ("d/l", tarfile.SYMTYPE, 0),
            ("d/h", tarfile.LNKTYPE, 0),
            ("d/n", tarfile.CHRTYPE, 0),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, size, "x" * 120 if kind != tarfile.REGTYPE else ""
            member.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
            archive.addfile(member, io.BytesIO(bytes(size)))
    return buffer.getvalue()


SEEDS = [_seed(tarfile.PAX_FORMAT), _seed(tarfile.GNU_FORMAT)]
INTERESTING = [0, 1, 0x2F, 0x30, 0x37, 0x39, 0x7F, 0x80, 0xFF, 0x53, 0x78, 0x67, 0x4C, 0x4B]


def fix_checksums(tar: bytearray) -> None:
    """Make each block that looks like a header a valid one: damage must get past the checksum to matter."""
    for start in range(0, len(tar) - 511, 512):
        block = tar[start : start + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + sum(block[156:]) + 256
            tar[start + 148 : start + 156] = b"%06o\0 " % total


def walk(tar: bytes) -> list[Entry]:
    found = []
    for entry in entries(io.BytesIO(tar)):
        found.append(entry)
        file = entry.data()
        total = 0
        while total < 1 << 20:
            data = file.read(65536)
            if not data:
                assert total == entry.size
                break
            total += len(data)
        assert ".." not in entry.path.split("/")
        assert not entry.path.startswith("/")
    return found


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    damage=st.lists(st.tuples(st.integers(0, 8191), st.sampled_from(INTERESTING) | st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 8192),
    checksums=st.booleans(),
)
def test_damaged_tars_end_in_our_errors(
    seed: bytes, damage: list[tuple[int, int]], cut: int | None, checksums: bool
) -> None:
    tar = bytearray(seed)
    for position, value in damage:
        tar[position % len(tar)] = value
    if checksums:
        fix_checksums(tar)
    with contextlib.suppress(BlobteeError):
        walk(bytes(tar[:cut]))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000))
def test_garbage_ends_in_our_errors(data: bytes) -> None:
    with contextlib.suppress(BlobteeError):
        walk(data)


def outcome(tar: bytes, *, in_python: bool) -> tuple[list[tuple[Entry, bytes | None]], str]:
    """All entries with their content, and how it ended."""
    found: list[tuple[Entry, bytes | None]] = []
    with pytest.MonkeyPatch.context() as patch:
        if in_python:
            patch.setattr("blobtee.layers.reader._Reader._scan", lambda _: None)
        try:
            for entry in entries(io.BytesIO(tar)):
                found.append((entry, None))
                found[-1] = (entry, entry.data().read(1 << 16))
        except BlobteeError as error:
            return found, f"{type(error).__name__}: {error}"
    return found, ""


@settings(max_examples=600, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    damage=st.lists(st.tuples(st.integers(0, 8191), st.sampled_from(INTERESTING) | st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 8192),
)
def test_headers_that_are_read_in_c_mean_what_they_mean_in_python(
    seed: bytes, damage: list[tuple[int, int]], cut: int | None
) -> None:
    tar = bytearray(seed)
    for position, value in damage:
        tar[position % len(tar)] = value
    fix_checksums(tar)
    assert outcome(bytes(tar[:cut]), in_python=False) == outcome(bytes(tar[:cut]), in_python=True)


RECORDS = (
    *(b"path=a//b", b"path=./x/", b"path=../x", b"path=", b"path=a\0b", b"linkpath=t", b"linkpath=/t/../u", b"size=3"),
    *(b"size=-1", b"size=1.5", b"size=99999999999999999999", b"uid=5", b"gid=007", b"uid=", b"uid=+1", b"mtime=1.5"),
    *(b"mtime=-1.5", b"mtime=1e3", b"mtime=1.", b"mtime=.5", b"mtime=1.1234567899", b"mtime=9000000001", b"mtime=1_0"),
    *(b"uname=\xff", b"gname=g", b"comment=c", b"atime=x", b"SCHILY.xattr.user.a=1", b"GNU.sparse.name=s", b"=", b"k"),
)
KINDS = st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"D", b"V", b"?"])


def record(body: bytes) -> bytes:
    nbytes = len(body) + 3
    return b"%d %s\n" % (nbytes + (nbytes >= 10 and len(str(nbytes + 1)) - 1), body)


@settings(max_examples=600, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.lists(st.sampled_from(RECORDS), max_size=3),
            st.sampled_from([b"x", b"x", b"x", b"g", b"L", b"K", b"X"]),
            KINDS,
            st.sampled_from([b"f", b"d/", b"a/./b", b"..", b"", b"/x", b"\xe4"]),
            st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)]),
            st.sampled_from([b"", b"pre/fix", b"pre/.."]),
        ),
        max_size=4,
    )
)
def test_extended_headers_that_are_read_in_c_mean_what_they_mean_in_python(
    parts: list[tuple[list[bytes], bytes, bytes, bytes, bytes, bytes]],
) -> None:
    tar = b""
    for bodies, extra, kind, name, magic, prefix in parts:
        block = b"".join(record(body) for body in bodies)
        if extra in b"LK":
            block = block[3:40]
        if block:
            tar += header(b"extra", extra, len(block), magic=magic) + block + bytes(-len(block) % 512)
        tar += header(name, kind, 5, magic=magic, linkname=b"./link//name", prefix=prefix) + b"hello".ljust(512, b"\0")
    tar += bytes(1024)
    assert outcome(tar, in_python=False) == outcome(tar, in_python=True)


def test_memory_does_not_follow_what_headers_claim() -> None:
    class Endless(io.RawIOBase):
        """One file of 2 TiB, all of it claimed, 64 MiB of it there."""

        left = 64 << 20

        def __init__(self) -> None:
            super().__init__()
            member = tarfile.TarInfo("big")
            member.size = 2 << 40
            self.head = member.tobuf(tarfile.GNU_FORMAT)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            with memoryview(buffer) as view:  # type: ignore[arg-type]
                if self.head:
                    n = min(len(view), len(self.head))
                    view[:n], self.head = self.head[:n], self.head[n:]
                    return n
                n = min(len(view), self.left)
                self.left -= n
                return n

    tracemalloc.start()
    try:
        list(entries(Endless()))
    except BlobteeError:
        pass
    else:
        raise AssertionError("a truncated file went unnoticed")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20
