"""Blobs that are not in the store, but known to it: how large they are, and which images they can be had from.

`blobtee pull --lazy --socket` makes an image's layers known. A tenant that asks for one finds it present, and its bytes
come when they are read (`spec/content.md` section 1).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blobtee.cache.leases import Leases
from blobtee.content import LocalStore
from blobtee.content.api import ReaderAt
from blobtee.errors import (
    DataLoss,
    InvalidReference,
    LazyUnavailable,
    NotFound,
    RefLocked,
    RemoteError,
    TooManyRequests,
)
from blobtee.oci import Descriptor, Digest, Reference
from blobtee.registry import Registry
from blobtee.registry.settings import Settings
from blobtee.tee import Source, Stream, tee_of
from blobtee.transfer.remote import Repositories

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_STEPS = (
    """
    CREATE TABLE lazy_blobs (
        digest TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        sources TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
)
_MOST_SOURCES = 8

SETTINGS = Settings(patience=10.0)
"""For the registry client of a server: whoever reads a lazy blob should know within a minute that it does not come."""


class Fetching(Protocol):
    def fetched(self, source: str, nbytes: int) -> None:
        """Bytes of a blob that was missing have come from the registry `source`."""


@dataclass(frozen=True)
class Lazy:
    """A blob that is known, here or not. `sources` are the images it can be had from, the latest first."""

    desc: Descriptor
    sources: tuple[Reference, ...]


class LazyBlobs:
    """What is known of a store's lazy blobs, and the way to bring them. Thread-safe, also across processes."""

    def __init__(self, store: LocalStore, registry: Registry, fetching: Fetching | None = None) -> None:
        self._store = store
        self._registry = registry
        self._fetching = fetching
        self._leases = Leases(store.metadata)
        store.metadata.migrate("plugin.lazy", _STEPS)

    def know(self, descs: Iterable[Descriptor], source: Reference) -> None:
        """The blobs can be had from the image `source`. What it says of their sizes goes before what others said."""
        with self._store.metadata.transaction() as connection:
            for desc in descs:
                sources = [str(source)]
                with suppress(NotFound, DataLoss):
                    sources += [str(known) for known in self.get(desc.digest).sources if str(known) != sources[0]]
                connection.execute(
                    "INSERT OR REPLACE INTO lazy_blobs VALUES (?, ?, ?, ?)",
                    (desc.digest, desc.size, desc.media_type, json.dumps(sources[:_MOST_SOURCES])),
                )

    def get(self, digest: Digest) -> Lazy:
        """`NotFound`: nobody made it known."""
        with self._store.metadata.reading() as connection:
            query = "SELECT size, media_type, sources FROM lazy_blobs WHERE digest = ?"
            row = connection.execute(query, (digest,)).fetchone()
        if row is None:
            raise NotFound(f"blob {digest} is not in the store")
        try:
            sources = tuple(Reference.parse(source) for source in json.loads(row[2]))
        except (TypeError, ValueError, RecursionError, InvalidReference) as error:
            raise DataLoss(f"where lazy blob {digest} comes from cannot be read: {error}") from None
        return Lazy(Descriptor(row[1], digest, row[0]), sources)

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
                return _Reader(tee.reader_at(lazy.desc, lambda: self._source(lazy)), digest)
            tee.fill(lazy.desc, lambda: self._source(lazy))
        return self._store.reader_at(lazy.desc)

    def forget(self, needed: Collection[str]) -> None:
        """Keep what is known of the blobs `needed`, and of those that a lease holds."""
        with self._store.metadata.transaction() as connection:
            rows = connection.execute("SELECT digest FROM lazy_blobs").fetchall()
            gone = [row for row in rows if row[0] not in needed and not self._leases.holders(row[0])]
            connection.executemany("DELETE FROM lazy_blobs WHERE digest = ?", gone)

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
