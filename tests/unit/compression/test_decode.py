from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.compression import decompress
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    ConnectionFailed,
    CorruptData,
    TooLarge,
    UnsupportedMediaType,
)
from blobtee.oci.mediatypes import OCI_LAYER
from blobtee.tasks import scope

DATA = random.Random(1).randbytes(300_000) + b"text " * 200_000
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"other"


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


def unpack(packed: bytes, media_type: str | None = None, max_output: int | None = None) -> bytes:
    with decompress(io.BytesIO(packed), media_type, max_output=max_output) as stream:
        return io.BufferedReader(stream).read()


def drain(stream: io.RawIOBase) -> None:
    while stream.read(1 << 20):
        pass


class Dribble(io.RawIOBase):
    def __init__(self, data: bytes, n: int) -> None:
        super().__init__()
        self._file = io.BytesIO(data)
        self._n = n

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        return self._file.read(min(n, self._n))


WHOLE = {
    "plain": (DATA, DATA),
    "empty": (b"", b""),
    "gzip": (gzip.compress(DATA), DATA),
    "gzip of nothing": (gzip.compress(b""), b""),
    "gzip members": (gzip.compress(DATA) + gzip.compress(b"") + gzip.compress(b"more"), DATA + b"more"),
    "gzip and zeros": (gzip.compress(DATA) + bytes(5000), DATA),
    "zstd": (zstd(DATA), DATA),
    "zstd of nothing": (zstd(b""), b""),
    "zstd with a checksum": (zstd(DATA, write_checksum=True), DATA),
    "zstd without a size": (zstd(DATA, write_content_size=False), DATA),
    "zstd frames": (zstd(DATA) + zstd(b"") + zstd(b"more", write_checksum=True), DATA + b"more"),
    "zstd and skippable frames": (SKIPPABLE + zstd(DATA) + SKIPPABLE * 2 + zstd(b"more") + SKIPPABLE, DATA + b"more"),
    "only a skippable frame": (SKIPPABLE, b""),
}


@pytest.mark.parametrize("name", WHOLE)
def test_each_format_comes_out_whole(name: str) -> None:
    packed, data = WHOLE[name]
    assert unpack(packed) == data


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("n", [1, 1000])
def test_short_reads_change_nothing(name: str, n: int) -> None:
    packed, data = WHOLE[name]
    if n == 1:
        packed, data = packed[:0], b""
    with decompress(Dribble(packed, n)) as stream:
        assert io.BufferedReader(stream).read() == data


def test_bytes_one_at_a_time() -> None:
    small = b"some text" * 10
    for packed in (gzip.compress(small) * 2, SKIPPABLE + zstd(small, write_checksum=True) * 2):
        with decompress(Dribble(packed, 1)) as stream:
            out = b""
            while piece := stream.read(1):
                out += piece
        assert out == small * 2


