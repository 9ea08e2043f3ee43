"""The store beside plain files: ingest, small reads, walking. Pairs of one group are compared as ratios."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from blobtee.content import LocalStore
from blobtee.oci import Descriptor, Digest

MIB = 1 << 20
SIZE = 128 * MIB
BLOBS = 10_000


@pytest.fixture(scope="module")
def piece() -> bytes:
    return random.Random(1).randbytes(MIB)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, piece: bytes) -> Iterator[tuple[LocalStore, Descriptor, Path]]:
    with LocalStore(tmp_path_factory.mktemp("filled")) as store:
        with store.writer("ref") as writer:
            for _ in range(16):
                writer.write(piece)
            info = writer.commit()
        path = store.root / "blobs" / "sha256" / info.digest.hex
        yield store, Descriptor("", info.digest, info.size), path


@pytest.mark.benchmark(group="content: ingest 128 MiB, synced")
def test_ingest_store(benchmark: BenchmarkFixture, tmp_path: Path, piece: bytes) -> None:
    hashed = hashlib.sha256()
    for _ in range(SIZE // MIB):
        hashed.update(piece)
    expected = Digest("sha256:" + hashed.hexdigest())
    with LocalStore(tmp_path) as store:

        def fresh() -> None:
            if any(True for _ in store.walk()):
                store.delete(expected)

        def ingest() -> None:
            with store.writer("ref", total=SIZE, expected=expected) as writer:
                for _ in range(SIZE // MIB):
                    writer.write(piece)
                writer.commit(SIZE)

        benchmark.pedantic(ingest, setup=fresh, rounds=5)  # type: ignore[no-untyped-call]
        assert store.info(expected).size == SIZE


@pytest.mark.benchmark(group="content: ingest 128 MiB, synced")
def test_ingest_plain(benchmark: BenchmarkFixture, tmp_path: Path, piece: bytes) -> None:
    target = tmp_path / "blob"

    def ingest() -> None:
        hashed = hashlib.sha256()
        with (tmp_path / "data").open("wb", buffering=0) as file:
            for _ in range(SIZE // MIB):
                file.write(piece)
                hashed.update(piece)
            os.fsync(file.fileno())
        (tmp_path / "data").rename(target)

    benchmark.pedantic(ingest, setup=lambda: target.unlink(missing_ok=True), rounds=5)  # type: ignore[no-untyped-call]
    assert target.stat().st_size == SIZE


@pytest.mark.benchmark(group="content: 1,000 reads of 4 KiB")
def test_read_store(benchmark: BenchmarkFixture, filled: tuple[LocalStore, Descriptor, Path]) -> None:
    store, desc, _ = filled
    offsets = [(n * 7919 * 4096) % (desc.size - 4096) for n in range(1000)]
    with store.reader_at(desc) as reader:

        def read() -> int:
            return sum(len(reader.read_at(offset, 4096)) for offset in offsets)

        assert benchmark(read) == 4096 * 1000


@pytest.mark.benchmark(group="content: 1,000 reads of 4 KiB")
def test_read_plain(benchmark: BenchmarkFixture, filled: tuple[LocalStore, Descriptor, Path]) -> None:
    _, desc, path = filled
    offsets = [(n * 7919 * 4096) % (desc.size - 4096) for n in range(1000)]
    fd = os.open(path, os.O_RDONLY)
    try:

        def read() -> int:
            return sum(len(os.pread(fd, 4096, offset)) for offset in offsets)

        assert benchmark(read) == 4096 * 1000
    finally:
        os.close(fd)


@pytest.mark.benchmark(group="content: open and close a reader")
def test_open_store(benchmark: BenchmarkFixture, filled: tuple[LocalStore, Descriptor, Path]) -> None:
    store, desc, _ = filled
    benchmark(lambda: store.reader_at(desc).close())


@pytest.mark.benchmark(group="content: open and close a reader")
def test_open_plain(benchmark: BenchmarkFixture, filled: tuple[LocalStore, Descriptor, Path]) -> None:
    path = filled[2]
    benchmark(lambda: path.open("rb", buffering=0).close())


@pytest.mark.parametrize("count", [BLOBS, 2 * BLOBS])
@pytest.mark.benchmark(group="content: walk, once and twice the blobs")
def test_walk(benchmark: BenchmarkFixture, tmp_path: Path, count: int) -> None:
    with LocalStore(tmp_path) as store:
        with store.metadata.transaction() as connection:
            for number in range(count):
                digest = Digest.of(b"%d" % number)
                (tmp_path / "blobs" / "sha256" / digest.hex).write_bytes(b"")
                connection.execute(
                    "INSERT INTO blobs VALUES (?, 0, 1, 1, ?, 0)", (digest, '{"containerd.io/gc.root": "1"}')
                )
        assert benchmark(lambda: sum(1 for _ in store.walk('labels."containerd.io/gc.root"==1'))) == count
