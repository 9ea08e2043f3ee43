"""Our side of the comparison: the same tasks and the same line protocol as `main.go`."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from blobtee import core
from blobtee.compression import Compression, decompress
from blobtee.content import LocalStore, copy
from blobtee.conversion import Packer
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Registry, Repository

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

BUFFER = 1 << 20


def blob_of(registry: Registry, url: str) -> tuple[Repository, Descriptor]:
    """The blob that `url` (`http://HOST/v2/REPOSITORY/blobs/DIGEST?SIZE`) names."""
    parts = urlsplit(url)
    repository, _, digest = parts.path.removeprefix("/v2/").partition("/blobs/")
    desc = Descriptor("application/octet-stream", Digest(digest), int(parts.query))
    return registry.repository(f"{parts.netloc}/{repository}"), desc


def sha256(path: str) -> Callable[[], int]:
    data = Path(path).read_bytes()

    def work() -> int:
        core.Sha256(data).digest()
        return len(data)

    return work


def sha256_lanes(path: str) -> Callable[[], int]:
    """The same bytes as four buffers in lanes on one core: what a store does that checks several blobs."""
    data = memoryview(Path(path).read_bytes())
    quarter = len(data) // 4
    parts = [data[quarter * k : quarter * (k + 1) if k < 3 else len(data)] for k in range(4)]

    def work() -> int:
        core.sha256_many(parts)
        return len(data)

    return work


def inflate(path: str) -> Callable[[], int]:
    data = memoryview(Path(path).read_bytes())

    def work() -> int:
        inflater, out, total, taken = core.Inflater(), bytearray(BUFFER), 0, 0
        while True:
            consumed, produced = inflater.inflate_into(data[taken : taken + BUFFER], out)
            taken += consumed
            total += produced
            if not consumed and not produced:
                break
        inflater.finish()
        return total

    return work


def get(url: str) -> Callable[[], int]:
    def work() -> int:
        total, buffer = 0, bytearray(BUFFER)
        with Registry() as registry:
            repository, desc = blob_of(registry, url)
            with repository.reader_at(desc) as reader, reader.open() as body:
                while n := body.readinto(buffer):
                    total += n
        return total

    return work


def pull(url: str, folder: str) -> Callable[[], int]:
    root = Path(folder, "ours")
    shutil.rmtree(root, ignore_errors=True)
    store = LocalStore(root)

    def work() -> int:
        with store, Registry() as registry:
            repository, desc = blob_of(registry, url)
            return copy(store, repository, desc).size

    return work


def convert(kind: str, path: str, out: str) -> Callable[[], int]:
    """What a conversion does with a layer, between plain files: neither side waits for the disk."""

    def work() -> int:
        stored, buffer = core.Sha256(), bytearray(BUFFER)
        with (
            open(path, "rb", buffering=0) as source,
            decompress(source, threads=None) as tar,
            open(out, "wb", buffering=0) as file,
        ):

            def store(piece: Buffer) -> None:
                stored.update(piece)
                file.write(piece)

            with memoryview(buffer) as view, Packer(Compression(kind), store) as packer:
                while n := tar.readinto(view):
                    packer.write(view[:n])
                packed = packer.finish()
        Path(f"{out}.digests").write_text(f"{packed.diff_id.hex} {stored.hexdigest()}")
        return packed.size

    return work


def unpack(threads: str, path: str) -> Callable[[], int]:
    """threads: 0 for as many as there are processors."""

    def work() -> int:
        total, buffer = 0, bytearray(BUFFER)
        with open(path, "rb", buffering=0) as source, decompress(source, threads=int(threads) or None) as tar:
            while n := tar.readinto(buffer):
                total += n
        return total

    return work


TASKS: dict[str, Callable[..., Callable[[], int]]] = {
    "sha256": sha256,
    "sha256-lanes": sha256_lanes,
    "inflate": inflate,
    "get": get,
    "pull": pull,
    "convert": convert,
    "unpack": unpack,
}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    for line in sys.stdin:
        name, *arguments = line.split()
        work = TASKS[name](*arguments)
        cpu, start = cpu_seconds(), time.perf_counter()
        nbytes = work()
        wall = time.perf_counter() - start
        answer = {"bytes": nbytes, "wall": wall, "cpu": cpu_seconds() - cpu}
        if name == "convert":
            answer["size"] = Path(arguments[-1]).stat().st_size
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
