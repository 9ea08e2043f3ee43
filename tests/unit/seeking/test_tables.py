"""Layers that bring their own table of contents: each file by itself, proven, and with few bytes read."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace

import pytest

from blobtee.compression import decompress
from blobtee.content import Trust
from blobtee.errors import CorruptData, DigestMismatch, TooLarge, Unimplemented
from blobtee.layers import Entry, EntryType, entries
from blobtee.oci import Compressed, Descriptor
from blobtee.oci.annotations import (
    CHUNKED_DIGEST,
    CHUNKED_POSITION,
    INDEX_DIGEST,
    INDEX_POSITION,
    STARGZ_CHUNKED_DIGEST,
    TOC_DIGEST,
)
from blobtee.seeking import Contents, listing, spanindex, tables, toc
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import FILES, Blob, Rows
from tests.unit.seeking.support import CountingReader

TAR = blobs.tar()
MAKERS: dict[str, Callable[[bytes], Blob]] = {
    "gzip of ours": lambda data: blobs.ours("gzip", data),
    "zstd of ours": lambda data: blobs.ours("zstd", data),
    "estargz": lambda data: blobs.ours("estargz", data),
    "zstd:chunked": blobs.chunked,
    "zstd:chunked of stargz": lambda data: blobs.chunked(data, "stargz"),
    "zstd:chunked by its footer": lambda data: blobs.chunked(data, with_position=False),
    "zstd:chunked of stargz by its footer": lambda data: blobs.chunked(data, "stargz", with_position=False),
}


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest) -> Blob:
    return MAKERS[request.param](TAR)


def opened(made: Blob) -> tuple[Contents, CountingReader]:
    reader = CountingReader(made.data, Trust.RAW)
    return tables.contents(made.desc, reader), reader


def content(contents: Contents, reader: CountingReader, path: str) -> bytes:
    entry = {entry.path: entry for entry in contents.entries}[path]
    with contents.open(reader, entry) as file:
        return file.readall()


def told(entry: Entry) -> Entry:
    """What each table tells of an entry: no fractions of seconds, no group's name, and offsets of its own."""
    return replace(entry, offset=0, mtime_ns=entry.mtime_ns // 10**9, _opener=None)


def test_the_table_tells_what_the_tar_does_and_each_file_is_there(made: Blob) -> None:
    contents, reader = opened(made)
    assert contents.told is Trust.ATTESTED
    assert contents.trust(Trust.RAW) is Trust.ATTESTED
    assert [told(entry) for entry in contents.entries] == [told(entry) for entry in entries(io.BytesIO(TAR))]
    for path, data in FILES.items():
        assert content(contents, reader, path) == data, path


def test_a_small_file_takes_two_requests_and_little_else(made: Blob) -> None:
    contents, reader = opened(made)
    assert content(contents, reader, "etc/conf") == FILES["etc/conf"]
    assert len(reader.reads) <= 2
    assert reader.nbytes < 1 << 20


def test_any_byte_that_is_wrong_is_found_where_it_matters(made: Blob) -> None:
    contents, _ = opened(made)
    for path in ("etc/conf", "share/text", "bin/large"):
        entry = {entry.path: entry for entry in contents.entries}[path]
        extents = contents.extents([entry])
        for extent in extents:
            for place in (extent.start + 25, (extent.start + extent.end) // 2):
                damaged = bytearray(made.data)
                damaged[place] ^= 0x20
                try:
                    got = content(contents, CountingReader(bytes(damaged), Trust.RAW), path)
                except (CorruptData, DigestMismatch):
                    continue
                assert got == FILES[path], "the byte was none of the file's"
        with pytest.raises((CorruptData, DigestMismatch)):
            content(contents, CountingReader(bytes(len(made.data)), Trust.RAW), path)


def test_a_table_that_is_not_the_manifests_is_refused(made: Blob) -> None:
    for key in (INDEX_DIGEST, TOC_DIGEST, CHUNKED_DIGEST, STARGZ_CHUNKED_DIGEST):
        if key in made.desc.annotations:
            wrong = made.desc.annotated({key: blobs.sha256(b"another")})
            with pytest.raises(DigestMismatch):
                tables.contents(wrong, CountingReader(made.data))
            for bad in ("sha256:12", "sha512:" + "0" * 128):
                with pytest.raises(tables.UNUSABLE):
                    tables.contents(made.desc.annotated({key: bad}), CountingReader(made.data))


def test_places_that_are_none_are_refused() -> None:
    for kind, key in (("gzip", INDEX_POSITION), ("zstd", INDEX_POSITION)):
        made = blobs.ours(kind, TAR)
        size = len(made.data)
        for text in ("", "1", "a:b", "-1:5", f"{size}:1", f"0:{size + 1}", "1" * 30 + ":1", "0:0", "5:10", "１:2"):
            with pytest.raises(tables.UNUSABLE):
                tables.contents(made.desc.annotated({key: text}), CountingReader(made.data))
    made = blobs.chunked(TAR)
    offset, nbytes, whole, kind_ = made.desc.annotations[CHUNKED_POSITION].split(":")
    for numbers in (
        (offset, nbytes, whole, "2"),
        (offset, nbytes, int(whole) - 1, kind_),
        (offset, nbytes, int(whole) + 1, kind_),
        (offset, nbytes, 1 << 40, kind_),
        (offset, int(nbytes) - 1, whole, kind_),
        (offset, nbytes, whole),
    ):
        wrong = made.desc.annotated({CHUNKED_POSITION: ":".join(map(str, numbers))})
        with pytest.raises(tables.UNUSABLE):
            tables.contents(wrong, CountingReader(made.data))


def test_layers_without_a_table_say_so() -> None:
    plain = blobs.ours("uncompressed", TAR)
    assert not tables.is_told(plain.desc)
    with pytest.raises(Unimplemented):
        tables.contents(plain.desc, CountingReader(plain.data))
    bare = blobs.ours("zstd", TAR).desc.bare()
    assert not tables.is_told(bare)


def test_tables_of_both_families_are_two_truths() -> None:
    made = blobs.chunked(TAR)
    for key in (STARGZ_CHUNKED_DIGEST, TOC_DIGEST):
        with pytest.raises(CorruptData, match="two dialects"):
            tables.contents(made.desc.annotated({key: "sha256:" + "0" * 64}), CountingReader(made.data))


class TestOurOwnIndex:
    @pytest.mark.parametrize("kind", ["gzip", "zstd"])
    def test_it_depends_on_nothing_but_the_tar(self, kind: str) -> None:
        first = blobs.ours(kind, TAR, threads=1)
        assert [blobs.ours(kind, TAR, threads=threads) for threads in (2, 5)] == [first, first]

    @pytest.mark.parametrize("kind", ["gzip", "zstd"])
    def test_decoders_pass_over_it(self, kind: str) -> None:
        rng = random.Random(2)
        many = {f"{rng.randbytes(20).hex()}/{number}": b"" for number in range(9000)} | {"noise": blobs.noise(1 << 20)}
        data = blobs.tar(many)
        made = blobs.ours(kind, data)
        nbytes = int(made.desc.annotations[INDEX_POSITION].split(":")[1])
        assert nbytes > 3 << 16, "several members"
        tool = ["gzip", "-dc"] if kind == "gzip" else ["zstd", "-dc"]
        assert subprocess.run(tool, input=made.data, capture_output=True, check=True).stdout == data
        if kind == "gzip":
            assert gzip.decompress(made.data) == data
        for threads in (1, 3):
            with decompress(io.BytesIO(made.data), made.desc.media_type, threads=threads) as stream:
                assert io.BufferedReader(stream).read() == data
        for flags in (["tar", "-tf", "-"], ["bsdtar", "-tf", "-"]):
            done = subprocess.run(flags, input=made.data, capture_output=True, check=flags[0] == "bsdtar")
            if not done.returncode:
                assert b"noise" in done.stdout
        contents, _ = opened(made)
        assert len(contents.entries) == len(list(entries(io.BytesIO(data))))

    @pytest.mark.parametrize("kind", ["gzip", "zstd"])
    def test_small_layers_and_what_is_no_tar_have_none(self, kind: str) -> None:
        small = blobs.ours(kind, blobs.tar({"f": b"x"}))
        assert not tables.is_told(small.desc)
        no_tar = blobs.ours(kind, blobs.noise(1 << 20))
        assert not tables.is_told(no_tar.desc)
        broken = blobs.ours(kind, TAR[: len(TAR) - (1 << 20)])
        assert not tables.is_told(broken.desc)
        assert tables.is_told(blobs.ours(kind, blobs.tar({"f": blobs.noise(1 << 20)})).desc)

    def test_a_layer_of_too_many_files_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("blobtee.conversion.lister.MAX_LISTED", 1000)
        made = blobs.ours("zstd", TAR)
        assert not tables.is_told(made.desc)

    @pytest.mark.parametrize("form", [Compressed.GZIP, Compressed.ZSTD])
    def test_an_index_that_makes_no_sense_is_refused(self, form: Compressed) -> None:
        made = blobs.ours(form.value, TAR)
        offset, nbytes = map(int, made.desc.annotations[INDEX_POSITION].split(":"))
        right = [(10, 10, bytes(32)), (5, offset - 10, bytes(32))]
        media_type = made.desc.media_type

        def read(pieces: list[tuple[int, int, bytes]], blob_nbytes: int = offset, change: int | None = None) -> None:
            index = bytearray(spanindex.make(pieces, listing.ListWriter(), form).data)
            if change is not None:
                index[change] ^= 1
            data = bytes(blob_nbytes) + index
            annotations = {INDEX_DIGEST: blobs.sha256(bytes(index)), INDEX_POSITION: f"{blob_nbytes}:{len(index)}"}
            desc = Descriptor(media_type, made.desc.digest, len(data), annotations=annotations)
            tables.contents(desc, CountingReader(data))

        read(right)
        for pieces in (
            [(10, 10, bytes(32))],
            [*right, (1, 1, bytes(32))],
            [*right, (1, 0, bytes(32))],
            [(-1, offset, bytes(32))],
            [(1, -1, bytes(32)), (1, offset + 1, bytes(32))],
            [(1 << 40, offset, bytes(32))],
        ):
            with pytest.raises((CorruptData, TooLarge)):
                read(pieces)
        for change in range(12):
            with pytest.raises((CorruptData, TooLarge)):
                read(right, change=change)
        del nbytes

    def test_an_index_that_unpacks_to_too_much_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = blobs.ours("zstd", TAR)
        monkeypatch.setattr(spanindex, "MAX_TOC", 100)
        with pytest.raises(TooLarge):
            opened(made)


def rows_of(change: Callable[[Rows], object]) -> Contents:
    return opened(blobs.chunked(TAR, change=change))[0]


def row(rows: Rows, name: str) -> dict[str, object]:
    return next(row for row in rows if row["name"] == name)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.append({"type": "chunk", "name": "bin/large", "chunkSize": 5}),
        lambda rows: rows.append({"type": "odd", "name": "x"}),
        lambda rows: rows.append({"type": "reg", "name": ""}),
        lambda rows: rows.append({"type": "reg", "name": "../x"}),
        lambda rows: rows.append({"type": "reg", "name": "a\0b"}),
        lambda rows: rows.append({"type": "reg", "name": 5}),
        lambda rows: rows.append({"type": "symlink", "name": "x"}),
        lambda rows: rows.append({"type": "hardlink", "name": "x", "linkName": "../x"}),
        lambda rows: rows.append({"type": "hardlink", "name": "x"}),
        lambda rows: rows.append(["no object"]),
        lambda rows: rows.append({"type": "reg", "name": "x", "size": 5}),
        lambda rows: row(rows, "bin/large").update(size=5),
        lambda rows: row(rows, "bin/large").update(size=-5),
        lambda rows: row(rows, "bin/large").update(size=1 << 63),
        lambda rows: row(rows, "bin/large").update(size=1.5),
        lambda rows: row(rows, "bin/large").update(size=True),
        lambda rows: row(rows, "bin/large").update(chunkOffset=1),
        lambda rows: row(rows, "bin/large").update(chunkSize=1 << 30),
        lambda rows: row(rows, "bin/large").update(chunkSize=1),
        lambda rows: row(rows, "bin/large").update(offset=-1),
        lambda rows: row(rows, "bin/large").update(offset=1 << 50),
        lambda rows: row(rows, "bin/large").update(innerOffset=1 << 40),
        lambda rows: row(rows, "bin/large").update(innerOffset=-1),
        lambda rows: row(rows, "bin/large").update(chunkDigest=""),
        lambda rows: row(rows, "bin/large").update(chunkDigest="md5:12"),
        lambda rows: row(rows, "bin/large").update(chunkDigest="sha512:" + "0" * 128),
        lambda rows: row(rows, "bin/large").update(modtime="yesterday"),
        lambda rows: row(rows, "bin/large").update(xattrs=["x"]),
        lambda rows: row(rows, "bin/large").update(xattrs={"a": "?"}),
        lambda rows: row(rows, "bin/large").update(xattrs={"a": 7}),
        lambda rows: row(rows, "bin/large").update(xattrs={"\ud800": ""}),
        lambda rows: row(rows, "bin/large").update(userName="\ud800"),
        lambda rows: rows.append({"type": "symlink", "name": "link", "linkName": "\udfff"}),
        lambda rows: rows.remove(next(row for row in rows if row["type"] == "chunk")),
        lambda rows: rows.insert(0, {"type": "chunk", "name": "x"}),
    ],
)
def test_rows_that_make_no_sense_are_refused(change: Callable[[Rows], object]) -> None:
    with pytest.raises(tables.UNUSABLE):
        rows_of(change)


