"""Damaged tars: nothing but our errors, no wrong sizes, and memory that stays small."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import BlobteeError
from blobtee.layers import Entry, entries


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
