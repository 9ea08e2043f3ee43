from __future__ import annotations

import base64
import errno
import gzip
import io
import itertools
import random
import subprocess
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from blobtee import tasks
from blobtee.compression import is_estargz
from blobtee.conversion import spool, tail
from blobtee.conversion.estargz import CHUNK_NBYTES, EstargzSummary, EstargzWriter, payload_nbytes
from blobtee.errors import Cancelled, Closed, CorruptData, InvalidArgument, StorageFull, TooLarge
from tests.unit.conversion.tables import Blob, sha256

CHUNK = 64 << 10
NOISE = random.Random(4).randbytes(3 * CHUNK + 1000)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, n: int, /) -> bytes:
        return self.data[offset : offset + n]


def member(
    name: str, data: bytes = b"", type_: bytes = tarfile.REGTYPE, **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = type_
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_of(*found: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for info, data in found:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sparse(name: str, size: int, *segments: tuple[int, bytes]) -> tuple[tarfile.TarInfo, bytes]:
    """A file with holes, in the PAX format 0.1; GNU tar ends the map of one that ends in a hole with nothing there."""
    map_ = ",".join(f"{offset},{len(data)}" for offset, data in (*segments, (size, b"")))
    headers = {"GNU.sparse.map": map_, "GNU.sparse.size": str(size), "GNU.sparse.name": name}
    return member("GNUSparseFile.0/x", b"".join(data for _, data in segments), pax_headers=headers)


TREE = (
    member("./", type_=tarfile.DIRTYPE, mode=0o755),
    member("./etc", type_=tarfile.DIRTYPE, mode=0o1777, uid=5, gid=6, uname="five", gname="six"),
    member("./etc/empty", uid=5, gid=6, uname="five", gname="six"),
    member("./etc/small", b"small\n", mode=0o4755, mtime=1_700_000_000, uid=5, uname="also five"),
    member("./link", type_=tarfile.SYMTYPE, linkname="../small"),
    member("./hard", type_=tarfile.LNKTYPE, linkname="./etc/small"),
    member("./null", type_=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("./disk", type_=tarfile.BLKTYPE, devmajor=8, devminor=1),
    member("./pipe", type_=tarfile.FIFOTYPE),
    member("./large", NOISE),
    member("./even", NOISE[: 2 * CHUNK]),
    member("./" + "long" * 60, b"behind a long name"),
    member("./größe", b"not ASCII"),
    member(
        "./with attributes",
        b"x",
        pax_headers={"SCHILY.xattr.user.b": "two", "SCHILY.xattr.user.a": "one", "mtime": "1600000000.75"},
    ),
)


def packed(
    tar: bytes, *, piece: int = 100_000, level: int = 6, chunk: int = CHUNK, threads: int | None = 2
) -> tuple[Blob, EstargzSummary]:
    out = bytearray()
    with EstargzWriter(out.extend, level=level, chunk_size=chunk, threads=threads) as writer:
        for start in range(0, len(tar), piece):
            assert writer.write(tar[start : start + piece]) == len(tar[start : start + piece])
        summary = writer.finish()
    return Blob(bytes(out)), summary


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("blobtee")]


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_the_tar_comes_out_as_it_went_in_when_the_table_is_cut_off(format_: int) -> None:
    tar = tar_of(*TREE, format_=format_)
    blob, summary = packed(tar)
    assert blob.tar == tar
    assert payload_nbytes(Reader(blob.data)) == blob.toc_offset
    assert is_estargz(Reader(blob.data))
    assert (summary.content_digest, summary.content_size) == (sha256(tar), len(tar))


def test_the_summary_is_of_the_whole_blob_and_of_its_table() -> None:
    blob, summary = packed(tar_of(*TREE))
    assert summary.toc_digest == sha256(blob.json)
    assert (summary.diff_id, summary.size) == (sha256(blob.unpacked), len(blob.unpacked))
    assert gzip.decompress(blob.data) == blob.unpacked
    assert subprocess.run(["gzip", "-t"], input=blob.data, check=False).returncode == 0


def test_other_readers_see_the_layer_and_the_table_behind_its_end() -> None:
    blob, _ = packed(tar_of(*TREE))
    with tarfile.open(fileobj=io.BytesIO(blob.unpacked)) as archive:
        assert len(archive.getnames()) == len(TREE)
    with tarfile.open(fileobj=io.BytesIO(blob.unpacked), ignore_zeros=True) as archive:
        assert archive.getnames()[-1] == "stargz.index.json"


def test_every_file_can_be_read_from_where_the_table_says() -> None:
    blob, _ = packed(tar_of(*TREE))
    for info, data in TREE:
        if info.isreg() and data:
            assert blob.content(info.name.removeprefix("./")) == data
    assert [len(chunk) for chunk in blob.chunks("large")] == [CHUNK] * 3 + [1000]
    assert [len(chunk) for chunk in blob.chunks("even")] == [CHUNK] * 2
    offsets = [entry["offset"] for entry in blob.entries if "offset" in entry]
    assert sorted(set(offsets)) == offsets, "offsets are to rise, each to be there once"


def test_the_table_says_what_the_headers_say() -> None:
    blob, _ = packed(tar_of(*TREE))
    assert [entry["name"] for entry in blob.entries[:3]] == ["./", "etc/", "etc/empty"]
    assert blob.entries[0] == {"name": "./", "type": "dir", "mode": 0o755}
    assert blob.named("etc/") == {
        "name": "etc/", "type": "dir", "mode": 0o1777, "uid": 5, "gid": 6, "userName": "five", "groupName": "six"
    }  # fmt: skip
    assert blob.named("etc/empty") == {
        "name": "etc/empty", "type": "reg", "mode": 0o644, "uid": 5, "gid": 6, "digest": sha256(b"")
    }  # fmt: skip
    small = blob.named("etc/small")
    assert list(small) == [
        "name",
        "type",
        "size",
        "modtime",
        "mode",
        "uid",
        "userName",
        "offset",
        "digest",
        "chunkDigest",
    ]
    assert (small["modtime"], small["mode"], small["userName"]) == ("2023-11-14T22:13:20Z", 0o4755, "also five")
    assert blob.named("link") == {"name": "link", "type": "symlink", "linkName": "../small", "mode": 0o644}
    assert blob.named("hard") == {"name": "hard", "type": "hardlink", "linkName": "etc/small", "mode": 0o644}
    assert (blob.named("null")["devMajor"], blob.named("null")["devMinor"]) == (1, 3)
    assert blob.named("disk")["type"] == "block"
    assert blob.named("pipe")["type"] == "fifo"
    assert blob.named("größe")["size"] == len(b"not ASCII")
    told = blob.named("with attributes")
    assert told["xattrs"] == {
        key: base64.b64encode(value).decode() for key, value in (("user.a", b"one"), ("user.b", b"two"))
    }
    assert list(told["xattrs"]) == ["user.a", "user.b"]
    assert told["modtime"] == "2020-09-13T12:26:41Z", "to the nearest second"
    assert blob.named("large")["chunkSize"] == CHUNK
    assert "chunkSize" not in blob.entries[blob.entries.index(blob.named("large")) + 3]


def test_times_that_json_readers_do_not_take_are_left_out() -> None:
    times = {"year 12000": "316516377600", "before the year 1": "-99999999999", "epoch": "0.5"}
    blob, _ = packed(tar_of(*(member(name, pax_headers={"mtime": mtime}) for name, mtime in times.items())))
    assert not [entry for entry in blob.entries if "modtime" in entry]


def test_a_name_that_is_not_utf8_stays_in_the_tar_and_does_not_break_the_table() -> None:
    tar = tar_of(member("a\udcffb", b"x", uname="\udcfe"), format_=tarfile.GNU_FORMAT)
    blob, _ = packed(tar)
    assert blob.tar == tar
    assert blob.entries[0]["name"] == "a\ufffdb"


def test_the_same_tar_gives_the_same_bytes_for_any_threads_and_pieces() -> None:
    tar = tar_of(*TREE)
    first = packed(tar)[0].data
    for threads, piece in itertools.product((1, 3, 7), (777, 1 << 20)):
        assert packed(tar, threads=threads, piece=piece)[0].data == first
    out = bytearray()
    with EstargzWriter(out.extend, chunk_size=CHUNK) as writer:
        buffer = bytearray(1000)
        for start in range(0, len(tar), 1000):
            n = len(tar[start : start + 1000])
            buffer[:n] = tar[start : start + 1000]
            writer.write(memoryview(buffer)[:n])
            buffer[:] = bytes(1000)
        writer.finish()
    assert out == first


def test_levels_change_the_size_and_nothing_else() -> None:
    tar = tar_of(member("text", b"a line of text that repeats\n" * 20_000))
    sizes = []
    for level in (0, 1, 9):
        blob, summary = packed(tar, level=level)
        assert blob.tar == tar
        sizes.append(len(blob.data))
    assert sizes == sorted(sizes, reverse=True)
    assert summary.content_digest == sha256(tar)


def test_many_small_entries_share_no_member_and_none_is_lost() -> None:
    found = [member(f"d{n // 50}/f{n}", str(n).encode() * (n % 40)) for n in range(4000)]
    found += [member(f"link{n}", type_=tarfile.SYMTYPE, linkname="x") for n in range(5000)]
    tar = tar_of(*found)
    blob, _ = packed(tar)
    assert blob.tar == tar
    assert [entry["name"] for entry in blob.entries] == [info.name for info, _ in found]
    for info, data in random.Random(1).sample(found[:4000], 50):
        if data:
            assert blob.content(info.name) == data


@pytest.mark.parametrize("content", [b"", bytes(1024), bytes(10240)], ids=["nothing", "an end", "a record"])
def test_a_layer_without_entries(content: bytes) -> None:
    blob, summary = packed(content)
    assert blob.entries == []
    assert blob.tar == content
    assert gzip.decompress(blob.data[: blob.toc_offset]) == content
    assert summary.diff_id == sha256(blob.unpacked)


def test_what_comes_behind_the_end_of_the_archive_is_kept() -> None:
    tar = tar_of(*TREE) + b"not a tar, and of no round length" * 100_000
    blob, _ = packed(tar)
    assert blob.tar == tar


def test_a_tar_without_an_end_mark_is_continued_by_the_table() -> None:
    tar = tar_of(*TREE)
    (info, data) = TREE[-1]
    end = tar.rindex(data.ljust(512, b"\0")) + 512
    blob, _ = packed(tar[:end])
    assert blob.tar == tar[:end]
    with tarfile.open(fileobj=io.BytesIO(blob.unpacked)) as archive:
        assert archive.getnames()[-2:] == [info.name, "stargz.index.json"]


@pytest.mark.parametrize("rest", [b"", bytes(512), bytes(700)], ids=["no padding", "half a mark", "odd zeros"])
def test_a_tar_that_no_entry_can_follow_is_refused(rest: bytes) -> None:
    header = tarfile.TarInfo("file")
    header.size = 3
    tar = header.tobuf() + b"abc" + (bytes(509) + rest if rest else b"")
    with pytest.raises(CorruptData, match="no entry can follow"):
        packed(tar)


@pytest.mark.parametrize("name", ["stargz.index.json", "./stargz.index.json", "/stargz.index.json"])
def test_a_layer_with_a_table_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"stargz\.index\.json already"):
        packed(tar_of(*TREE, member(name, b"{}")))
    assert our_threads() == []


def damaged() -> dict[str, tuple[bytes, type[Exception]]]:
    tar = tar_of(*TREE)
    wrong = bytearray(tar)
    wrong[1024 + 150] ^= 1
    return {
        "cut in a header": (tar[: 512 + 100], CorruptData),
        "cut in a file": (tar[: tar.index(NOISE[:100]) + CHUNK + 5], CorruptData),
        "a wrong checksum": (bytes(wrong), CorruptData),
        "garbage": (b"garbage" * 1000, CorruptData),
        "a path that leads out": (tar_of(member("a/../../b")), CorruptData),
        "long headers": (tar_of(member("x", pax_headers={"comment": "y" * (2 << 20)})), TooLarge),
    }


@pytest.mark.parametrize("kind", list(damaged()))
def test_a_damaged_tar_ends_in_our_error_and_leaves_no_thread(kind: str) -> None:
    tar, expected = damaged()[kind]
    with pytest.raises(expected):
        packed(tar)
    assert our_threads() == []


def test_a_file_with_holes_is_read_from_behind_the_table() -> None:
    holes = sparse("disk", 5 * CHUNK + 10, (CHUNK - 3, b"across"), (4 * CHUNK, b"b" * 100), (5 * CHUNK + 10, b""))
    tar = tar_of(TREE[3], holes, member("after", b"after"))
    blob, summary = packed(tar)
    assert blob.tar == tar
    expected = bytearray(5 * CHUNK + 10)
    expected[CHUNK - 3 : CHUNK + 3] = b"across"
    expected[4 * CHUNK : 4 * CHUNK + 100] = b"b" * 100
    assert blob.content("disk") == expected
    assert blob.content("after") == b"after"
    assert blob.named("disk")["offset"] > blob.toc_offset
    assert (summary.diff_id, summary.size) == (sha256(blob.unpacked), len(blob.unpacked))
    assert summary.toc_digest == sha256(blob.json)
    assert gzip.decompress(blob.data) == blob.unpacked


def test_a_sparse_map_without_holes_is_an_ordinary_file() -> None:
    tar = tar_of(sparse("whole", 10, (0, b"01234"), (5, b"56789")))
    blob, _ = packed(tar)
    assert blob.tar == tar
    assert blob.content("whole") == b"0123456789"
    assert blob.named("whole")["offset"] < blob.toc_offset


def test_many_files_with_holes_make_a_table_of_many_stored_blocks() -> None:
    found = [sparse(f"hole{n}", 1000 + n, (n, b"data")) for n in range(600)]
    blob, summary = packed(tar_of(*found))
    assert len(blob.json) > 2 * 65_535
    assert summary.toc_digest == sha256(blob.json)
    for n in (0, 300, 599):
        assert blob.content(f"hole{n}") == bytes(n) + b"data" + bytes(1000 - 4)
    assert gzip.decompress(blob.data) == blob.unpacked


def test_a_layer_of_nothing_but_holes() -> None:
    blob, _ = packed(tar_of(sparse("hole", 3 * CHUNK)))
    assert blob.content("hole") == bytes(3 * CHUNK)


def test_a_file_with_holes_gives_way_to_a_later_one_of_its_name() -> None:
    tar = tar_of(sparse("a", 1000, (5, b"old")), member("a", b"new"))
    blob, _ = packed(tar)
    assert blob.content("a") == b"new"
    tar = tar_of(member("a", b"old"), sparse("a", 1000, (0, b"new")))
    blob, _ = packed(tar)
    assert blob.content("a") == b"new" + bytes(997)


def test_endless_holes_are_refused_at_once() -> None:
    with pytest.raises(TooLarge, match="holes"):
        packed(tar_of(sparse("hole", 1 << 60, (0, b"x"))))


def test_the_holes_of_all_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_HOLES", 2500)
    packed(tar_of(*(sparse(f"hole{n}", 1000) for n in range(2))))
    with pytest.raises(TooLarge, match="holes"):
        packed(tar_of(*(sparse(f"hole{n}", 1000) for n in range(3))))


def test_what_the_consumer_raises_is_raised_as_it_is() -> None:
    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    with EstargzWriter(full, chunk_size=CHUNK) as writer:
        with pytest.raises(OSError, match="full") as caught:
            write_for_ever(writer)
        assert type(caught.value) is OSError
        with pytest.raises(Closed):
            writer.write(b"")
    assert our_threads() == []


def test_a_consumer_that_fails_at_the_table_is_heard_too() -> None:
    calls = 0

    def second(_: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ValueError("no more")

    with EstargzWriter(second) as writer:
        writer.write(tar_of(*TREE[:4]))
        with pytest.raises(ValueError, match="no more"):
            writer.finish()


def test_a_full_disk_for_the_table_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda _: Full())
    with pytest.raises(StorageFull, match="free some space"):
        packed(tar_of(*(member(f"f{n}") for n in range(1000))))


def test_a_table_that_outgrows_memory_goes_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    tar = tar_of(*(member(f"f{n}", b"x") for n in range(2000)), sparse("hole", 100_000, (1, b"x")))
    expected = packed(tar)[0].data
    monkeypatch.setattr(spool, "MEMORY_NBYTES", 1000)
    assert packed(tar)[0].data == expected


def test_cancellation_ends_a_writer_that_waits_for_its_consumer() -> None:
    arrived = threading.Event()
    go_on = threading.Event()

    def slow(_: bytes) -> None:
        arrived.set()
        assert go_on.wait(10)

    with tasks.scope() as cancellation:
        with EstargzWriter(slow, chunk_size=CHUNK) as writer:

            def stop() -> None:
                assert arrived.wait(10)
                cancellation.cancel("enough")
                go_on.set()

            stopper = threading.Thread(target=stop)
            stopper.start()
            with pytest.raises(Cancelled, match="enough"):
                write_for_ever(writer)
            stopper.join()
    assert our_threads() == []


def write_for_ever(writer: EstargzWriter) -> None:
    file = file_of(1 << 20)
    while True:
        writer.write(file)


def file_of(nbytes: int) -> bytes:
    header = tarfile.TarInfo("file")
    header.size = nbytes
    return header.tobuf() + random.Random(1).randbytes(nbytes)


def test_leaving_in_the_middle_leaves_no_thread_and_writes_nothing_more() -> None:
    out: list[bytes] = []
    with EstargzWriter(out.append, chunk_size=CHUNK) as writer:
        for _ in range(5):
            writer.write(file_of(1 << 20))
    assert our_threads() == []
    n = len(out)
    writer.close()
    assert len(out) == n
    for call in (lambda: writer.write(b"x"), writer.finish):
        with pytest.raises(Closed):
            call()


def test_a_writer_that_was_never_used_has_no_thread() -> None:
    writer = EstargzWriter(lambda _: None)
    assert our_threads() == []
    writer.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: EstargzWriter(print, level=13),
        lambda: EstargzWriter(print, level=-1),
        lambda: EstargzWriter(print, chunk_size=0),
        lambda: EstargzWriter(print, chunk_size=1 << 40),
        lambda: EstargzWriter(print, threads=0),
    ],
    ids=range(5),
)
def test_arguments_without_sense_are_refused(make: Callable[[], EstargzWriter]) -> None:
    with pytest.raises(InvalidArgument):
        make()


def test_memory_stays_flat_whatever_the_layer() -> None:
    piece = bytes(1 << 20)
    header = tarfile.TarInfo("large")
    header.size = 160 << 20
    nbytes = 0

    def count(data: bytes) -> None:
        nonlocal nbytes
        nbytes += len(data)

    tracemalloc.start()
    try:
        with EstargzWriter(count, level=1, threads=2) as writer:
            writer.write(header.tobuf())
            for _ in range(160):
                writer.write(piece)
            for _ in range(16):
                writer.write(bytes(512) * 2)
            writer.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert nbytes
    assert peak < 48 << 20
    assert CHUNK_NBYTES == 4 << 20