def test_a_table_of_another_version_or_that_is_no_json_is_refused() -> None:
    with pytest.raises(CorruptData, match="version"):
        opened(blobs.estargz(b"", [], version=2))
    for text in (
        b"",
        b"{",
        b"[]",
        b'{"entries":[}',
        b'{"entries":[{}]}',
        b'{"a":1,}',
        b'{"a" 1}',
        b"{}x",
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000,
        b'{"entries":[[]]}',
        b'{"entries":[],"entries":[]}',
        b'{"version":1,"entries":[{"name":"x"',
        b"\xff",
    ):
        with pytest.raises(CorruptData):
            toc.contents(text, 10, (), lambda packed, out, before: None)
    for text in (b"{}", b' {"entries" : [ ] , "x":{"y":[1]}} ', b'{"entries":null}'):
        assert toc.contents(text, 10, (), lambda packed, out, before: None).entries == []


def test_a_name_has_one_spelling() -> None:
    """JSON can write the bytes of a letter as two halves of surrogates: that is the letter."""
    told = '{"entries":[{"type":"dir","name":"%s","xattrs":{"%s":""}}]}'
    for name in ("é", "\\udcc3\\udca9"):
        (entry,) = toc.contents((told % (name, name)).encode(), 10, (), lambda packed, out, before: None).entries
        assert (entry.path, dict(entry.xattrs)) == ("é", {"é": b""})
    for name in ("\\ud800", "\\udc00"):
        with pytest.raises(CorruptData, match="no text"):
            toc.contents((told % (name, "x")).encode(), 10, (), lambda packed, out, before: None)
        with pytest.raises(CorruptData, match="no text"):
            toc.contents((told % ("x", name)).encode(), 10, (), lambda packed, out, before: None)


