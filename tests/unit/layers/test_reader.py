"""The tar reader against what Python, GNU tar and bsdtar write, and against tars made by hand."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import Closed, CorruptData, TooLarge, Unimplemented
from blobtee.layers import Entry, EntryType, entries
from blobtee.layers.reader import MAX_EXTENDED
from blobtee.layers.tarstream import WINDOW


def header(
    name: bytes = b"file",
    kind: bytes = b"0",
    size: bytes | int = 0,
    *,
    linkname: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    mtime: bytes = b"00000000001\0",
    uid: bytes = b"0000001\0",
    signed: bool = False,
    tail: bytes = b"",
) -> bytes:
    size_field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = (
        name.ljust(100, b"\0")
        + b"0000644\0"
        + uid
        + b"0000002\0"
        + size_field.ljust(12, b"\0")
        + mtime
        + b" " * 8
        + kind
        + linkname.ljust(100, b"\0")
        + magic.ljust(8, b"\0")
        + b"user".ljust(32, b"\0")
        + b"group".ljust(32, b"\0")
        + b"0000003\0"
        + b"0000004\0"
        + prefix.ljust(155, b"\0")
    ).ljust(512, b"\0")
    if tail:
        block = block[: 512 - len(tail)] + tail
    total = sum(struct.unpack("512b" if signed else "512B", block))
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    block = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        block += str(length).encode() + body
    return header(b"PaxHeader", kind, len(block)) + padded(block)


def long(kind: bytes, text: bytes) -> bytes:
    return header(b"././@LongLink", kind, len(text) + 1, magic=b"ustar  \0") + padded(text + b"\0")


def read(tar: bytes) -> list[Entry]:
    return list(entries(io.BytesIO(tar)))


def one(tar: bytes) -> Entry:
    (entry,) = read(tar)
    return entry


def contents(tar: bytes) -> dict[str, bytes]:
    result = {}
    for entry in entries(io.BytesIO(tar)):
        data = entry.data().read()
        assert data is not None
        result[entry.path] = data
    return result


END = bytes(1024)


class Dribble(io.RawIOBase):
    """Gives seven bytes at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        with memoryview(buffer) as view, view[:7] as part:  # type: ignore[arg-type]
            return self._file.readinto(part)


def test_header_fields_are_read() -> None:
    entry = one(header(b"a/b", size=5) + padded(b"hello") + END)
    assert (entry.path, entry.type, entry.size, entry.mode) == ("a/b", EntryType.FILE, 5, 0o644)
    assert (entry.uid, entry.gid, entry.uname, entry.gname) == (1, 2, "user", "group")
    assert (entry.mtime_ns, entry.offset) == (10**9, 512)


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        (b"1", EntryType.HARDLINK),
        (b"2", EntryType.SYMLINK),
        (b"3", EntryType.CHARACTER_DEVICE),
        (b"4", EntryType.BLOCK_DEVICE),
        (b"5", EntryType.DIRECTORY),
        (b"6", EntryType.FIFO),
        (b"7", EntryType.FILE),
        (b"\0", EntryType.FILE),
        (b"?", EntryType.FILE),
    ],
)
def test_each_type_is_known_and_devices_have_numbers(kind: bytes, type_: EntryType) -> None:
    entry = one(header(kind=kind, linkname=b"target"))
    assert entry.type is type_
    is_device = type_ in (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
    assert (entry.devmajor, entry.devminor) == ((3, 4) if is_device else (0, 0))
    assert entry.linkname == ("target" if type_ in (EntryType.HARDLINK, EntryType.SYMLINK) else "")


def test_a_size_on_what_has_no_data_is_ignored() -> None:
    tar = header(b"d", b"5", 1000) + header(b"l", b"1", 1000, linkname=b"f") + header(b"f", size=1) + padded(b"x")
    assert [(entry.path, entry.size) for entry in read(tar)] == [("d", 0), ("l", 0), ("f", 1)]


def test_v7_directories_are_names_with_a_slash() -> None:
    assert one(header(b"dir/", b"\0", magic=b"")).type is EntryType.DIRECTORY
    assert one(header(b"file", b"\0", magic=b"")).uname == ""


def test_a_ustar_prefix_goes_in_front() -> None:
    assert one(header(b"name", prefix=b"some/dir")).path == "some/dir/name"


def test_a_prefix_field_of_gnu_tar_is_no_prefix() -> None:
    assert one(header(b"name", prefix=b"00000000000", magic=b"ustar  \0")).path == "name"
    # But Go has written one there (golang.org/issue/12594), and reads it.
    assert one(header(b"name", prefix=b"some/dir", magic=b"ustar  \0")).path == "some/dir/name"
    assert one(header(b"name", prefix=b"\xe4", magic=b"ustar  \0")).path == "name"


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (b"./a", "a"),
        (b"././a//b/", "a/b"),
        (b"/etc/passwd", "etc/passwd"),
        (b"//x", "x"),
        (b"a/./b", "a/b"),
        (b"\xff\xfe", "\udcff\udcfe"),
        ("naïve".encode(), "naïve"),
    ],
)
def test_names_are_normalised(written: bytes, path: str) -> None:
    assert one(header(written, b"5")).path == path
    assert os.fsencode(path) in written or b"//" in written or b"./" in written


