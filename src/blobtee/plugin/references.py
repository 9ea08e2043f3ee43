"""Which tenant holds which blob, and what it calls it.

A tenant is a lease of the store (`cache.leases`), so that `blobtee gc` and every other program that collects knows of
what it holds. Labels and times are its own: what one containerd writes on a blob is nothing to another.

A blob that its last holder let go is an orphan until the sweep: nobody sees it, and whoever wants it holds it first.
Holding is a transaction, and so is each batch of a sweep: so a sweep sees the hold, or the holder sees the blob gone.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from blobtee.cache import holders
from blobtee.cache.leases import Leases
from blobtee.content import LocalStore
from blobtee.content.database import Database, among, rows, unreadable
from blobtee.content.labels import checked, merged
from blobtee.errors import DataLoss, InvalidArgument, NotFound, StorageError, StorageFull
from blobtee.oci import Digest
from blobtee.wording import counted

_logger = logging.getLogger(__name__)

_PAGE = 500

_STEPS = (
    """
    CREATE TABLE tenant_blobs (
        tenant TEXT NOT NULL,
        digest TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        labels TEXT NOT NULL,
        PRIMARY KEY (tenant, digest)
    ) WITHOUT ROWID;
    CREATE TABLE tenant_orphans (digest TEXT PRIMARY KEY) WITHOUT ROWID;
    """,
    # An orphan of before this column is older than any blob: it is left to gc.
    "ALTER TABLE tenant_orphans ADD COLUMN since INTEGER NOT NULL DEFAULT 0;",
)
_COLUMNS = "digest, created_at, updated_at, labels"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_LEASE = "tenant/"

Wanted: TypeAlias = tuple[Digest, Mapping[str, str] | None]
"""A blob that is to be held, and its labels."""


@dataclass(frozen=True)
class Reference:
    """One blob of a tenant. Times are nanoseconds since the epoch."""

    digest: Digest
    created_at: int
    updated_at: int
    labels: Mapping[str, str]


def check_name(tenant: str) -> None:
    """`InvalidArgument`: no name for a tenant."""
    if not _NAME.match(tenant):
        raise InvalidArgument(f"no name of a tenant: {tenant!r:.80} (letters, digits, - _ and dots, 63 at most)")


class References:
    """The references of all tenants of a store. Thread-safe, also across processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leases = Leases(database)
        database.migrate("plugin.references", _STEPS)

    def begin(self, tenant: str, store: LocalStore) -> None:
        """Make the tenant in `store`, whose references these are, if it is not there. `InvalidArgument`: no name for
        one.

        One that was there before, when the database was another, holds every blob of the store from here on: what it
        does not know, its containerd lets go of when it next collects content, and what it does know is perhaps nowhere
        else.
        """
        check_name(tenant)
        lease = _LEASE + tenant
        with self._database.transaction():
            if self._leases.ensure(lease, flat=True) and lease in holders.recorded(store.root):
                blobs = [Reference(info.digest, info.created_at, info.updated_at, {}) for info in store.walk()]
                self.take_over(tenant, blobs)
                _logger.warning(
                    "what tenant %s held was lost with the database: it holds %s until its containerd lets go of them",
                    tenant,
                    counted(len(blobs), "blob"),
                )
        try:
            holders.record(store.root, lease)
        except (StorageFull, StorageError) as error:
            # Who serves on a full disk lets containerd make room; the next start writes it down.
            _logger.warning("the loss of the database would cost what tenant %s holds: %s", tenant, error)

    def tenants(self) -> set[str]:
        """Every tenant that the store knows."""
        return {lease.id.removeprefix(_LEASE) for lease in self._leases.all() if is_tenant(lease.id)}

    def get(self, tenant: str, digest: str) -> Reference:
        """`NotFound`: the tenant does not hold it."""
        with self._database.reading() as connection:
            query = f"SELECT {_COLUMNS} FROM tenant_blobs WHERE tenant = ? AND digest = ?"
            row = connection.execute(query, (tenant, digest)).fetchone()
        if row is None:
            raise NotFound(f"tenant {tenant} has no blob {digest}")
        return _reference(row)

    def pages(self, tenant: str) -> Iterator[list[Reference]]:
        """The references of the tenant, in the order of digests, some hundreds at once. One that cannot be read is
        logged and left out: it must not hide the others."""
        after = ""
        query = f"SELECT {_COLUMNS} FROM tenant_blobs WHERE tenant = ? AND digest > ? ORDER BY digest LIMIT {_PAGE}"
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(query, (tenant, after)).fetchall()
            if not rows:
                return
            page = []
            for row in rows:
                try:
                    page.append(_reference(row))
                except DataLoss as error:
                    _logger.warning("tenant %s: %s", tenant, error)
            after = rows[-1][0]
            yield page

    def hold(
        self, tenant: str, digest: Digest, labels: Mapping[str, str] | None = None, *, orphans: bool = True
    ) -> Reference | None:
        """Hold the blob for the tenant. None: it did already; a reference that is there keeps its labels.

        With `orphans` off a blob that waits for the sweep is not held: `NotFound`.
        """
        now = time.time_ns()
        made = Reference(digest, now, now, checked(labels))
        with self._database.transaction() as connection:
            if not orphans and self._is_orphan(connection, digest):
                raise NotFound(f"blob {digest} was removed")
            done = connection.execute(
                f"INSERT OR IGNORE INTO tenant_blobs (tenant, {_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
                (tenant, digest, now, now, _text(made.labels)),
            )
            if not done.rowcount:
                return None
            self._leases.add(_LEASE + tenant, [digest])
            connection.execute("DELETE FROM tenant_orphans WHERE digest = ?", (digest,))
            return made

    def hold_new(self, tenant: str, wanted: Sequence[Wanted]) -> list[Reference] | None:
        """As `hold`, of some dozens of blobs by a few statements, inside a transaction of this thread. None: the tenant
        holds some of them already, and the transaction has to be taken back."""
        now = time.time_ns()
        made = [Reference(digest, now, now, checked(labels)) for digest, labels in wanted]
        digests = [each.digest for each in made]
        with self._database.transaction() as connection:
            marks, values = rows([(tenant, each.digest, now, now, _text(each.labels)) for each in made])
            done = connection.execute(f"INSERT OR IGNORE INTO tenant_blobs (tenant, {_COLUMNS}) VALUES {marks}", values)
            if done.rowcount != len(made):
                return None
            self._leases.add(_LEASE + tenant, digests)
            marks, values = among(digests)
            connection.execute(f"DELETE FROM tenant_orphans WHERE digest IN ({marks})", values)
        return made

    def take_over(self, tenant: str, references: Iterable[Reference]) -> None:
        """Hold blobs that are there for the tenant, as another program knew them. One it holds already stays as it is,
        unless nothing is known of it. All or none of them."""
        with self._database.transaction() as connection:
            taken = []
            for reference in references:
                digest = reference.digest
                if self.hold(tenant, digest, reference.labels) or not self._has_labels(connection, tenant, digest):
                    taken.append(reference)
            connection.executemany(
                "UPDATE tenant_blobs SET created_at = ?, updated_at = ?, labels = ? WHERE tenant = ? AND digest = ?",
                [(each.created_at, each.updated_at, _text(each.labels), tenant, each.digest) for each in taken],
            )

    def let_go(self, tenant: str, digest: str, *, is_there: bool = True) -> None:
        """Hold it no more; one that is there is an orphan then, unless another lease holds it. `NotFound`."""
        with self._database.transaction() as connection:
            done = connection.execute("DELETE FROM tenant_blobs WHERE tenant = ? AND digest = ?", (tenant, digest))
            if not done.rowcount:
                raise NotFound(f"tenant {tenant} has no blob {digest}")
            self._leases.drop(_LEASE + tenant, [digest])
            if is_there and not self._leases.holders(digest):
                connection.execute("INSERT OR REPLACE INTO tenant_orphans VALUES (?, ?)", (digest, time.time_ns()))

    def update(self, tenant: str, digest: str, labels: Mapping[str, str | None], *, replace: bool) -> Reference:
        """As `Manager.update`, for what the tenant knows of the blob. `NotFound`."""
        with self._database.transaction() as connection:
            before = self.get(tenant, digest)
            after = Reference(
                before.digest,
                before.created_at,
                max(time.time_ns(), before.updated_at + 1),
                merged({} if replace else before.labels, labels),
            )
            connection.execute(
                "UPDATE tenant_blobs SET updated_at = ?, labels = ? WHERE tenant = ? AND digest = ?",
                (after.updated_at, _text(after.labels), tenant, digest),
            )
        return after

    def orphans(self) -> dict[str, int]:
        """When each was let go of, in nanoseconds since the epoch. A blob that is younger is not the one that was: gc
        may have removed that, and another program written it anew."""
        with self._database.reading() as connection:
            return dict(connection.execute("SELECT digest, since FROM tenant_orphans").fetchall())

    def orphans_of(self, digests: Sequence[str]) -> dict[str, int]:
        """As `orphans`, of those of `digests` alone, some hundreds at most."""
        with self._database.reading() as connection:
            marks, values = among(digests)
            query = f"SELECT digest, since FROM tenant_orphans WHERE digest IN ({marks})"
            return dict(connection.execute(query, values).fetchall())

    def settle(self, digests: Iterable[str]) -> None:
        """They are orphans no more: gone, or of use to somebody after all."""
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM tenant_orphans WHERE digest = ?", [(digest,) for digest in digests])

    @staticmethod
    def _has_labels(connection: sqlite3.Connection, tenant: str, digest: str) -> bool:
        """Whether the tenant, which holds the blob, has labels on it."""
        query = "SELECT 1 FROM tenant_blobs WHERE tenant = ? AND digest = ? AND labels != '{}'"
        return connection.execute(query, (tenant, digest)).fetchone() is not None

    @staticmethod
    def _is_orphan(connection: sqlite3.Connection, digest: str) -> bool:
        return connection.execute("SELECT 1 FROM tenant_orphans WHERE digest = ?", (digest,)).fetchone() is not None


def is_tenant(lease_id: str) -> bool:
    """Whether the lease is that of a tenant."""
    return lease_id.startswith(_LEASE)


def _text(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels)) if labels else "{}"


def _reference(row: tuple[str, int, int, str]) -> Reference:
    try:
        digest, labels = Digest(row[0]), json.loads(row[3])
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise ValueError("its labels are no texts by name")
    except (TypeError, ValueError, RecursionError, InvalidArgument) as error:
        raise unreadable(f"what a tenant knows of blob {row[0]!r:.200}", error) from None
    return Reference(digest, row[1], row[2], labels)