def test_a_table_is_not_more_in_memory_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of these empty arrays once took thirty times its two bytes.
    bomb = b'{"entries":[{"type":"dir","name":"d","x":[' + b"[]," * (2 << 20) + b"1]}]}"
    with pytest.raises(TooLarge):
        toc.contents(bomb, 10, (), lambda packed, out, before: None)
    with pytest.raises(TooLarge):
        toc.contents(b'{"x":' + bomb + b"}", 10, (), lambda packed, out, before: None)
    monkeypatch.setattr(toc, "MAX_EXTRAS", 3)
    some = b'{"entries":[' + b",".join([b'{"type":"dir","name":"d","xattrs":{"a":"","b":""}}'] * 2) + b"]}"
    with pytest.raises(TooLarge, match="attributes"):
        toc.contents(some, 10, (), lambda packed, out, before: None)


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toc, "MAX_ENTRIES", 3)
    with pytest.raises(TooLarge):
        rows_of(blobs.nothing)


def test_a_table_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (blobs.chunked(TAR), blobs.chunked(TAR, with_position=False), blobs.ours("estargz", TAR)):
        monkeypatch.setattr(toc, "MAX_TOC", 600)
        with pytest.raises((TooLarge, CorruptData)):
            opened(made)


def test_zeros_carry_no_bytes() -> None:
    files = {"before": b"1", "holes": bytes(2 << 20) + blobs.noise(1 << 20) + bytes(3 << 20), "after": b"2"}
    contents, reader = opened(blobs.chunked(blobs.tar(files), zeros=True))
    reader.reads.clear()
    assert content(contents, reader, "holes") == files["holes"]
    assert reader.nbytes < (1 << 20) + 1000
    assert content(contents, reader, "after") == b"2"