def test_the_root_is_an_empty_path() -> None:
    assert one(header(b"./", b"5")).path == ""
    with pytest.raises(CorruptData, match="without a name"):
        read(header(b"./", b"0"))


@pytest.mark.parametrize("name", [b"../x", b"a/../../x", b"a/..", b".."])
def test_names_that_lead_out_are_refused(name: bytes) -> None:
    with pytest.raises(CorruptData, match="leads out"):
        read(header(name))
    with pytest.raises(CorruptData, match="leads out"):
        read(header(b"x", b"1", linkname=name))
    assert one(header(b"x", b"2", linkname=name)).linkname == name.decode()


def test_pax_records_replace_fields() -> None:
    records = (
        (b"path", b"long/" + b"n" * 300),
        (b"size", b"3"),
        (b"mtime", b"1.123456789"),
        (b"uid", b"5000000000"),
        (b"gid", b"6"),
        (b"uname", "Jürgen".encode()),
        (b"SCHILY.xattr.security.capability", b"\x01\0\xff\n="),
    )
    entry = one(pax(*records) + header(size=0) + padded(b"abc") + END)
    assert entry.path == "long/" + "n" * 300
    assert (entry.size, entry.mtime_ns, entry.uid, entry.gid, entry.uname) == (3, 1123456789, 5 * 10**9, 6, "Jürgen")
    assert entry.xattrs == {"security.capability": b"\x01\0\xff\n="}


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"0", 0),
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"1.0000000019", 1_000_000_001),
        (b"-0.1234567891", -123_456_790),
        (b"12.", 12_000_000_000),
    ],
)
def test_times_keep_their_nanoseconds(text: bytes, nanoseconds: int) -> None:
    assert one(pax((b"mtime", text)) + header()).mtime_ns == nanoseconds


def test_global_records_say_nothing_as_containerd_has_it() -> None:
    tar = (
        pax((b"uname", b"all"), (b"path", b"everywhere"), kind=b"g")
        + header(b"a")
        + pax((b"uname", b"one"))
        + header(b"b")
        # Go takes it for an entry of its own, so what was said before it is gone too.
        + pax((b"path", b"hidden"))
        + long(b"L", b"hidden as well")
        + pax((b"comment", b"x"), kind=b"g")
        + header(b"c")
    )
    assert [(e.path, e.uname) for e in read(tar)] == [("a", "user"), ("b", "one"), ("c", "user")]


def test_many_global_records_cost_no_time() -> None:
    # A few kilobytes packed: each of these was once looked through for each header that follows.
    many = pax(*((b"SCHILY.xattr.%x" % n, b"1") for n in range(20_000)), kind=b"g")
    before = time.process_time()
    assert len(read(many + header(b"dev", b"3") * 3000)) == 3000
    assert time.process_time() - before < 5


def test_of_contradicting_names_the_one_that_go_takes_counts() -> None:
    record, sparse = pax((b"path", b"record"), (b"linkpath", b"to")), (b"GNU.sparse.name", b"sparse")
    for extra in (
        record + long(b"L", b"name") + long(b"K", b"link"),
        long(b"L", b"name") + long(b"K", b"link") + record,
    ):
        entry = one(extra + header(b"cut", b"2", linkname=b"cut"))
        assert (entry.path, entry.linkname) == ("name", "link")
    assert one(pax(sparse) + header(b"plain")).path == "plain"
    assert one(pax(sparse, (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"3")) + header(b"cut")).path == "sparse"
    both = pax(sparse, (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"3"), (b"GNU.sparse.realsize", b"9"))
    assert one(both + header(b"cut")).size == 3


