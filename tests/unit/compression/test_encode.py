from __future__ import annotations

import gzip
import hashlib
import io
import random
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from blobtee.compression import Compression, Encoder, decompress, encoder
from blobtee.compression.encode import GZIP_PIECE, MAX_PACKED, ZSTD_PIECE, Packed
from blobtee.core import SIZED_HEADER_NBYTES, sized_member_nbytes
from blobtee.errors import Cancelled, Closed, InvalidArgument, StorageFull
from blobtee.tasks import scope

KINDS = ["uncompressed", "gzip", "zstd"]
PACKED = ["gzip", "zstd"]
DATA = random.Random(1).randbytes(3 << 20) + b"text and more of it, " * 500_000


def pack(kind: str, data: bytes = DATA, *, threads: int | None = None, level: int = -1, step: int = 1 << 18) -> bytes:
    out = bytearray()
    with encoder(Compression(kind, level=level), out.extend, threads=threads) as packer:
        for start in range(0, len(data), step):
            assert packer.write(data[start : start + step]) == len(data[start : start + step])
        packer.finish()
    return bytes(out)


def unpack(packed: bytes) -> bytes:
    with decompress(io.BytesIO(packed)) as stream:
        return io.BufferedReader(stream).read()


def blobtee_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("blobtee-encoder")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    yield
    assert not blobtee_threads()


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_comes_out(kind: str) -> None:
    assert unpack(pack(kind)) == DATA


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_lengths_around_a_piece(kind: str, extra: int) -> None:
    for pieces in (1, 2):
        data = DATA[: pieces * (GZIP_PIECE if kind == "gzip" else ZSTD_PIECE) + extra]
        assert unpack(pack(kind, data)) == data


@pytest.mark.parametrize("kind", PACKED)
def test_the_bytes_depend_neither_on_threads_nor_on_how_it_was_written(kind: str) -> None:
    expected = pack(kind, threads=1, step=len(DATA))
    for threads, step in ((2, 1 << 20), (3, 77_777), (7, len(DATA)), (None, 5 << 20)):
        assert pack(kind, threads=threads, step=step) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_a_valid_stream_of_nothing(kind: str) -> None:
    packed = pack(kind, b"")
    assert unpack(packed) == b""
    assert bool(packed) == (kind != "uncompressed")
    if kind == "gzip":
        assert gzip.decompress(packed) == b""


