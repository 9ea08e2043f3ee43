"""Lists of entries: everything that a tar can say comes back, and nothing that it cannot."""

from __future__ import annotations

import io
import struct
import tarfile
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import BlobteeError, CorruptData, InvalidArgument, TooLarge
from blobtee.layers import Entry, EntryType, Segment, entries
from blobtee.seeking import listing
from tests.fuzz.test_tar import SEEDS

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def listed(draw: st.DrawFn) -> list[Entry]:
    found = []
    end = 0
    for _ in range(draw(st.integers(0, 8))):
        type_ = draw(st.sampled_from(EntryType))
        size = draw(st.integers(0, 10_000)) if type_ is EntryType.FILE else 0
        offset = end + 512 * draw(st.integers(0, 3))
        segments = None
        stored = size
        if size > 10 and draw(st.booleans()):
            segments = (Segment(1, 3), Segment(5, 2))
            stored = 5
        device = type_ in (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
        link = type_ in (EntryType.SYMLINK, EntryType.HARDLINK)
        found.append(
            Entry(
                "/".join(draw(st.lists(NAMES, min_size=1, max_size=4))),
                type_,
                size,
                draw(st.integers(0, 0o7777)),
                draw(NUMBERS),
                draw(NUMBERS),
                draw(NUMBERS),
                draw(NAMES) if link else "",
                offset,
                draw(NAMES | st.just("")),
                draw(NAMES | st.just("")),
                draw(st.integers(0, 99)) if device else 0,
                draw(st.integers(0, 99)) if device else 0,
                draw(st.dictionaries(NAMES, st.binary(max_size=9), max_size=2)),
                segments,
            )
        )
        end = offset + stored
    return found


@settings(max_examples=300)
@given(listed())
def test_what_is_listed_comes_back(found: list[Entry]) -> None:
    assert listing.load(listing.dump(found), 1 << 40) == found


def test_real_tars_come_back_with_all_that_they_say() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("a" * 300, b"x" * 5000), ("caf\udce9", b""), ("b/c", b"y")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1_700_000_000.25
            member.pax_headers = {"SCHILY.xattr.user.x": "value"}
            archive.addfile(member, io.BytesIO(data))
    buffer.seek(0)
    found = [entry.detached() for entry in entries(buffer)]
    assert len(found) == 3
    data = listing.dump(found)
    assert listing.load(data, len(buffer.getvalue())) == found
    with pytest.raises(CorruptData, match="behind the tar"):
        listing.load(data, found[-1].offset)


def a_file(path: str = "f", **fields: object) -> Entry:
    return replace(Entry(path, EntryType.FILE, 5, 0o644, 0, 0, 0, "", 512), **fields)  # type: ignore[arg-type]


def test_what_no_list_can_hold_is_said() -> None:
    for entry in (a_file(uid=1 << 63), a_file(mtime_ns=-(1 << 63) - 1), a_file(uname="a\0b")):
        with pytest.raises(InvalidArgument):
            listing.dump([entry])


@pytest.mark.parametrize(
    "entry",
    [
        a_file("../x"),
        a_file("/x"),
        a_file(""),
        a_file("x/"),
        a_file(mode=0o10000),
        a_file(linkname="target"),
        a_file(size=-1),
        a_file(devmajor=1),
        a_file(sparse=(Segment(4, 2),)),
        a_file(sparse=(Segment(-1, 2),)),
        a_file(type=EntryType.DIRECTORY),
        a_file(type=EntryType.HARDLINK, size=0, linkname="../x"),
        a_file(type=EntryType.HARDLINK, size=0),
        a_file(type=EntryType.SYMLINK, size=0),
        a_file(type=EntryType.SYMLINK, size=0, linkname="x" * 40_000),
        a_file(offset=-1),
    ],
)
def test_what_no_tar_can_say_is_refused(entry: Entry) -> None:
    with pytest.raises(CorruptData):
        listing.load(listing.dump([entry]), 1 << 30)


def test_files_that_lie_on_each_other_are_refused() -> None:
    with pytest.raises(CorruptData):
        listing.load(listing.dump([a_file(offset=512), a_file("g", offset=514)]), 1 << 30)


def with_more(text: bytes, entries: int = 3) -> bytes:
    """A list of files whose last section is `text`."""
    data = listing.dump([a_file(str(number), offset=512 * number) for number in range(entries)])
    assert data.endswith(struct.pack("<Q", 2) + b"[]")
    return data[:-10] + struct.pack("<Q", len(text)) + text


def test_what_more_there_is_to_say_is_in_the_order_of_the_entries_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    one = b'{"xattrs":[["aw==","dg=="]]}'
    found = listing.load(with_more(b"[[0,%s], [2,%s]]" % (one, one)), 1 << 20)
    assert [len(entry.xattrs) for entry in found] == [1, 0, 1]
    for text in (b"[[2,{}],[0,{}]]", b"[[0,{}],[0,{}]]", b"[[3,{}]]", b"[[-1,{}]]", b"[[0]]", b"[5]", b"[[true,{}]]"):
        with pytest.raises(CorruptData):
            listing.load(with_more(text), 1 << 20)
    monkeypatch.setattr(listing, "MAX_EXTRAS", 1)
    with pytest.raises(TooLarge):
        listing.load(with_more(b"[[0,%s],[2,%s]]" % (one, one)), 1 << 20)


def test_a_list_is_not_more_in_memory_than_it_may_be() -> None:
    # Each of these empty arrays once took thirty times its two bytes.
    with pytest.raises(TooLarge):
        listing.load(with_more(b'[[0,{"x":[' + b"[]," * (2 << 20) + b"1]}]]"), 1 << 20)
    for texts, count in ((b"\0" * 5, 0), (b"\0" * 2, 3), (b"a\0b\0c", 3), (b"a\0b\0c\0d", 3)):
        sections = [bytes(count), *[bytes(8 * count)] * 6, texts, *[b"\0" * count] * 3, b"[]"]
        data = struct.pack("<4sI", b"BTL1", count) + b"".join(struct.pack("<Q", len(s)) + s for s in sections)
        with pytest.raises(CorruptData, match="different lengths"):
            listing.load(data, 1 << 20)


SEED = listing.dump(
    [a_file(), a_file("g", offset=1024, xattrs={"k": b"v"}), Entry("s", EntryType.SYMLINK, 0, 0, 0, 0, 0, "x", 2048)]
)


@settings(max_examples=1500)
@given(
    st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=6), st.integers(0, 2 * len(SEED))
)
def test_damaged_lists_end_in_our_errors(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(SEED)
    for place, value in damage:
        data[place] = value
    try:
        for entry in listing.load(bytes(data[:cut]), 1 << 20):
            assert 0 <= entry.offset <= 1 << 20
    except BlobteeError:
        pass


@pytest.mark.parametrize("tar", SEEDS, ids=range(len(SEEDS)))
def test_tars_of_all_makers_come_back(tar: bytes) -> None:
    found = [entry.detached() for entry in entries(io.BytesIO(tar))]
    assert listing.load(listing.dump(found), len(tar)) == found