@pytest.mark.parametrize("name", ["gzip", "gzip members", "zstd", "zstd with a checksum", "zstd frames"])
def test_what_breaks_off_anywhere_is_corrupt(name: str) -> None:
    packed, data = WHOLE[name]
    frames_end = {"gzip members": [len(gzip.compress(DATA)), len(gzip.compress(DATA) + gzip.compress(b""))]}
    frames_end["zstd frames"] = [len(zstd(DATA)), len(zstd(DATA) + zstd(b""))]
    for cut in [*range(1, 40), len(packed) // 2, *range(len(packed) - 40, len(packed))]:
        if cut in frames_end.get(name, []):
            assert data.startswith(unpack(packed[:cut]))
        elif cut < 4:
            with pytest.raises(CorruptData):
                unpack(packed[:cut], OCI_LAYER + ("+gzip" if "gzip" in name else "+zstd"))
        else:
            with pytest.raises(CorruptData):
                unpack(packed[:cut])


@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd with a checksum"])
def test_garbage_behind_is_corrupt(name: str) -> None:
    packed, _ = WHOLE[name]
    with pytest.raises(CorruptData):
        unpack(packed + b"garbage")
    with pytest.raises(CorruptData):
        unpack(packed + b"g")


def test_flipped_bits_are_found_where_there_is_a_checksum() -> None:
    for name in ("gzip", "zstd with a checksum"):
        packed = bytearray(WHOLE[name][0])
        packed[len(packed) // 2] ^= 1
        with pytest.raises(CorruptData):
            unpack(bytes(packed))


def test_after_a_failure_nothing_more_comes() -> None:
    stream = decompress(io.BytesIO(gzip.compress(DATA)[:-4]))
    with stream, pytest.raises(CorruptData):
        io.BufferedReader(stream).read()
    stream = decompress(io.BytesIO(zstd(DATA)[:-4]))
    for _ in range(2):
        with pytest.raises(CorruptData):
            drain(stream)
    stream.close()


def test_the_bytes_decide_but_a_compressed_type_must_be_compressed() -> None:
    assert unpack(zstd(DATA), OCI_LAYER + "+gzip") == DATA
    assert unpack(gzip.compress(DATA), OCI_LAYER) == DATA
    assert unpack(b"", OCI_LAYER + "+gzip") == b""
    with pytest.raises(CorruptData, match="media type"):
        unpack(b"plain text", OCI_LAYER + "+gzip")
    with pytest.raises(UnsupportedMediaType):
        unpack(b"", "text/plain")


def test_output_is_capped_on_request() -> None:
    for packed in (DATA, gzip.compress(DATA), zstd(DATA)):
        assert unpack(packed, max_output=len(DATA)) == DATA
        with pytest.raises(TooLarge):
            unpack(packed, max_output=len(DATA) - 1)


def test_a_frame_that_needs_a_dictionary_is_refused_clearly() -> None:
    dictionary = zstandard.train_dictionary(2000, [b"sample %d of some text" % n for n in range(2000)])
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"sample 77 of some text")
    with pytest.raises(CorruptData, match="dictionary"):
        unpack(packed)


def test_a_window_above_the_limit_is_refused_clearly() -> None:
    # A header that asks for a window of 256 MiB (RFC 8878 3.1.1.1.2), and one raw block.
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([18 << 3]) + (1 | 3 << 3).to_bytes(3, "little") + b"abc"
    with pytest.raises(CorruptData, match="window"):
        unpack(frame)
    allowed = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([17 << 3]) + (1 | 3 << 3).to_bytes(3, "little") + b"abc"
    assert unpack(allowed) == b"abc"


def bomb(kind: str) -> bytes:
    zeros = bytes(1 << 20)
    if kind == "gzip":
        packer = zlib.compressobj(9, wbits=31)
        return b"".join(packer.compress(zeros) for _ in range(512)) + packer.flush()
    # 4096 blocks that say "128 KiB of zeros" in four bytes.
    block = (1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | 1 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([7 << 3]) + block * 4096 + last


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_memory_does_not_follow_what_comes_out(kind: str) -> None:
    packed = bomb(kind)
    buffer = bytearray(1 << 16)
    tracemalloc.start()
    try:
        total = 0
        with decompress(io.BytesIO(packed)) as stream:
            while n := stream.readinto(buffer):
                total += n
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total >= 512 << 20
    assert peak < 3 << 20


class Failing(io.RawIOBase):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def read(self, n: int = -1) -> bytes:
        raise self._error


def test_errors_of_the_source_are_ours_or_become_so() -> None:
    with decompress(Failing(ConnectionFailed("gone"))) as stream, pytest.raises(ConnectionFailed):
        stream.read(1)
    with decompress(Failing(OSError("disk"))) as stream, pytest.raises(CorruptData, match="disk"):
        stream.read(1)


def test_closing_closes_the_source_and_ends_reading() -> None:
    source = io.BytesIO(gzip.compress(DATA))
    stream = decompress(source)
    assert stream.read(3) == DATA[:3]
    stream.close()
    stream.close()
    assert source.closed
    with pytest.raises((Closed, ValueError)):
        stream.read(1)


def test_decoding_ends_when_the_work_is_cancelled() -> None:
    for packed in (gzip.compress(DATA), zstd(DATA)):
        with scope() as cancellation, decompress(io.BytesIO(packed)) as stream:
            stream.read(10)
            cancellation.cancel()
            with pytest.raises(Cancelled):
                drain(stream)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.sampled_from([gzip.compress(b"abc" * 500), SKIPPABLE + zstd(os.urandom(200) + b"abc" * 500) * 2]),
    damage=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.none() | st.integers(0, 2000),
)
def test_damaged_streams_end_in_our_errors(seed: bytes, damage: list[tuple[int, int]], cut: int | None) -> None:
    packed = bytearray(seed)
    for position, value in damage:
        packed[position % len(packed)] = value
    with contextlib.suppress(BlobteeError):
        unpack(bytes(packed[:cut]), max_output=64 << 20)