def test_a_bomb_is_cut_at_what_is_declared() -> None:
    def smaller(rows: Rows) -> None:
        row(rows, "bomb").update(size=10, chunkSize=0, chunkDigest=blobs.sha256(bytes(10)))

    contents, reader = opened(blobs.chunked(blobs.tar({"bomb": bytes(20 << 20)}), chunk=32 << 20, change=smaller))
    assert content(contents, reader, "bomb") == bytes(10)

    def larger(rows: Rows) -> None:
        row(rows, "bomb").update(size=40 << 20, chunkDigest=blobs.sha256(bytes(10)))

    contents, reader = opened(blobs.chunked(blobs.tar({"bomb": bytes(20 << 20)}), chunk=32 << 20, change=larger))
    with pytest.raises((CorruptData, DigestMismatch)):
        content(contents, reader, "bomb")


class TestEstargz:
    PARTS = blobs.members([b"h" * 512 + b"first file" + b"pad" + b"second", b"third" * 1000, b"trailer"])

    def rows(self) -> Rows:
        first, second, third = b"first file", b"second", b"third" * 1000
        at = len(blobs.members([b"h" * 512 + b"first file" + b"pad" + b"second"]))
        return [
            {"name": "./", "type": "dir", "mode": 0o755},
            {"name": "/a", "type": "reg", "size": 10, "innerOffset": 512, "chunkDigest": blobs.sha256(first)},
            {
                "name": "b",
                "type": "reg",
                "size": 6,
                "offset": 0,
                "innerOffset": 525,
                "chunkDigest": blobs.sha256(second),
            },
            {"name": "c", "type": "reg", "size": 5000, "offset": at, "digest": blobs.sha256(third)},
            {"name": ".no.prefetch.landmark", "type": "reg", "size": 1, "offset": at, "digest": blobs.sha256(b"t")},
        ]

    @pytest.mark.parametrize("legacy", [False, True])
    def test_several_files_in_one_member(self, legacy: bool) -> None:
        contents, reader = opened(blobs.estargz(self.PARTS, self.rows(), legacy=legacy))
        assert [entry.path for entry in contents.entries] == ["", "a", "b", "c", ".no.prefetch.landmark"]
        for path, data in (("a", b"first file"), ("b", b"second"), ("c", b"third" * 1000)):
            assert content(contents, reader, path) == data

    def test_an_inner_offset_past_the_members_end_is_damage(self) -> None:
        rows = self.rows()
        rows[1]["innerOffset"] = 600_000
        contents, reader = opened(blobs.estargz(self.PARTS, rows))
        with pytest.raises((CorruptData, DigestMismatch)):
            content(contents, reader, "a")

    def test_what_is_unpacked_in_vain_for_one_file_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = self.rows()
        told = {"innerOffset": 512, "chunkSize": 1, "chunkDigest": blobs.sha256(b"f")}
        rows[1:2] = [
            {"name": "a", "type": "reg", "size": 5, **told},
            *({"name": "a", "type": "chunk", "chunkOffset": n, **told} for n in range(1, 5)),
        ]
        monkeypatch.setattr(toc, "MAX_IN_VAIN", 5 * 512)
        contents, reader = opened(blobs.estargz(self.PARTS, rows))
        assert content(contents, reader, "a") == b"fffff"
        monkeypatch.setattr(toc, "MAX_IN_VAIN", 4 * 512)
        with pytest.raises(TooLarge, match="in vain"):
            opened(blobs.estargz(self.PARTS, rows))

    def test_a_long_table_takes_a_second_read(self) -> None:
        rows = self.rows() + [{"name": os.urandom(40).hex(), "type": "dir"} for _ in range(12_000)]
        contents, reader = opened(blobs.estargz(self.PARTS, rows))
        assert len(reader.reads) == 2
        assert len(contents.entries) == 12_005
        assert content(contents, reader, "b") == b"second"

    def test_files_with_holes_are_found_behind_the_table(self) -> None:
        data = sparse_tar()
        made = blobs.ours("estargz", data)
        contents, reader = opened(made)
        assert content(contents, reader, "hole") == bytes(1 << 20) + b"x" * 4096 + bytes(5000)
        assert len(reader.reads) == 2

    @pytest.mark.parametrize("cut", [1, 30, 60, 300])
    def test_a_blob_that_ends_early_has_no_table(self, cut: int) -> None:
        made = blobs.estargz(self.PARTS, self.rows())
        with pytest.raises(tables.UNUSABLE):
            tables.contents(made.desc, CountingReader(made.data[:-cut]))

    def test_a_footer_that_points_elsewhere_is_refused(self) -> None:
        made = blobs.estargz(self.PARTS, self.rows())
        for offset in (0, len(made.data) - 51, len(made.data), 1 << 60, 5):
            data = made.data[:-51] + blobs.estargz_footer(offset)
            with pytest.raises(tables.UNUSABLE):
                tables.contents(made.desc, CountingReader(data))
        for data in (b"", b"x" * 51, made.data[:-51]):
            with pytest.raises(tables.UNUSABLE):
                tables.contents(made.desc, CountingReader(data))


def sparse_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.size = 4096
        info.mode = stat.S_IRUSR
        info.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": f"{1 << 20},4096",
            "GNU.sparse.size": str((1 << 20) + 4096 + 5000),
        }
        archive.addfile(info, io.BytesIO(b"x" * 4096))
        other = tarfile.TarInfo("other")
        other.size = 300_000
        archive.addfile(other, io.BytesIO(blobs.noise(300_000)))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_our_index_tells_holes(kind: str) -> None:
    contents, reader = opened(blobs.ours(kind, sparse_tar()))
    assert content(contents, reader, "hole") == bytes(1 << 20) + b"x" * 4096 + bytes(5000)
    assert {entry.type for entry in contents.entries} == {EntryType.FILE}
