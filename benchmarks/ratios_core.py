"""The C core and the packing beside what Python offers otherwise: python -m benchmarks.ratios_core [--json] [rounds]

Ours and the references take turns within one process, each round once, and each round gives one ratio of their CPU
times, all threads together; the median of those is printed (above 1: ours is faster), with the quartiles. Absolute
times on a shared machine say little, ratios taken this way repeat within a few per cent.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard
from isal import isal_zlib

from benchmarks.data import gzipped_sample, sample
from blobtee.compression import Compression, decompress, encoder
from blobtee.content import Trust
from blobtee.core import Inflater, Sha256, crc32c, gzip_member, sha256_many, update_many
from blobtee.core.gzindex import MarkingInflater
from blobtee.oci import Descriptor, Digest, mediatypes
from blobtee.seeking import Contents, kept
from blobtee.seeking.checkpoints import SPACING, Indexing

Work = Callable[[], object]
SLOT = 256 << 10
INDEX = "inflate, index made: windows, digests"


def hash_ours(data: memoryview) -> None:
    hasher = Sha256()
    for at in range(0, len(data), SLOT):
        hasher.update(data[at : at + SLOT])
    hasher.digest()


def hash_reference(data: memoryview) -> None:
    hasher = hashlib.sha256()
    for at in range(0, len(data), SLOT):
        hasher.update(data[at : at + SLOT])
    hasher.digest()


def hash_streams_ours(streams: list[memoryview]) -> None:
    hashers = [Sha256() for _ in streams]
    for at in range(0, len(streams[0]), SLOT):
        update_many([(hasher, data[at : at + SLOT]) for hasher, data in zip(hashers, streams, strict=True)])
    for hasher in hashers:
        hasher.digest()


def hash_streams_reference(streams: list[memoryview]) -> None:
    hashers = [hashlib.sha256() for _ in streams]
    for at in range(0, len(streams[0]), SLOT):
        for hasher, data in zip(hashers, streams, strict=True):
            hasher.update(data[at : at + SLOT])
    for hasher in hashers:
        hasher.digest()


def streams_of(n: int) -> list[memoryview]:
    data = memoryview(sample())
    length = (16 << 20) // n // SLOT * SLOT
    return [data[i * length : (i + 1) * length] for i in range(n)]


def files() -> list[memoryview]:
    """As many small files as a layer has: 16 MiB, most of them of some KB."""
    source, data, found, at = random.Random(1), memoryview(sample()), [], 0
    while at < 16 << 20:
        size = int(source.lognormvariate(8.5, 1.5)) + 1
        found.append(data[at : at + size])
        at += size
    return found


def inflate_ours(stream: bytes, in_step: int, out: bytearray) -> None:
    inflater = Inflater()
    view = memoryview(stream)
    for at in range(0, len(view), in_step):
        rest = view[at : at + in_step]
        while True:
            consumed, produced = inflater.inflate_into(rest, out)
            rest = rest[consumed:]
            if not rest and produced < len(out):
                break
    inflater.finish()


def mark_ours(stream: bytes, in_step: int, out: bytearray) -> None:
    inflater = MarkingInflater(SPACING)
    view = memoryview(stream)
    for at in range(0, len(view), in_step):
        rest = view[at : at + in_step]
        while True:
            consumed, produced = inflater.inflate_into(rest, out)
            rest = rest[consumed:]
            if inflater.point() is None and not rest and produced < len(out):
                break
    inflater.finish()


def index_ours(stream: bytes, out: bytearray) -> Contents:
    with Indexing(io.BytesIO(stream)) as unpacked:
        while unpacked.readinto(out):
            pass
        found = unpacked.checkpoints()
    assert found is not None
    return Contents([], found, Trust.BLOB)


def index_nbytes(stream: bytes, out: bytearray) -> int:
    """Bytes of the file that keeps an index of the gzip `stream`, without any list of files."""
    desc = Descriptor(mediatypes.OCI_LAYER + "+gzip", Digest.of(stream), len(stream))
    with tempfile.TemporaryDirectory() as root:
        assert kept.keep(Path(root), desc, index_ours(stream, out))
        return kept.path_of(Path(root), Digest(desc.digest)).stat().st_size


def inflate_reference(module: object, stream: bytes, in_step: int, most: int) -> None:
    decompressor = module.decompressobj(31)  # type: ignore[attr-defined]
    view = memoryview(stream)
    for at in range(0, len(view), in_step):
        rest = view[at : at + in_step]
        while rest:
            decompressor.decompress(rest, most)
            rest = decompressor.unconsumed_tail
    decompressor.flush()
    if not decompressor.eof:
        raise SystemExit("the reference did not reach the end")


def deflate_reference(module: object, data: memoryview, level: int) -> bytes:
    compressor = module.compressobj(level, zlib.DEFLATED, 31)  # type: ignore[attr-defined]
    return bytes(compressor.compress(data) + compressor.flush())


def pack_ours(kind: str, data: memoryview) -> bytes:
    """A layer of `data`, by the calling thread alone."""
    out = bytearray()
    with encoder(Compression(kind), out.extend, threads=1) as packer:
        for at in range(0, len(data), 1 << 20):
            packer.write(data[at : at + (1 << 20)])
        packer.finish()
    return bytes(out)


def unpack_ours(packed: bytes, out: bytearray) -> None:
    with decompress(io.BytesIO(packed)) as stream:
        while stream.readinto(out):
            pass


def zstd_reference(data: memoryview) -> bytes:
    """One frame, as a stream."""
    packer = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    return b"".join(
        [packer.compress(data[at : at + (1 << 20)]) for at in range(0, len(data), 1 << 20)] + [packer.flush()]
    )


def unzstd_reference(packed: bytes, out: bytearray) -> None:
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True)
    while reader.readinto(out):
        pass


def cases() -> dict[str, tuple[Work, dict[str, Work]]]:
    """Name: ours, and the references by name."""
    one = memoryview(sample())[: 16 << 20]
    many = files()
    stream = gzipped_sample(32 << 20)
    member = memoryview(sample())[: 1 << 20]
    out = bytearray(1 << 20)
    found: dict[str, tuple[Work, dict[str, Work]]] = {
        "sha256, one stream": (lambda: hash_ours(one), {"hashlib": lambda: hash_reference(one)}),
    }
    for n in (2, 3, 4, 8):
        streams = streams_of(n)
        found[f"sha256, {n} streams in lanes"] = (
            lambda streams=streams: hash_streams_ours(streams),  # type: ignore[misc]
            {"hashlib": lambda streams=streams: hash_streams_reference(streams)},  # type: ignore[misc]
        )
    found[f"sha256_many, {len(many)} small files"] = (
        lambda: sha256_many(many),
        {"hashlib": lambda: [hashlib.sha256(data).digest() for data in many]},
    )
    found["crc32c, 16 MiB (references: CRC-32)"] = (
        lambda: crc32c(one),
        {"zlib": lambda: zlib.crc32(one), "isal": lambda: isal_zlib.crc32(one)},
    )
    for in_step in (64 << 10, 1 << 20):
        found[f"inflate, {in_step >> 10} KiB in, 1 MiB out"] = (
            lambda step=in_step: inflate_ours(stream, step, out),  # type: ignore[misc]
            {
                "zlib": lambda step=in_step: inflate_reference(zlib, stream, step, len(out)),  # type: ignore[misc]
                "isal": lambda step=in_step: inflate_reference(isal_zlib, stream, step, len(out)),  # type: ignore[misc]
            },
        )
    found["inflate, points found each 1 MiB"] = (
        lambda: mark_ours(stream, 1 << 20, out),
        {"alone": lambda: inflate_ours(stream, 1 << 20, out)},
    )
    found[INDEX] = (
        lambda: index_ours(stream, out),
        {"alone": lambda: inflate_ours(stream, 1 << 20, out)},
    )
    found["gzip_member, 1 MiB, level 6 (isal: its level 3)"] = (
        lambda: gzip_member(member, 6),
        {"zlib": lambda: deflate_reference(zlib, member, 6), "isal": lambda: deflate_reference(isal_zlib, member, 3)},
    )
    layer = memoryview(sample())[: 8 << 20]
    found["pack 8 MiB as gzip, one thread"] = (
        lambda: pack_ours("gzip", layer),
        {"zlib": lambda: deflate_reference(zlib, layer, 6)},
    )
    found["pack 8 MiB as zstd, one thread"] = (
        lambda: pack_ours("zstd", layer),
        {"zstandard": lambda: zstd_reference(layer)},
    )
    our_gzip, our_zstd, foreign_zstd = pack_ours("gzip", layer), pack_ours("zstd", layer), zstd_reference(layer)
    found["unpack gzip of ours, one thread"] = (
        lambda: unpack_ours(our_gzip, out),
        {"zlib": lambda: inflate_reference(zlib, gzipped_sample(8 << 20), 1 << 20, len(out))},
    )
    for name, packed in (("zstd of ours", our_zstd), ("a foreign zstd", foreign_zstd)):
        found[f"unpack {name}, one thread"] = (
            lambda packed=packed: unpack_ours(packed, out),  # type: ignore[misc]
            {"zstandard": lambda packed=packed: unzstd_reference(packed, out)},  # type: ignore[misc]
        )
    return found


def ratios(
    ours: Work, references: dict[str, Work], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """By reference: its time over ours, one figure a round, sorted. The order of turns changes with each round.

    Unless `clock` says otherwise it is the CPU time of all threads together."""

    def seconds(work: Work) -> float:
        begin = clock()
        work()
        return clock() - begin

    works = {"": ours} | references
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in references}
    names = list(works)
    for _ in range(rounds):
        names.append(names.pop(0))
        taken = {name: seconds(works[name]) for name in names}
        for name in references:
            found[name].append(taken[name] / taken[""])
    return {name: sorted(values) for name, values in found.items()}


def show(name: str, found: dict[str, list[float]]) -> None:
    for reference, values in found.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:52} {reference:8} {median:6.2f}  {low:.2f}..{high:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratios_core", description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=25)
    parser.add_argument("--json", action="store_true", help="the medians alone")
    options = parser.parse_args()
    rounds = options.rounds
    if options.json:
        medians = {
            f"{name} / {reference}": statistics.median(values)
            for name, (ours, references) in cases().items()
            for reference, values in ratios(ours, references, rounds).items()
        }
        print(json.dumps(medians))
        return
    print(f"{'ours over the reference, CPU time':52} {'':8} median  quartiles")
    found = cases()
    for name, (ours, references) in found.items():
        show(name, ratios(ours, references, rounds))
    show(f"{INDEX}, wall clock", ratios(*found[INDEX], rounds, time.perf_counter))
    member = memoryview(sample())[: 1 << 20]
    ours_nbytes = len(gzip_member(member, 6))
    for name, module, level in (("zlib", zlib, 6), ("isal", isal_zlib, 3)):
        theirs = len(deflate_reference(module, member, level))
        print(f"{'gzip_member, 1 MiB, level 6: size over':52} {name:8} {ours_nbytes / theirs:6.3f}")
    packed = gzipped_sample()
    ratio = index_nbytes(packed, bytearray(1 << 20)) / len(packed)
    print(f"{'index of a gzip, a point each 1 MiB: size over':52} {'blob':8} {ratio:6.4f}")


if __name__ == "__main__":
    main()
