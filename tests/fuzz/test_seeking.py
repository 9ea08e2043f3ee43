"""Damaged layers, damaged and made-up tables: the right bytes or one of our errors, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import random

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobtee.compression import decompress
from blobtee.content import Trust
from blobtee.errors import BlobteeError, CorruptData, DigestMismatch
from blobtee.image import Tree
from blobtee.layers import EntryType, entries
from blobtee.oci import mediatypes
from blobtee.seeking import Contents, tables, toc, whole
from tests.fuzz.test_tar import INTERESTING
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import GZIP, ZSTD, Blob
from tests.unit.seeking.support import CountingReader

KEYS = ["type", "name", "size", "offset", "endOffset", "innerOffset", "chunkSize", "chunkOffset", "chunkDigest"]
KEYS += ["digest", "chunkType", "linkName", "modtime", "xattrs", "uid", "mode", "devMajor"]
FILES = {"a/conf": b"setting\n", "b": random.Random(1).randbytes(300_000), "c": b"text and text " * 2000, "e": b""}
TAR = blobs.tar(FILES)
KINDS = ("gzip", "zstd", "estargz", "containers", "stargz")
SETTINGS = settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), database=None)
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

    @settings(SETTINGS, max_examples=100)
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
@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_over_damaged_layers_fills_or_fails_but_is_never_wrong(kind: str) -> None:
    @settings(SETTINGS, max_examples=300)
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
