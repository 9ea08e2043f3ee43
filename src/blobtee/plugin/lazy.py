"""Bringing the blobs that a server knows, when they are read (`spec/content.md` section 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from blobtee.content import LocalStore
from blobtee.content.api import ReaderAt
from blobtee.errors import LazyUnavailable, NotFound, RefLocked, RemoteError, TooManyRequests
from blobtee.oci import Digest
from blobtee.plugin.known import KnownBlobs, Lazy
from blobtee.plugin.lingering import Lingering
from blobtee.registry import Registry
from blobtee.registry.settings import Settings
from blobtee.tee import Source, Stream, tee_of
from blobtee.transfer.remote import Repositories

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SETTINGS = Settings(patience=10.0)
"""For the registry client of a server: whoever reads a lazy blob should know within a minute that it does not come."""


class Fetching(Protocol):
    def fetched(self, source: str, nbytes: int) -> None:
        """Bytes of a blob that was missing have come from the registry `source`."""


class LazyBlobs(KnownBlobs):
    """What is known of a store's lazy blobs, and the way to bring them. Thread-safe, also across processes."""

    def __init__(
        self, store: LocalStore, registry: Registry, fetching: Fetching | None = None, *, linger: float = 0
    ) -> None:
        """`linger`: seconds that what is read by parts stays open for who asks again; then close this at the end."""
        super().__init__(store)
        self._registry = registry
        self._fetching = fetching
        self._lingering = Lingering(linger)

    def reader_at(self, digest: Digest) -> ReaderAt:
        """A reader of the blob. It is brought whole first, or what was kept of an earlier time proves single chunks:
        then reads bring what they need. Who asks for the same one at the same time shares what is fetched.

        Somebody must hold it already. `NotFound`: nobody made it known. `LazyUnavailable`: no source answers, or they
        have it no more; a read may say so too. `SizeMismatch`, `DigestMismatch`: the image or the source lied. What
        came before a failure is kept, and not asked for again.
        """
        lazy = self.get(digest)
        tee = tee_of(self._store)
        with _as_unavailable(digest):
            if tee.proves_parts(lazy.desc):
                return self._lingering.reader(digest, lambda: self._by_parts(lazy))
            tee.fill(lazy.desc, lambda: self._source(lazy))
            try:
                return self._store.reader_at(lazy.desc)
            except NotFound:  # somebody made room of it already; what proves its chunks is kept
                return self._by_parts(lazy)

    def close(self) -> None:
        """Let go of what is read by parts. A second call does nothing."""
        self._lingering.close()

    def _by_parts(self, lazy: Lazy) -> ReaderAt:
        reader = tee_of(self._store).reader_at(lazy.desc, lambda: self._source(lazy))
        return _Reader(reader, lazy.desc.digest)

    def _source(self, lazy: Lazy) -> Source:
        source = Repositories(self._registry, lazy.sources).source(lazy.desc)
        return source if self._fetching is None else _Counted(source, lazy.sources[0].host, self._fetching)


class _Reader(ReaderAt):
    """A reader whose errors are those of a store."""

    def __init__(self, reader: ReaderAt, digest: Digest) -> None:
        self.size = reader.size
        self._reader = reader
        self._digest = digest

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        with _as_unavailable(self._digest):
            return self._reader.readinto_at(offset, buffer)

    def read_at(self, offset: int, n: int) -> bytes:
        with _as_unavailable(self._digest):
            return self._reader.read_at(offset, n)

    def close(self) -> None:
        self._reader.close()


class _Counted:
    """A source whose bytes are counted as they come."""

    def __init__(self, source: Source, host: str, fetching: Fetching) -> None:
        self._source = source
        self._host = host
        self._fetching = fetching

    def stream(self, start: int, end: int) -> Stream:
        return _CountedStream(self._source.stream(start, end), self._host, self._fetching)

    def reject(self) -> bool:
        return self._source.reject()


class _CountedStream:
    def __init__(self, stream: Stream, host: str, fetching: Fetching) -> None:
        self.position = stream.position
        self.end = stream.end
        self._stream = stream
        self._host = host
        self._fetching = fetching

    def readinto(self, view: memoryview) -> int:
        n = self._stream.readinto(view)
        self.position += n
        self._fetching.fetched(self._host, n)
        return n

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _as_unavailable(digest: Digest) -> Iterator[None]:
    """What a source does wrong is no fault of the store's: the code of its own error may mean another thing there."""
    try:
        yield
    except (RemoteError, NotFound, TooManyRequests, RefLocked) as error:
        raise LazyUnavailable(f"blob {digest} is not to be had now: {error}") from error