def test_sparse_formats_that_nobody_knows_are_refused() -> None:
    for major, minor in ((b"2", b"0"), (b"1", b"1"), (b"0", b""), (b"", b"1")):
        with pytest.raises(Unimplemented, match="sparse"):
            read(pax((b"GNU.sparse.major", major), (b"GNU.sparse.minor", minor)) + header())


def test_gnu_long_names_and_links() -> None:
    tar = long(b"L", b"d/" * 100 + b"f") + long(b"K", b"t" * 200) + header(b"cut", b"2", linkname=b"cut")
    entry = one(tar)
    assert (entry.path, entry.linkname) == ("d/" * 100 + "f", "t" * 200)


def test_base_256_numbers() -> None:
    # In the header only: the stream is far shorter than the file it announces.
    big = header(size=b"\x80" + (2**40).to_bytes(11, "big"), uid=b"\x80" + (3 * 10**9).to_bytes(7, "big"))
    entry = next(entries(io.BytesIO(big)))
    assert (entry.size, entry.uid) == (2**40, 3 * 10**9)
    old = one(header(mtime=b"\xff" * 11 + b"\xfe"))
    assert old.mtime_ns == -2 * 10**9


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"9999", b"-1", b"12x"])
def test_impossible_sizes_are_refused(size: bytes) -> None:
    with pytest.raises(CorruptData, match="size"):
        read(header(size=size))


def test_checksums_may_be_of_signed_bytes_but_must_be_right() -> None:
    assert one(header(b"\xe4", signed=True)).path == "\udce4"
    broken = bytearray(header())
    broken[0] ^= 1
    with pytest.raises(CorruptData, match="checksum"):
        read(bytes(broken))


def test_a_missing_end_and_missing_padding_are_tolerated() -> None:
    assert contents(header(size=5) + b"hello") == {"file": b"hello"}
    assert read(b"") == []
    assert read(END) == []


def test_what_follows_the_end_is_not_read() -> None:
    stream = io.BytesIO(header() + END + b"rest")
    assert len(list(entries(stream))) == 1
    assert stream.tell() == 1024


@pytest.mark.parametrize(
    "tar",
    [
        header()[:100],
        header(size=600) + bytes(512),
        pax((b"path", b"x"))[:700],
        pax((b"path", b"x")),
        long(b"L", b"name"),
    ],
    ids=["header", "data", "within extended", "after extended", "after long name"],
)
def test_a_tar_that_breaks_off_is_corrupt(tar: bytes) -> None:
    with pytest.raises(CorruptData, match="ends"):
        read(tar)


@pytest.mark.parametrize(
    "block",
    [b"x", b"5 a=b\n", b"99 a=b\n", b"7 a=bc", b"6 ab=\n\n", b"5 =b\n", b"4 a\n", b"\xb2 a=b\n", b"0 a=b\n"],
)
def test_broken_extended_headers_are_refused(block: bytes) -> None:
    with pytest.raises(CorruptData):
        read(header(b"x", b"x", len(block)) + padded(block) + header())


