"""Damaged layers, damaged and made-up tables: the right bytes or one of our errors, and nothing else.

`BLOBTEE_SEEKING_CASES` says how many of each (600).
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobtee.compression import decompress
from blobtee.content import Trust
from blobtee.core import gzip_member
from blobtee.errors import BlobteeError, CorruptData, DigestMismatch, TooLarge
from blobtee.image import Tree
from blobtee.layers import EntryType, entries
from blobtee.layers.entry import normalise
from blobtee.oci import Compressed, Descriptor, Digest, mediatypes
from blobtee.oci.annotations import INDEX_DIGEST, INDEX_POSITION
from blobtee.seeking import Contents, kept, listing, tables, toc, whole
from tests.fuzz.test_tar import INTERESTING
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import GZIP, ZSTD, Blob
from tests.unit.seeking.support import CountingReader

KEYS = ["type", "name", "size", "offset", "endOffset", "innerOffset", "chunkSize", "chunkOffset", "chunkDigest"]
KEYS += ["digest", "chunkType", "linkName", "modtime", "xattrs", "uid", "mode", "devMajor"]
FILES = {"a/conf": b"setting\n", "b": random.Random(1).randbytes(300_000), "c": b"text and text " * 2000, "e": b""}
TAR = blobs.tar(FILES)
KINDS = ("gzip", "zstd", "estargz", "containers", "stargz")
CASES = int(os.environ.get("BLOBTEE_SEEKING_CASES", "600"))
SETTINGS = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
DAMAGE = st.lists(
    st.tuples(st.integers(-6000, 6000), st.sampled_from(INTERESTING) | st.integers(0, 255)), min_size=1, max_size=6
)


@functools.cache
def made(kind: str) -> Blob:
    return blobs.chunked(TAR, kind) if kind in ("containers", "stargz") else blobs.ours(kind, TAR)


def damaged(data: bytes, damage: list[tuple[int, int]], cut: int | None) -> bytes:
    result = bytearray(data)
    for position, value in damage:
        result[position % len(result)] = value
    return bytes(result[: None if cut is None else len(result) - cut])


def read_all(contents: Contents, data: bytes) -> None:
    """Every file, within bounds."""
    reader = CountingReader(data, Trust.RAW)
    for entry in contents.entries[:50]:
        if entry.type is EntryType.FILE and entry.size < 1 << 24:
            with contextlib.suppress(BlobteeError), contents.open(reader, entry) as file:
                assert len(file.readall()) == entry.size
    for extent in contents.extents(contents.entries):
        assert 0 <= extent.start < extent.end <= len(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_damaged_layer_only_right_bytes_are_given(kind: str) -> None:
    @SETTINGS
    @given(DAMAGE, st.none() | st.integers(1, 5000))
    def trial(damage: list[tuple[int, int]], cut: int | None) -> None:
        data = damaged(made(kind).data, damage, cut)
        reader = CountingReader(data, Trust.RAW)
        try:
            contents = tables.contents(made(kind).desc, reader)
        except tables.UNUSABLE:
            return
        for entry in contents.entries:
            if entry.path in FILES:
                with contextlib.suppress(CorruptData, DigestMismatch), contents.open(reader, entry) as file:
                    assert file.readall() == FILES[entry.path]

    trial()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["containers", "stargz", "estargz"])
def test_tables_that_somebody_made_up_end_in_our_errors(kind: str) -> None:
    """Their digests are right: the author himself is hostile."""
    numbers: st.SearchStrategy[object] = st.sampled_from(
        [-1, 0, 1, 511, 512, 300_000, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 70, 0.5]
    )
    values: st.SearchStrategy[object] = numbers | st.sampled_from(
        ["", "a/conf", "b", "../b", "\0", None, [], {}, True, "reg", "chunk", "zeros"]
    )
    keys = st.sampled_from(KEYS)
    changes = st.lists(st.tuples(st.integers(0, 20), keys, values), max_size=5)
    orders = st.lists(st.integers(0, 20), max_size=3)

    @SETTINGS
    @given(changes, orders)
    def trial(changes: list[tuple[int, str, object]], again: list[int]) -> None:
        def change(rows: blobs.Rows) -> None:
            for number, key, value in changes:
                rows[number % len(rows)][key] = value
            for number in again:
                rows.append(dict(rows[number % len(rows)]))

        if kind == "estargz":
            rows = json.loads(rows_of_estargz())
            change(rows)
            layer = blobs.estargz(made("estargz").data[:200_000], rows)
        else:
            layer = blobs.chunked(TAR, kind, change=change, chunk=100_000)
        with contextlib.suppress(*tables.UNUSABLE):
            read_all(tables.contents(layer.desc, CountingReader(layer.data)), layer.data)

    trial()


@functools.cache
def rows_of_estargz() -> str:
    _, table = blobs.frames(TAR, chunk=100_000, change=blobs.nothing, zeros=False)
    return json.dumps(json.loads(table)["entries"])


NUMBERS = st.sampled_from([0, 0, 1, 3, 5, 512, 0o644, 0o10000, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -512, -(1 << 63)])
TEXTS = st.sampled_from(
    ["a", "a/b", "é", "\udcff", "", "/a", "a/", "../a", "a//b", "x" * 33_000, ".wh.a", ".wh..wh..opq", ".wh.", "a\0b"]
)
ODD: st.SearchStrategy[object] = st.recursive(
    st.sampled_from([None, True, -1, 0, 1, 2, 1 << 70, 0.5, "", "YQ==", "=", "é"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["device", "sparse"]), inner, max_size=2)
    ),
    max_leaves=6,
)
MORE = st.lists(
    ODD
    | st.tuples(
        st.integers(-1, 6), st.dictionaries(st.sampled_from(["device", "sparse", "xattrs", "x"]), ODD, max_size=3)
    ),
    max_size=3,
)


@st.composite
def made_up_lists(draw: st.DrawFn) -> bytes:
    """A list of entries in which each column says what it likes."""
    count = draw(st.integers(0, 5))
    said = draw(st.sampled_from([count, count, count, count + 1, 1 << 31]))

    def column(values: st.SearchStrategy[int]) -> bytes:
        found = draw(st.lists(values, min_size=count, max_size=count))
        return struct.pack(f"<{count}q", *found)

    sound = draw(st.booleans())
    kinds = st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 255])
    types = bytes(draw(st.lists(kinds, min_size=count, max_size=count)))
    numbers = [column(st.sampled_from([0, 1, 5, 0o644]) if sound else NUMBERS) for _ in range(6)]
    texts = [
        "".join(text + "\0" for text in draw(st.lists(TEXTS, min_size=count, max_size=count))).encode(
            "utf-8", "surrogateescape"
        )
        for _ in range(4)
    ]
    sections = [types, *numbers, *texts, json.dumps(draw(MORE)).encode()]
    return struct.pack("<4sI", b"BTL1", said) + b"".join(struct.pack("<Q", len(part)) + part for part in sections)


@pytest.mark.slow
def test_lists_of_entries_that_somebody_made_up_end_in_our_errors() -> None:
    @SETTINGS
    @given(made_up_lists())
    def trial(data: bytes) -> None:
        with contextlib.suppress(CorruptData, TooLarge):
            for entry in listing.load(data, 1 << 20):
                assert normalise(entry.path, "a path") == entry.path
                assert entry.size >= 0 <= entry.offset <= 1 << 20

    trial()


@pytest.mark.slow
@pytest.mark.parametrize("form", [Compressed.GZIP, Compressed.ZSTD])
def test_an_index_of_ours_that_somebody_made_up_ends_in_our_errors(form: Compressed) -> None:
    """The digest in the manifest is right: the author himself is hostile. Seen as a tree, and each file read."""
    pieces = [TAR[:200_000], TAR[200_000:]]
    packed = [gzip_member(piece, sized=True) for piece in pieces]
    if form is Compressed.ZSTD:
        packed = [zstandard.ZstdCompressor().compress(piece) for piece in pieces]
    blob = b"".join(packed)
    sizes = st.sampled_from([0, 1, 5, 512, len(pieces[0]), len(pieces[1]), len(packed[0]), len(packed[1]), len(blob)])
    sizes |= NUMBERS
    lists = made_up_lists() | st.just(listing.dump(entry.detached() for entry in entries(io.BytesIO(TAR))))

    @SETTINGS
    @given(lists, st.lists(st.tuples(sizes, sizes), max_size=3), st.booleans(), st.sampled_from([0, 0, 1, -1, 1 << 31]))
    def trial(listed: bytes, told: list[tuple[int, int]], right: bool, off: int) -> None:
        rows = [(len(a), len(b)) for a, b in zip(pieces, packed, strict=True)] if right else told
        holds, takes = ([row[k] for row in rows] for k in range(2))
        digests = b"".join(hashlib.sha256(part).digest() for part in packed)[: 32 * len(rows)].ljust(32 * len(rows))
        index = struct.pack("<4sIQ", b"BTX1", (len(rows) + off) % (1 << 32), len(listed))
        index += struct.pack(f"<{len(rows)}q", *holds) + struct.pack(f"<{len(rows)}q", *takes) + digests + listed
        data = zstandard.ZstdCompressor().compress(index)
        made = struct.pack("<II", 0x184D2A5B, len(data)) + data
        if form is Compressed.GZIP:
            extra = b"BT" + struct.pack("<H", len(data)) + data
            made = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra
            made += b"\x03\x00" + bytes(8)
        annotations = {INDEX_DIGEST: blobs.sha256(made), INDEX_POSITION: f"{len(blob)}:{len(made)}"}
        layer = blobs.blob(blob + made, mediatypes.OCI_LAYER + f"+{form.value}", annotations)
        seen = Tree([layer.desc], OneBlob(layer.data), Trust.ATTESTED)
        with contextlib.suppress(BlobteeError):
            for node in itertools.islice(seen.walk(), 50):
                if node.type is EntryType.FILE and node.size < 1 << 24:
                    with contextlib.suppress(BlobteeError), seen.open_node(node) as file:
                        assert len(file.readall()) == node.size

    trial()


class OneBlob:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def reader_at(self, desc: object, trust: Trust = Trust.BLOB) -> CountingReader:
        return CountingReader(self._data, trust)


@pytest.mark.slow
def test_any_text_as_a_table_ends_in_our_errors() -> None:
    pieces = st.sampled_from(
        [
            '{"entries":[',
            "]}",
            '{"name":"a","type":"reg"}',
            ",",
            "[",
            "{",
            '"',
            "1e999",
            "\\u0000",
            " ",
            '"version":1',
            "}",
        ]
    )

    @SETTINGS
    @given(st.lists(pieces | st.text(max_size=3), max_size=12))
    def trial(parts: list[str]) -> None:
        text = "".join(parts).encode("utf-8", "surrogatepass")
        with contextlib.suppress(*tables.UNUSABLE):
            toc.contents(text, 100, (), lambda packed, out, before: None)

    trial()


def packed(data: bytes, kind: str, level: int, cut: int) -> tuple[bytes, str]:
    """A layer as some tool packs it, in two members or frames where that can be; and its media type."""
    if kind == "uncompressed":
        return data, mediatypes.OCI_LAYER
    if kind in ("any gzip", "any zstd"):
        halves = [data[:cut], data[cut:]] if cut else [data]
        if kind == "any gzip":
            return b"".join(gzip.compress(half, level % 10) for half in halves) + bytes(level), GZIP
        return b"".join(zstandard.ZstdCompressor(level=level + 1).compress(half) for half in halves), ZSTD
    layer = blobs.chunked(data, kind) if kind in ("containers", "stargz") else blobs.ours(kind, data)
    return layer.data, layer.desc.media_type


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "uncompressed", "any gzip", "any zstd"])
def test_any_part_of_any_layer_is_what_unpacking_it_whole_gives(kind: str) -> None:
    sizes = st.lists(st.integers(0, 200) | st.integers(0, 400_000), max_size=8)

    @settings(SETTINGS, max_examples=CASES // 6)
    @given(sizes, st.integers(0, 12), st.integers(0, 100_000), st.integers(0, 1 << 30))
    def trial(sizes: list[int], level: int, cut: int, seed: int) -> None:
        draw = random.Random(seed)
        files = {
            f"d/{number}": draw.randbytes(size) if draw.random() < 0.5 else blobs.text(size)
            for number, size in enumerate(sizes)
        }
        data = blobs.tar({"first": b"", **files})
        blob, media_type = packed(data, kind, level, cut)
        reader = CountingReader(blob)
        contents = whole.contents(reader, media_type, lambda found: (entry.detached() for entry in found))
        with decompress(io.BytesIO(blob), media_type) as unpacked:
            expected = unpacked.read()
        assert expected[: len(data)] == data
        for entry in contents.entries:
            if entry.path in files:
                with contents.open(reader, entry) as file:
                    assert file.readall() == files[entry.path]
        stream = contents.stream
        assert stream.size <= len(expected)
        for _ in range(10):
            at, n = draw.randint(0, stream.size), draw.choice((1, 1000, 1 << 20))
            part = expected[at : min(at + n, stream.size)]
            assert stream.read_at(reader, at, n) == part
            # What it is said to be made of is enough.
            holes = bytearray(len(blob))
            for start, end in stream.extents(at, n):
                holes[start:end] = blob[start:end]
            assert stream.read_at(CountingReader(bytes(holes)), at, n) == part

    trial()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "uncompressed"])
def test_a_whole_layer_is_what_an_ordinary_decoder_says_or_an_error(kind: str) -> None:
    media_type = {"gzip": GZIP, "estargz": GZIP, "uncompressed": mediatypes.OCI_LAYER}.get(kind, ZSTD)
    source = TAR if kind == "uncompressed" else made(kind).data

    @SETTINGS
    @given(DAMAGE, st.none() | st.integers(1, 5000))
    def trial(damage: list[tuple[int, int]], cut: int | None) -> None:
        data = damaged(source, damage, cut)
        reader = CountingReader(data)
        try:
            expected = [
                (entry.detached(), entry.data().read()) for entry in entries(decompress(io.BytesIO(data), media_type))
            ]
        except BlobteeError:
            expected = None
        try:
            contents = whole.contents(reader, media_type, lambda found: (entry.detached() for entry in found))
        except BlobteeError:
            assert expected is None or kind == "uncompressed"
            return
        if expected is None:
            return  # what is passed over in a tar that is not packed may be anything
        assert list(contents.entries) == [entry for entry, _ in expected]
        for entry, content in expected:
            if entry.type is EntryType.FILE:
                with contents.open(reader, entry) as file:
                    assert file.readall() == content

    trial()


@pytest.mark.slow
def test_gzip_of_any_members_is_read_as_it_is_unpacked() -> None:
    """Members with names, comments, checksums of the header, extra fields that lie about the length, empty ones."""
    flags = st.lists(st.sampled_from([2, 4, 8, 16]), max_size=3).map(lambda bits: sum(set(bits)))
    sizes = st.sampled_from([None, 0, -1, 1, 28, 1 << 20, (1 << 32) - 1])
    members = st.lists(
        st.tuples(st.integers(0, 120_000), flags, sizes, st.sampled_from([0, 0, 1, 6]), st.booleans()), max_size=6
    )

    @settings(SETTINGS, max_examples=max(1, CASES // 2))
    @given(members, st.integers(0, 3000))
    def trial(told: list[tuple[int, int, int | None, int, bool]], zeros: int) -> None:
        blob, position = b"", 0
        for nbytes, bits, off, level, stated in [*told, (len(TAR), 0, None, 1, False)]:
            piece = TAR[position : position + nbytes]
            position += len(piece)
            blob += a_member(piece, bits, level, off if stated else None)
        same_as_unpacked(blob + bytes(zeros), GZIP)

    trial()


def a_member(piece: bytes, bits: int, level: int, off: int | None) -> bytes:
    """A gzip member with the header's fields that `bits` name; `off`: it says that it is so much longer than it is."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = deflate.compress(piece) + deflate.flush()
    head = b"\x1f\x8b\x08" + bytes([bits | 4 * (off is not None)]) + bytes(5) + b"\xff"
    if off is not None:
        head += b"\x08\x00MZ\x04\x00" + struct.pack("<I", (len(body) + off) % (1 << 32))
    elif bits & 4:
        head += b"\x05\x00BTabc"
    head += b"name\0" if bits & 8 else b""
    head += b"comment\0" if bits & 16 else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if bits & 2 else b""
    return head + body + struct.pack("<II", zlib.crc32(piece), len(piece))


