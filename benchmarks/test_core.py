"""The C core's hot paths beside hashlib, zlib and python-isal. What is claimed comes from ratios_core.py; this is the
table over time."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from isal import isal_zlib
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.data import gzipped_sample, sample
from benchmarks.ratios_core import (
    deflate_reference,
    files,
    hash_ours,
    hash_reference,
    hash_streams_ours,
    hash_streams_reference,
    inflate_ours,
    inflate_reference,
    streams_of,
)
from blobtee.core import crc32c, gzip_member, sha256_many

MIB = 1 << 20


@pytest.mark.benchmark(group="sha256: one stream, 16 MiB")
@pytest.mark.parametrize("by", ["blobtee", "hashlib"])
def test_sha256_one_stream(benchmark: BenchmarkFixture, by: str) -> None:
    data = memoryview(sample())[: 16 * MIB]
    benchmark(hash_ours if by == "blobtee" else hash_reference, data)


@pytest.mark.parametrize("by", ["blobtee", "hashlib"])
@pytest.mark.parametrize(
    "n", [pytest.param(n, marks=pytest.mark.benchmark(group=f"sha256: {n} streams, 16 MiB in all")) for n in (2, 3, 8)]
)
def test_sha256_streams(benchmark: BenchmarkFixture, n: int, by: str) -> None:
    benchmark(hash_streams_ours if by == "blobtee" else hash_streams_reference, streams_of(n))


@pytest.mark.benchmark(group="sha256: small files, 16 MiB in all")
@pytest.mark.parametrize("by", ["blobtee", "hashlib"])
def test_sha256_files(benchmark: BenchmarkFixture, by: str) -> None:
    many = files()
    if by == "blobtee":
        benchmark(sha256_many, many)
    else:
        benchmark(lambda: [hashlib.sha256(data).digest() for data in many])


@pytest.mark.benchmark(group="crc32c: 16 MiB (zlib, isal: CRC-32)")
@pytest.mark.parametrize("by", ["blobtee", "zlib", "isal"])
def test_crc32c(benchmark: BenchmarkFixture, by: str) -> None:
    data = memoryview(sample())[: 16 * MIB]
    benchmark({"blobtee": crc32c, "zlib": zlib.crc32, "isal": isal_zlib.crc32}[by], data)


@pytest.mark.parametrize("by", ["blobtee", "zlib", "isal"])
@pytest.mark.parametrize(
    "in_kib",
    [pytest.param(n, marks=pytest.mark.benchmark(group=f"inflate: gzip -6 of 32 MiB, {n} KiB in")) for n in (64, 1024)],
)
def test_inflate(benchmark: BenchmarkFixture, in_kib: int, by: str) -> None:
    stream = gzipped_sample(32 * MIB)
    if by == "blobtee":
        benchmark(inflate_ours, stream, in_kib << 10, bytearray(MIB))
    else:
        benchmark(inflate_reference, zlib if by == "zlib" else isal_zlib, stream, in_kib << 10, MIB)


@pytest.mark.benchmark(group="gzip_member: 1 MiB, level 6 (isal: 3)")
@pytest.mark.parametrize("by", ["blobtee", "zlib", "isal"])
def test_gzip_member(benchmark: BenchmarkFixture, by: str) -> None:
    data = memoryview(sample())[:MIB]
    if by == "blobtee":
        benchmark(gzip_member, data, 6)
    else:
        benchmark(deflate_reference, zlib if by == "zlib" else isal_zlib, data, 6 if by == "zlib" else 3)
