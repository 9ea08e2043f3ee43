"""Blobs that are not in the store, but known to it: how large they are, and which images they can be had from.

`blobtee pull --lazy --socket` makes an image's layers known. A tenant that asks for one finds it present, and its bytes
come when they are read (`plugin.lazy`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from blobtee.cache.leases import Leases
from blobtee.content import LocalStore
from blobtee.content.database import unreadable
from blobtee.errors import DataLoss, InvalidReference, NotFound
from blobtee.oci import Descriptor, Digest, Reference
from blobtee.plugin.references import is_tenant

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
_NONE_SECONDS = 1.0


@dataclass(frozen=True)
class Lazy:
    """A blob that is known, here or not. `sources` are the images it can be had from, the latest first."""

    desc: Descriptor
    sources: tuple[Reference, ...]


class KnownBlobs:
    """The table of them. Thread-safe, also across processes."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._leases = Leases(store.metadata)
        self._none_until = 0.0  # by the monotonic clock
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
        self._none_until = 0.0

    def any(self) -> bool:
        """Whether any blob is known, for who can do without: what another process made known less than a second ago is
        perhaps not seen. Costs next to nothing as long as there is none."""
        now = time.monotonic()
        if now < self._none_until:
            return False
        with self._store.metadata.reading() as connection:
            if connection.execute("SELECT 1 FROM lazy_blobs LIMIT 1").fetchone() is None:
                self._none_until = now + _NONE_SECONDS
                return False
        return True

    def get(self, digest: Digest) -> Lazy:
        """`NotFound`: nobody made it known."""
        with self._store.metadata.reading() as connection:
            query = "SELECT size, media_type, sources FROM lazy_blobs WHERE digest = ?"
            row = connection.execute(query, (digest,)).fetchone()
        if row is None:
            raise NotFound(f"blob {digest} is not in the store")
        size, media_type, text = row
        try:
            names = json.loads(text)
            sources = tuple(Reference.parse(name) for name in names if isinstance(name, str))
            if not sources or len(sources) != len(names):
                raise ValueError("there is no source")
            if type(size) is not int or size < 0 or not isinstance(media_type, str):
                raise ValueError("there is no size, or no type")
        except (TypeError, ValueError, RecursionError, InvalidReference) as error:
            raise unreadable(f"where lazy blob {digest} comes from", error) from None
        return Lazy(Descriptor(media_type, digest, size), sources)

    def sources(self, desc: Descriptor) -> tuple[Reference, ...]:
        """The images that a blob of this digest and size can be had from; none when nobody made it known, or what was
        said cannot be read."""
        try:
            known = self.get(desc.digest)
        except (NotFound, DataLoss):
            return ()
        return known.sources if known.desc.size == desc.size else ()

    def repositories(self) -> set[str]:
        """All that blobs can be had from."""
        with self._store.metadata.reading() as connection:
            digests = [digest for (digest,) in connection.execute("SELECT digest FROM lazy_blobs").fetchall()]
        found: set[str] = set()
        for digest in digests:
            with suppress(NotFound, DataLoss):
                found.update(source.name for source in self.get(digest).sources)
        return found

    def holds(self, lease_id: str) -> bool:
        """Whether the lease is a tenant's: what it holds may be lazy, if it is known."""
        return is_tenant(lease_id)

    def forget(self, needed: Collection[str]) -> None:
        """Keep what is known of the blobs `needed`, and of those that a lease holds."""
        with self._store.metadata.transaction() as connection:
            rows = connection.execute("SELECT digest FROM lazy_blobs").fetchall()
            gone = [row for row in rows if row[0] not in needed and not self._leases.holders(row[0])]
            connection.executemany("DELETE FROM lazy_blobs WHERE digest = ?", gone)