@pytest.mark.slow
def test_zstd_with_any_seek_table_is_read_as_it_is_unpacked() -> None:
    frames = st.lists(st.tuples(st.integers(0, 120_000), st.booleans(), st.integers(0, 3)), max_size=5)
    lies = st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 1), st.sampled_from([0, 1, -1, 8, 1 << 31])), max_size=2
    )

    @settings(SETTINGS, max_examples=max(1, CASES // 2))
    @given(frames, lies, st.booleans(), st.sampled_from([0, 0, 1, -1]), st.booleans())
    def trial(
        told: list[tuple[int, bool, int]], lies: list[tuple[int, int, int]], joined: bool, off: int, digests: bool
    ) -> None:
        blob, position = b"", 0
        rows: list[list[int]] = []
        for nbytes, sized, skipped in [*told, (len(TAR), True, 0)]:
            piece = TAR[position : position + nbytes]
            position += len(piece)
            parameters = zstandard.ZstdCompressionParameters.from_level(1, write_content_size=sized)
            frame = zstandard.ZstdCompressor(compression_params=parameters).compress(piece)
            extra = b"".join(blobs.skippable(b"x" * n) for n in range(skipped))
            blob += frame + extra
            rows += [[len(frame), len(piece)]] + [[8 + n, 0] for n in range(skipped)]
        if joined and len(rows) > 1:
            (a, b), (c, d) = rows[:2]
            rows[:2] = [[a + c, b + d]]
        for number, column, by in lies:
            rows[number % len(rows)][column] = (rows[number % len(rows)][column] + by) % (1 << 32)
        entry = b"".join(struct.pack("<II", *row) + b"sums" * digests for row in rows)
        table = entry + struct.pack("<IBI", (len(rows) + off) % (1 << 32), 0x80 * digests, 0x8F92EAB1)
        same_as_unpacked(blob + struct.pack("<II", 0x184D2A5E, len(table)) + table, ZSTD)

    trial()


def same_as_unpacked(blob: bytes, media_type: str) -> None:
    """`blob` is `TAR` packed somehow: its files are there, also by what is kept of it."""
    reader = CountingReader(blob)
    contents = whole.contents(reader, media_type, lambda found: (entry.detached() for entry in found))
    desc = Descriptor(media_type, Digest.of(blob), len(blob))
    with tempfile.TemporaryDirectory() as root:
        assert kept.keep(Path(root), desc, contents)
        again = kept.load(Path(root), desc)
    assert again is not None
    for found in (contents, again):
        files = {entry.path: entry for entry in found.entries}
        for path, data in FILES.items():
            with found.open(reader, files[path]) as file:
                assert file.readall() == data


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_over_damaged_layers_fills_or_fails_but_is_never_wrong(kind: str) -> None:
    @settings(SETTINGS, max_examples=CASES // 2)
    @given(DAMAGE)
    def trial(damage: list[tuple[int, int]]) -> None:
        data = damaged(made(kind).data, damage, None)

        class Provider:
            def reader_at(self, desc: object, trust: Trust = Trust.BLOB) -> CountingReader:
                if trust is Trust.RAW:
                    return CountingReader(data, trust)
                if data != made(kind).data:
                    raise DigestMismatch("the layer", "a", "b")
                return CountingReader(data)

        seen = Tree([made(kind).desc], Provider(), Trust.ATTESTED)
        for path, content in FILES.items():
            with contextlib.suppress(DigestMismatch, CorruptData), seen.open(path) as file:
                assert file.readall() == content

    trial()