def test_extended_headers_are_bounded() -> None:
    for kind in (b"x", b"g", b"L", b"K"):
        with pytest.raises(TooLarge):
            read(header(b"x", kind, MAX_EXTENDED + 1) + header())
    half = b"v" * (MAX_EXTENDED // 2)
    with pytest.raises(TooLarge, match="one entry"):
        read(b"".join(pax((b"comment", half)) for _ in range(12)) + header())


def test_data_is_valid_until_the_next_entry() -> None:
    tar = header(b"a", size=4) + padded(b"aaaa") + header(b"b", size=4) + padded(b"bbbb") + END
    reader = entries(io.BytesIO(tar))
    first = next(reader)
    file = first.data()
    assert file.read(2) == b"aa"
    second = next(reader)
    with pytest.raises(Closed):
        file.read(1)
    with pytest.raises(Closed):
        first.data()
    assert second.data().read() == b"bbbb"


def test_a_detached_entry_is_the_same_without_its_stream() -> None:
    tar = (
        header(b"a", size=4) + padded(b"aaaa") + pax((b"SCHILY.xattr.user.a", b"b")) + header(b"b") + header(b"c", b"3")
    )
    for entry in entries(io.BytesIO(tar)):
        assert entry.detached() == entry
        with pytest.raises(Closed):
            entry.detached().data()
        with pytest.raises(AttributeError):
            entry.size = 5  # type: ignore[misc]


def test_short_reads_are_fine() -> None:
    tar = pax((b"path", b"p")) + header(size=700) + padded(b"z" * 700) + END
    (entry,) = [(e.path, e.data().read()) for e in entries(Dribble(tar))]
    assert entry == ("p", b"z" * 700)


def test_a_file_that_ends_within_its_data_is_corrupt() -> None:
    entry = next(entries(io.BytesIO(header(size=600) + bytes(100))))
    with pytest.raises(CorruptData, match="within a file"):
        entry.data().read()


def test_multi_volume_parts_say_that_they_are_not_read() -> None:
    with pytest.raises(Unimplemented, match="multi-volume"):
        read(header(kind=b"M"))


def test_the_archives_label_is_passed_over() -> None:
    assert [entry.path for entry in read(header(b"label", b"V") + header(b"f"))] == ["f"]


def test_tars_far_longer_than_what_is_held_at_once_are_read_whole() -> None:
    sizes = [0, 1, 511, 512, WINDOW - 512, WINDOW - 511, 3 * WINDOW, 100, WINDOW, 7, *range(0, 60_000, 97)]
    tar = b"".join(header(b"%d" % n, size=size) + padded(b"%d" % (n % 10) * size) for n, size in enumerate(sizes)) + END
    for step in (1, 2, 3):
        read_sizes = {}
        for n, entry in enumerate(entries(io.BytesIO(tar))):
            assert (entry.path, entry.size) == (str(n), sizes[n])
            if n % step == 0:
                read_sizes[n] = entry.data().read()
        assert len(read_sizes) == len(range(0, len(sizes), step))
        assert all(data == b"%d" % (n % 10) * sizes[n] for n, data in read_sizes.items())


def test_a_stream_that_fails_gives_what_came_before() -> None:
    class Failing(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            data = super().read(min(n or 0, 700))
            if not data:
                raise OSError("the line is cut")
            return data

    reader = entries(Failing(header(b"a") + header(b"b", size=3) + padded(b"abc") + header(b"c", size=9)))
    assert [next(reader).path for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(CorruptData, match="the line is cut"):
        next(reader)


# ---- files with holes


def old_sparse(segments: list[tuple[int, int]], real: int, data: bytes) -> bytes:
    def fields(part: list[tuple[int, int]], slots: int) -> bytes:
        return b"".join(b"%011o\0%011o\0" % pair for pair in part).ljust(24 * slots, b"\0")

    first, rest = segments[:4], segments[4:]
    tail = fields(first, 4) + (b"\1" if rest else b"\0") + b"%011o\0" % real
    tar = header(kind=b"S", size=len(data), magic=b"ustar  \0", tail=tail.ljust(512 - 386, b"\0"))
    while rest:
        part, rest = rest[:21], rest[21:]
        tar += (fields(part, 21) + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return tar + padded(data) + END


def test_old_gnu_sparse_files_are_expanded() -> None:
    segments = [(n * 100, 10) for n in range(30)]
    data = b"".join(b"%010d" % n for n in range(30))
    expanded = bytearray(3000)
    for n, (offset, length) in enumerate(segments):
        expanded[offset : offset + length] = b"%010d" % n
    entry = one(old_sparse(segments, 3000, data))
    assert (entry.size, len(entry.sparse or ())) == (3000, 30)
    assert contents(old_sparse(segments, 3000, data)) == {"file": bytes(expanded)}


def test_pax_sparse_files_of_all_versions_are_expanded() -> None:
    common = (b"GNU.sparse.name", b"real")
    v00 = pax(
        (b"GNU.sparse.size", b"20"),
        (b"GNU.sparse.numblocks", b"2"),
        (b"GNU.sparse.offset", b"5"),
        (b"GNU.sparse.numbytes", b"3"),
        (b"GNU.sparse.offset", b"10"),
        (b"GNU.sparse.numbytes", b"2"),
    )
    v01 = pax(common, (b"GNU.sparse.size", b"20"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"5,3,10,2"))
    v10 = pax(common, (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"20"))
    content = bytes(5) + b"abc" + bytes(2) + b"de" + bytes(8)
    body = header(size=5) + padded(b"abcde") + END
    assert contents(v00 + body) == {"file": content}
    assert contents(v01 + body) == {"real": content}
    mapped = padded(b"2\n5\n3\n10\n2\n") + b"abcde"
    assert contents(v10 + header(size=len(mapped)) + padded(mapped) + END) == {"real": content}


@pytest.mark.parametrize(
    "numbers", [b"10,2,5,3", b"5,3,10", b"5,3,19,2", b"5,-3,10,8", b"0,4", b"5,x", b"5,3,10,2,11,1"]
)
def test_sparse_maps_that_make_no_sense_are_refused(numbers: bytes) -> None:
    with pytest.raises(CorruptData):
        read(pax((b"GNU.sparse.size", b"20"), (b"GNU.sparse.map", numbers)) + header(size=5) + padded(b"abcde"))


# ---- other writers


def make_tree(root: Path) -> None:
    (root / "dir" / ("deep" * 30) / ("deeper" * 20)).mkdir(parents=True)
    (root / "dir" / ("deep" * 30) / ("deeper" * 20) / ("n" * 120)).write_bytes(b"far down")
    (root / "file").write_bytes(b"content" * 1000)
    (root / "empty").write_bytes(b"")
    (root / "link").symlink_to("dir/" + "t" * 150)
    os.link(root / "file", root / "hard")
    (root / "ünï").write_bytes(b"x")
    os.utime(root / "file", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    os.mkfifo(root / "fifo")


def described(path: Path) -> dict[str, tuple[EntryType, int]]:
    with path.open("rb") as file:
        return {entry.path: (entry.type, entry.size) for entry in entries(file)}


def as_tarfile_says(path: Path) -> dict[str, tuple[EntryType, int]]:
    kinds = {
        tarfile.DIRTYPE: EntryType.DIRECTORY,
        tarfile.SYMTYPE: EntryType.SYMLINK,
        tarfile.LNKTYPE: EntryType.HARDLINK,
        tarfile.FIFOTYPE: EntryType.FIFO,
    }
    with tarfile.open(path) as archive:
        return {
            os.path.normpath(member.name).removeprefix("."): (
                kinds.get(member.type, EntryType.FILE),
                member.size if member.isreg() else 0,
            )
            for member in archive
        }


@pytest.mark.parametrize(
    "command",
    [
        ["tar", "--format=gnu", "-cf"],
        ["tar", "--format=posix", "-cf"],
        ["tar", "--format=oldgnu", "-cf"],
        ["bsdtar", "--format=pax", "-cf"],
        ["bsdtar", "--format=gnutar", "-cf"],
    ],
    ids=lambda command: f"{command[0]} {command[1]}",
)
def test_other_writers_tars_are_read_as_python_reads_them(command: list[str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make_tree(root)
    made = tmp_path / "made.tar"
    subprocess.run([*command, str(made), "-C", str(root), "."], check=True)
    assert described(made) == as_tarfile_says(made)
    with made.open("rb") as file:
        data = {entry.path: entry.data().read() for entry in entries(file) if entry.size}
    assert data.get("file", data.get("hard")) == b"content" * 1000
    if "posix" in command[1] or "pax" in command[1]:
        with made.open("rb") as file:
            times = {entry.path: entry.mtime_ns for entry in entries(file)}
        assert 1_700_000_000_123_456_789 in times.values()


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
def test_gnu_tars_sparse_files_come_out_whole(version: str, tmp_path: Path) -> None:
    holes = tmp_path / "holes"
    with holes.open("wb") as file:
        for n in range(40):
            file.seek(n * 262_144)
            file.write(b"%d" % n * 100)
        file.truncate(12_000_000)
    how = ["--format=gnu"] if version == "old" else ["--format=posix", f"--sparse-version={version}"]
    made = tmp_path / "made.tar"
    subprocess.run(["tar", "--sparse", *how, "-cf", str(made), "-C", str(tmp_path), "holes"], check=True)
    with made.open("rb") as file:
        (entry, data) = next((entry, entry.data().read()) for entry in entries(file))
    assert entry.path == "holes"
    assert data == holes.read_bytes()
    assert made.stat().st_size < 2_000_000


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(names.filter(lambda name: name not in (".", "..")), st.binary(max_size=1500), max_size=6),
    format_=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    mtime=st.floats(-1e9, 1e10, allow_nan=False),
)
def test_what_python_writes_is_read_back(files: dict[str, bytes], format_: int, mtime: float) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_, encoding="utf-8") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = mtime if format_ == tarfile.PAX_FORMAT else int(mtime)
            archive.addfile(member, io.BytesIO(data))
    assert contents(buffer.getvalue()) == files