def test_gzip_is_members_that_say_their_length() -> None:
    text = DATA[3 << 20 :]
    packed, at, lengths = pack("gzip", text), 0, []
    while at < len(packed):
        assert packed[at + 4 : at + 10] == b"\0\0\0\0\0\xff"  # no time, no system
        nbytes = sized_member_nbytes(packed[at : at + SIZED_HEADER_NBYTES])
        assert nbytes is not None
        lengths.append(len(gzip.decompress(packed[at : at + nbytes])))
        at += nbytes
    assert lengths == [GZIP_PIECE] * (len(text) // GZIP_PIECE) + [len(text) % GZIP_PIECE]


@pytest.mark.parametrize("kind", PACKED)
def test_what_hardly_packs_is_cut_smaller(kind: str) -> None:
    told: list[Packed] = []

    def index(pieces: Sequence[Packed]) -> bytes:
        told.extend(pieces)
        return b""

    out = bytearray()
    with encoder(Compression(kind), out.extend, index=index) as packer:
        packer.write(DATA)
        packer.finish()
    assert bytes(out) == pack(kind)
    assert max(piece.packed_nbytes for piece in told) <= MAX_PACKED
    assert sum(piece.nbytes for piece in told) == len(DATA)
    assert {piece.nbytes for piece in told[:6]} == {512 << 10}
    at = 0
    for piece in told:
        assert piece.digest == hashlib.sha256(out[at : at + piece.packed_nbytes]).digest()
        at += piece.packed_nbytes


@pytest.mark.parametrize("kind", PACKED)
def test_an_index_comes_behind_the_pieces_where_decoders_pass_over_it(kind: str) -> None:
    inserted = gzip.compress(b"", mtime=0) if kind == "gzip" else struct.pack("<II", 0x184D2A5B, 3) + b"abc"
    out = bytearray()
    with encoder(Compression(kind), out.extend, index=lambda pieces: inserted) as packer:
        packer.write(DATA)
        packer.finish()
    without = pack(kind)
    end = len(without) if kind == "gzip" else without.rindex(struct.pack("<I", 0x184D2A5E))
    assert bytes(out) == without[:end] + inserted + without[end:]
    assert unpack(bytes(out)) == DATA


def test_zstd_is_frames_and_a_seek_table() -> None:
    packed = pack("zstd")
    frames, flags, magic = struct.unpack("<IBI", packed[-9:])
    assert (flags, magic) == (0, 0x8F92EAB1)
    table = packed[-9 - 8 * frames : -9]
    assert struct.unpack("<II", packed[-17 - 8 * frames : -9 - 8 * frames]) == (0x184D2A5E, len(table) + 9)
    at, whole = 0, b""
    for packed_nbytes, nbytes in struct.iter_unpack("<II", table):
        frame = packed[at : at + packed_nbytes]
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.content_size == nbytes
        assert parameters.has_checksum
        whole += zstandard.ZstdDecompressor().decompress(frame)
        at += packed_nbytes
    assert at == len(packed) - 17 - 8 * frames
    assert whole == DATA


@pytest.mark.parametrize(("kind", "tool"), [("gzip", ["gzip", "-dc"]), ("zstd", ["zstd", "-dc"])])
def test_the_formats_own_tools_read_it(kind: str, tool: list[str]) -> None:
    for data in (b"", DATA[: 2 << 20], DATA):
        assert subprocess.run(tool, input=pack(kind, data), capture_output=True, check=True).stdout == data


@pytest.mark.parametrize("level", range(13))
def test_each_gzip_level(level: int) -> None:
    data = DATA[(3 << 20) - 50_000 :][:100_000]
    assert gzip.decompress(pack("gzip", data, level=level)) == data


@pytest.mark.parametrize("level", range(1, 23))
def test_each_zstd_level(level: int) -> None:
    data = DATA[(3 << 20) - 50_000 :][:100_000]
    assert unpack(pack("zstd", data, level=level)) == data


def test_level_0_of_gzip_is_stored() -> None:
    data = bytes(100_000)
    assert len(pack("gzip", data, level=0)) > len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_consumer_gets_bounded_pieces_in_one_thread_that_it_may_not_keep(kind: str) -> None:
    sizes, threads, kept = [], set(), []

    def consume(piece: memoryview) -> None:
        sizes.append(len(piece))
        threads.add(threading.get_ident())
        kept.append(piece)

    with encoder(Compression(kind), consume, threads=3) as packer:
        packer.write(DATA)
        packer.finish()
    assert max(sizes) <= ZSTD_PIECE + 1000
    assert threads == {threading.get_ident()}
    for piece in kept:
        with pytest.raises(ValueError, match="released"):
            bytes(piece)


def write_much(packer: Encoder) -> None:
    for _ in range(40):
        packer.write(DATA)


def write_little(kind: str, threads: int) -> None:
    with encoder(Compression(kind), full, threads=threads) as packer:
        packer.write(b"little")
        packer.finish()


def full(piece: memoryview) -> None:
    raise StorageFull("no room")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_the_consumer_comes_out_and_is_final(kind: str, threads: int) -> None:
    with encoder(Compression(kind), full, threads=threads) as packer:
        with pytest.raises(StorageFull):
            write_much(packer)
        for _ in range(2):
            with pytest.raises(Closed):
                packer.write(b"x")
            with pytest.raises(Closed):
                packer.finish()
    with pytest.raises(StorageFull):
        write_little(kind, threads)


@pytest.mark.parametrize("kind", PACKED)
def test_leaving_early_leaves_no_thread_and_delivers_no_more(kind: str) -> None:
    out: list[int] = []
    with encoder(Compression(kind), lambda piece: out.append(len(piece)), threads=3) as packer:
        packer.write(DATA)
        assert blobtee_threads()
        before = list(out)
    assert not blobtee_threads()
    assert out == before
    packer.close()
    with pytest.raises(Closed):
        packer.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_encoder_stops(kind: str) -> None:
    with scope() as cancellation, encoder(Compression(kind), lambda piece: None, threads=2) as packer:
        packer.write(DATA)
        cancellation.cancel()
        with pytest.raises(Cancelled):
            packer.write(DATA)
    with scope() as cancellation, encoder(Compression(kind), lambda piece: cancellation.cancel(), threads=2) as packer:
        with pytest.raises(Cancelled):
            write_much(packer)


def test_little_input_starts_no_thread() -> None:
    with encoder(Compression("gzip"), lambda piece: None, threads=4) as packer:
        packer.write(bytes(GZIP_PIECE))
        assert not blobtee_threads()
        packer.finish()


@pytest.mark.parametrize("kind", PACKED)
def test_a_system_without_threads_costs_time_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pack(kind)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert pack(kind, threads=4) == expected


def test_what_is_no_stream_of_bytes_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="estargz"):
        encoder(Compression("estargz"), lambda piece: None)
    for threads in (0, -1):
        with pytest.raises(InvalidArgument, match="thread"):
            encoder(Compression("gzip"), lambda piece: None, threads=threads)


def test_any_contiguous_buffer_is_bytes() -> None:
    out = bytearray()
    with encoder(Compression("gzip"), out.extend) as packer:
        assert packer.write(memoryview(bytes(8)).cast("I")) == 8
        assert packer.write(b"") == 0
        packer.finish()
    assert gzip.decompress(out) == bytes(8)


def test_a_file_is_a_consumer(tmp_path: Path) -> None:
    with open(tmp_path / "layer", "wb") as file:
        packer: Encoder
        with encoder(Compression("zstd"), file.write) as packer:
            packer.write(DATA)
            packer.finish()
    assert unpack((tmp_path / "layer").read_bytes()) == DATA
