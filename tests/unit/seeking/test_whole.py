"""Blobs that are here whole: what the tar says, whatever else the blob says of itself."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import pytest
import zstandard

from blobtee.compression import decompress
from blobtee.content import Trust
from blobtee.core import gzip_member
from blobtee.errors import CorruptData, UnsupportedMediaType
from blobtee.layers import Entry, entries
from blobtee.oci import mediatypes
from blobtee.seeking import Contents, SpannedStream, whole
from blobtee.seeking.checkpoints import Checkpoints
from blobtee.seeking.pieces import Pieces
from blobtee.seeking.plain import Plain
from blobtee.seeking.streamed import Streamed
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import FILES, GZIP, ZSTD
from tests.unit.seeking.support import CountingReader

TAR = blobs.tar()
HALF = len(TAR) // 2


def detached(found: Iterator[Entry]) -> Iterator[Entry]:
    return (entry.detached() for entry in found)


def opened(data: bytes, media_type: str, trust: Trust = Trust.BLOB) -> tuple[Contents, CountingReader]:
    reader = CountingReader(data, trust)
    contents = whole.contents(reader, media_type, detached)
    assert contents.told is trust
    expected = [entry.detached() for entry in entries(io.BytesIO(TAR))]
    assert list(contents.entries) == expected
    for entry in contents.entries:
        if entry.path in FILES:
            with contents.open(reader, entry) as file:
                assert file.readall() == FILES[entry.path]
    reader.reads.clear()
    return contents, reader


def small(contents: Contents, reader: CountingReader) -> int:
    """Bytes that are read for a small file in the middle."""
    entry = next(entry for entry in contents.entries if entry.path == "bin/small")
    with contents.open(reader, entry) as file:
        assert file.readall() == FILES["bin/small"]
    return reader.nbytes


def test_a_plain_tar_is_walked_by_its_headers() -> None:
    reader = CountingReader(TAR, Trust.RAW)
    contents = whole.contents(reader, mediatypes.OCI_LAYER, detached)
    assert contents.trust(Trust.RAW) is Trust.RAW
    assert max(nbytes for _, nbytes in reader.reads) <= 64 << 10
    assert reader.nbytes < 600 << 10, "the large files were passed over"
    contents, reader = opened(TAR, mediatypes.OCI_LAYER)
    assert isinstance(contents.stream, Plain)
    assert small(contents, reader) == len(FILES["bin/small"])


@pytest.mark.parametrize(("path", "missing"), [("bin/large", 1 << 20), ("bin/large", 1), ("share/text", 5)])
def test_a_plain_tar_that_ends_in_what_is_passed_over_is_damaged(path: str, missing: int) -> None:
    entry = next(entry for entry in entries(io.BytesIO(TAR)) if entry.path == path)
    broken = TAR[: entry.offset + entry.size - missing]
    with pytest.raises(CorruptData):
        whole.contents(CountingReader(broken), mediatypes.OCI_LAYER, detached)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_layers_of_ours_are_read_by_pieces(kind: str) -> None:
    made = blobs.ours(kind, TAR)
    contents, reader = opened(made.data, made.desc.media_type)
    assert isinstance(contents.stream, Pieces)
    assert contents.trust(Trust.BLOB) is Trust.BLOB
    assert small(contents, reader) < 1 << 20


def test_estargz_of_ours_is_read_by_pieces_its_table_being_one() -> None:
    made = blobs.ours("estargz", TAR)
    reader = CountingReader(made.data)
    contents = whole.contents(reader, GZIP, detached)
    assert isinstance(contents.stream, Pieces)
    reader.reads.clear()
    assert small(contents, reader) < 10_000


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (zstandard.ZstdCompressor().compress(TAR), ZSTD),
        (blobs.skippable(b"first") + zstandard.ZstdCompressor().compress(TAR), ZSTD),
    ],
)
def test_other_layers_are_read_from_their_start(data: bytes, media_type: str) -> None:
    contents, reader = opened(data, media_type)
    assert isinstance(contents.stream, Streamed)
    assert small(contents, reader) > 0


@pytest.mark.parametrize(
    "data", [gzip.compress(TAR), gzip.compress(TAR[:HALF]) + gzip.compress(TAR[HALF:]) + bytes(100)]
)
def test_any_other_gzip_is_read_from_points(data: bytes) -> None:
    contents, reader = opened(data, GZIP)
    assert isinstance(contents.stream, Checkpoints)
    assert small(contents, reader) < 1_200_000
    raw = whole.contents(CountingReader(data, Trust.RAW), GZIP, detached)
    assert isinstance(raw.stream, Streamed), "digests of bytes that nobody checked would prove nothing"


def seekable(frames: list[tuple[bytes, int]], *, between: bytes = b"", checksums: bool = False) -> bytes:
    table = b"".join(struct.pack("<II", len(frame), nbytes) + bytes(4 * checksums) for frame, nbytes in frames)
    footer = struct.pack("<IBI", len(frames), 0x80 * checksums, 0x8F92EAB1)
    head = struct.pack("<II", 0x184D2A5E, len(table) + len(footer))
    return b"".join(frame for frame, _ in frames) + between + head + table + footer


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


FRAMES = [(frame(TAR[:HALF]), HALF), (frame(TAR[HALF:]), len(TAR) - HALF)]


@pytest.mark.parametrize(
    "data",
    [
        seekable(FRAMES),
        seekable(FRAMES, checksums=True),
        seekable([FRAMES[0], (blobs.skippable(b"x"), 0), FRAMES[1], (frame(b""), 0)]),
        seekable(FRAMES, between=blobs.skippable(b"an index of ours, say")),
    ],
)
def test_any_seek_table_that_tells_the_truth_is_used(data: bytes) -> None:
    contents, _ = opened(data, ZSTD)
    assert isinstance(contents.stream, SpannedStream)


@pytest.mark.parametrize(
    "data",
    [
        seekable([(FRAMES[0][0], HALF - 1), FRAMES[1]]),
        seekable([(FRAMES[0][0], HALF + 1), FRAMES[1]]),
        seekable([(FRAMES[0][0] + FRAMES[1][0], len(TAR))]),
        seekable([FRAMES[0]], between=FRAMES[1][0]),
        seekable([(FRAMES[0][0][:-9], HALF), (FRAMES[0][0][-9:] + FRAMES[1][0], len(TAR) - HALF)]),
        seekable(FRAMES)[:-4] + b"\xb1\xea\x92\x8e",
        seekable([(FRAMES[0][0], HALF), (blobs.skippable(b"x")[:-1], 0), (b"x" + FRAMES[1][0], len(TAR) - HALF)]),
    ],
)
def test_a_seek_table_that_lies_is_not_believed(data: bytes) -> None:
    if data.endswith(b"\x8e"):
        data = data[: -len(seekable(FRAMES)) + sum(len(frame) for frame, _ in FRAMES)]
    contents, _ = opened(data, ZSTD)
    assert isinstance(contents.stream, Streamed)


def test_members_that_lie_about_their_length_are_not_believed() -> None:
    honest = [gzip_member(TAR[start : start + 700_000], sized=True) for start in range(0, len(TAR), 700_000)]
    contents, _ = opened(b"".join(honest), GZIP)
    assert isinstance(contents.stream, Pieces)
    contents, _ = opened(b"".join(honest[:-1]) + gzip.compress(TAR[700_000 * (len(honest) - 1) :]), GZIP)
    assert isinstance(contents.stream, Pieces), "the rest is one more piece"
    joined = honest[0] + honest[1]
    nbytes = struct.pack("<I", len(joined) - 28)
    lying = joined[:16] + nbytes + joined[20:] + b"".join(honest[2:])
    assert zlib.decompress(lying, 31) == TAR[:700_000]
    contents, _ = opened(lying, GZIP)
    assert isinstance(contents.stream, Checkpoints)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_what_is_not_what_its_type_says_is_refused(kind: str) -> None:
    media_type = mediatypes.OCI_LAYER + "+" + kind
    for data in (TAR, b"x", blobs.noise(1000)):
        with pytest.raises(CorruptData):
            whole.contents(CountingReader(data), media_type, detached)
    with pytest.raises(CorruptData):
        whole.contents(CountingReader(blobs.ours(kind, TAR).data[: 1 << 20]), media_type, detached)
    assert whole.contents(CountingReader(b""), media_type, detached).entries == []
    with pytest.raises(UnsupportedMediaType):
        whole.contents(CountingReader(b""), "text/plain", detached)


@pytest.mark.parametrize("kind", ["ours", "any"])
@pytest.mark.parametrize("place", [-1, -5])
def test_damage_behind_the_tar_stands_in_nobodys_way(kind: str, place: int) -> None:
    """A length or a CRC that is wrong, of data that no file is made of: an ordinary decoder does not come to it."""
    made = blobs.ours("gzip", TAR).data if kind == "ours" else gzip.compress(TAR)
    data = bytearray(made + gzip.compress(bytes(1000)))
    data[place] ^= 1
    contents, _ = opened(bytes(data), GZIP)
    assert not isinstance(contents.stream, Checkpoints)


@pytest.mark.parametrize("place", [-1, -5])
def test_damage_of_the_tars_own_bytes_is_for_the_decoder_to_find(place: int) -> None:
    data = bytearray(gzip.compress(TAR))
    data[place] ^= 1
    damaged = bytes(data)
    try:
        with decompress(io.BytesIO(damaged), GZIP) as unpacked:
            expected = [entry.detached() for entry in entries(unpacked)]
    except CorruptData:
        expected = None
    if expected is None:
        with pytest.raises(CorruptData):
            whole.contents(CountingReader(damaged), GZIP, detached)
    else:
        assert list(whole.contents(CountingReader(damaged), GZIP, detached).entries) == expected
