"""Layers with sources that count, for the tests of this room."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from blobtee.cache import CacheManager, Handler, Ref
from blobtee.cache.labels import UNCOMPRESSED
from blobtee.content import MemoryStore
from blobtee.content.api import Provider, ReaderAt
from blobtee.errors import NotFound
from blobtee.oci import Compressed, Descriptor
from blobtee.testing import images

IMAGE = "registry.test:5000/team/app:v1"


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


def add(store: MemoryStore, layer: images.Layer) -> None:
    with store.writer(layer.descriptor.digest, expected=layer.descriptor.digest) as writer:
        writer.write(layer.data)
        writer.commit(layer.descriptor.size)


def content(remote_reader: ReaderAt) -> bytes:
    with remote_reader as reader, io.BufferedReader(reader.open()) as file:
        return file.read()
