"""Layers with sources that count, for the tests of this room."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from blobtee.cache import CacheManager, Handler, Ref
from blobtee.cache.labels import UNCOMPRESSED
from blobtee.cache.leases import variants_lease
from blobtee.compression import decompress
from blobtee.content.api import Provider, ReaderAt, Store
from blobtee.errors import NotFound
from blobtee.oci import Compressed, Descriptor, Digest
from blobtee.testing import images

IMAGE = "registry.test:5000/team/app:v1"
OLD = 1_000_000_000
T = TypeVar("T")


class MemoryReader(ReaderAt):
    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data

    def readinto_at(self, offset: int, buffer: object) -> int:
        with memoryview(buffer) as view:  # type: ignore[arg-type]
            piece = self._data[offset : offset + len(view)]
            view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


class Source:
    """A provider that counts how often each blob is opened. `before` runs at each opening."""

    def __init__(self, *layers: images.Layer, before: Callable[[Descriptor], object] | None = None) -> None:
        self.blobs = {layer.descriptor.digest: layer.data for layer in layers}
        self.opened: list[str] = []
        self.sessions: list[object] = []
        self._before = before
        self._lock = threading.Lock()

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        with self._lock:
            self.opened.append(desc.digest)
        if self._before is not None:
            self._before(desc)
        if desc.digest not in self.blobs:
            raise NotFound(f"{desc.digest} is not at the source")
        return MemoryReader(self.blobs[desc.digest])

    def for_session(self, session: object) -> Provider:
        with self._lock:
            self.sessions.append(session)
        return self

    def handlers(self, ref: str = IMAGE, annotations: Mapping[str, str] | None = None) -> dict[str, Handler]:
        return {
            digest: Handler(self.for_session, lambda desc: nullcontext(), annotations or {}, ref=ref)
            for digest in self.blobs
        }


def layers(count: int = 3, compression: Compressed = Compressed.GZIP, text: str = "") -> list[images.Layer]:
    return [images.layer({f"file{n}": f"{text} {n}".encode() * 50}, compression=compression) for n in range(count)]


def described(layer: images.Layer) -> Descriptor:
    return layer.descriptor.annotated({UNCOMPRESSED: layer.diff_id})


def stack(manager: CacheManager, source: Source, given: list[images.Layer]) -> Ref:
    """The ref of `given` on top of each other, with the handlers of `source`."""
    ref: Ref | None = None
    for layer in given:
        below, ref = ref, manager.get_by_blob(described(layer), ref, source.handlers())
        if below is not None:
            below.release()
    assert ref is not None
    return ref


def add(store: Store, layer: images.Layer) -> None:
    with store.writer(layer.descriptor.digest, expected=layer.descriptor.digest) as writer:
        writer.write(layer.data)
        writer.commit(layer.descriptor.size)


def content(remote_reader: ReaderAt) -> bytes:
    with remote_reader as reader, io.BufferedReader(reader.open()) as file:
        return file.read()


def write_tree(path: Path, files: Mapping[str, str | None]) -> Path:
    """A directory with files of these texts (None is a directory), all of one old time; given times stay comparable."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        target = path / name
        if text is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    for each in (path, *path.rglob("*")):
        os.utime(each, (OLD, OLD), follow_symlinks=False)
    return path


def read_tree(path: Path) -> dict[str, str | None]:
    """The inverse of `write_tree`; directories only where they are empty."""
    found: dict[str, str | None] = {}
    for each in sorted(path.rglob("*")):
        name = str(each.relative_to(path))
        if each.is_file():
            found[name] = each.read_text()
        elif not any(each.iterdir()):
            found[name] = None
    return found


def names(store: Store, desc: Descriptor) -> list[str]:
    """The entries of a layer in the store, without slashes at the end; its bytes must be what its diff id says."""
    with store.reader_at(desc) as reader, reader.open() as raw, decompress(raw, desc.media_type) as tar:
        data = tar.read() or b""
        while more := tar.read(1 << 20):
            data += more
    assert Digest.of(data) == desc.annotations[UNCOMPRESSED]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [member.name for member in archive]


def untouched(manager: CacheManager, *refs: Ref) -> None:
    """No ingest, no lease but those of refs, and nothing of work under way.

    Work that nobody waits for any more cleans up behind the caller's back, so this gives it time.
    """
    wait_for(lambda: _left(manager, *refs) == [])
    assert _left(manager, *refs) == []


def _left(manager: CacheManager, *refs: Ref) -> list[str]:
    allowed: set[str] = set()
    for ref in refs:
        allowed |= {each for ancestor in ref.ancestry for each in (ancestor, variants_lease(ancestor))}
    left = [status.ref for status in manager.store.statuses()]
    left += [lease.id for lease in manager.leases.all() if lease.id not in allowed]
    root = getattr(manager.store, "root", None)
    return left + ([] if root is None or not (root / "scratch").exists() else ["scratch"])


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Until it is so, or time is up."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


def at_once(*functions: Callable[[], T]) -> list[T | Exception]:
    """What each returned or raised; none goes before all are ready."""
    ready = threading.Barrier(len(functions))
    outcomes: dict[int, T | Exception] = {}

    def call(number: int) -> None:
        ready.wait(30)
        try:
            outcomes[number] = functions[number]()
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return [outcomes[number] for number in range(len(functions))]


def trees(tmp_path: Path, *contents: dict[str, str | None]) -> list[Path]:
    return [write_tree(tmp_path / f"tree{number}", files) for number, files in enumerate(contents)]


def registered(manager: CacheManager, *paths: Path) -> Ref:
    """Whole trees on each other."""
    ref: Ref | None = None
    for path in paths:
        below, ref = ref, manager.add_directory(path, ref)
        if below is not None:
            below.release()
    assert ref is not None
    return ref
