"""Leases: what must not be collected, and until when (`spec/remote.md` sections 1, 4, 6).

A lease is a row that names resources. Those of a ref last as long as the ref; temporary ones protect work under way.
"""

from __future__ import annotations

import contextvars
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice

from blobtee.content.database import Database, among, rows, unreadable
from blobtee.content.labels import checked
from blobtee.errors import AlreadyExists, InvalidArgument, NotFound
from blobtee.tasks import shield

TEMPORARY = "buildkit/lease.temporary"
EXPIRY_SECONDS = 3600
CONTENT = "content"
_MAX_SECONDS = 1 << 32
_AT_ONCE = 500

_STEPS = (
    """
    CREATE TABLE cache_leases (
        id TEXT PRIMARY KEY, created_at INTEGER NOT NULL, expires_at INTEGER, flat INTEGER NOT NULL,
        owner TEXT NOT NULL, labels TEXT NOT NULL
    );
    CREATE TABLE cache_lease_resources (
        lease TEXT NOT NULL, type TEXT NOT NULL, resource TEXT NOT NULL, PRIMARY KEY (lease, type, resource)
    );
    CREATE INDEX cache_lease_resources_resource ON cache_lease_resources (type, resource);
    """,
)
_PROCESS = secrets.token_hex(8)


@dataclass(frozen=True)
class Lease:
    """`flat`: only the resources named here are held, not what their labels link to.

    Times are nanoseconds since the epoch; `expires_at` None means never.
    """

    id: str
    created_at: int
    expires_at: int | None = None
    flat: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Holding:
    """A lease and the digests it holds; `counts` unless it has expired, or is temporary and its process is gone."""

    lease: Lease
    counts: bool
    digests: tuple[str, ...]


@dataclass(frozen=True)
class _Held:
    lease: Lease
    owner: str


_current: contextvars.ContextVar[_Held | None] = contextvars.ContextVar("blobtee_lease", default=None)


def variants_lease(ref_id: str) -> str:
    """The id of the lease that holds the variants of a ref's blob."""
    return f"{ref_id}-variants"


class Leases:
    """The table of leases of a store. Thread-safe; several may be open on one database, in several processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("cache.leases", _STEPS)

    def ensure(self, lease_id: str, *, flat: bool = False) -> bool:
        """Make a lease that does not expire; False when it is there already, which stays as it is."""
        return self._insert(Lease(lease_id, time.time_ns(), None, flat), owner="")

    def create(
        self,
        lease_id: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        expires_in: float | None = None,
        flat: bool = False,
    ) -> Lease:
        """Make a lease for a purpose of one's own: what it holds stays until it is deleted, or has expired.

        `expires_in` is seconds, None for never. `AlreadyExists` when the id is taken, `InvalidArgument`.
        """
        if lease_id == "" or (expires_in is not None and not 0 <= expires_in <= _MAX_SECONDS):
            raise InvalidArgument(f"no lease with the id {lease_id!r:.80} for {expires_in!r:.40} seconds")
        now = time.time_ns()
        expires_at = None if expires_in is None else now + int(expires_in * 1_000_000_000)
        lease = Lease(lease_id or secrets.token_hex(16), now, expires_at, flat, checked(labels))
        with self._database.transaction():
            if self._is_there(lease.id):
                raise AlreadyExists(f"lease {lease.id[:80]!r} is there already")
            self._insert(lease, owner="")
        return lease

    @contextmanager
    def using(self, lease_id: str) -> Iterator[None]:
        """Run the block under a lease that is there: it holds what is made in the block, and stays. `NotFound`."""
        lease = next((each for each in self.all() if each.id == lease_id), None)
        if lease is None:
            raise NotFound(f"no lease {lease_id[:80]!r}")
        token = _current.set(_Held(lease, ""))
        try:
            yield
        finally:
            _current.reset(token)

    def add(self, lease_id: str, resources: Iterable[str], *, kind: str = CONTENT) -> None:
        """Hold `resources` (digests, for content) by the lease; what it holds already is no error. `NotFound`."""
        rest = iter(resources)
        with self._database.transaction() as connection:
            added = 0
            while some := list(islice(rest, _AT_ONCE)):
                marks, values = rows([(resource,) for resource in some])
                added += connection.execute(
                    "INSERT OR IGNORE INTO cache_lease_resources "
                    f"SELECT id, ?, column1 FROM cache_leases CROSS JOIN (VALUES {marks}) WHERE id = ?",
                    (kind, *values, lease_id),
                ).rowcount
            if not added and not self._is_there(lease_id):
                raise NotFound(f"no lease {lease_id[:80]!r}")

    def drop(self, lease_id: str, resources: Iterable[str], *, kind: str = CONTENT) -> None:
        """Hold `resources` by the lease no more; what it does not hold is no error."""
        with self._database.transaction() as connection:
            connection.executemany(
                "DELETE FROM cache_lease_resources WHERE lease = ? AND type = ? AND resource = ?",
                [(lease_id, kind, resource) for resource in resources],
            )

    def holders(self, resource: str, *, kind: str = CONTENT) -> list[str]:
        """Ids of the leases that hold `resource`."""
        with self._database.reading() as connection:
            query = "SELECT lease FROM cache_lease_resources WHERE type = ? AND resource = ? ORDER BY lease"
            return [lease for (lease,) in connection.execute(query, (kind, resource)).fetchall()]

    def holding(self, resources: Iterable[str], *, kind: str = CONTENT) -> set[tuple[str, str]]:
        """Which leases hold which of `resources`: their ids, with the resource."""
        found: set[tuple[str, str]] = set()
        rest = iter(resources)
        with self._database.reading() as connection:
            while some := list(islice(rest, _AT_ONCE)):
                marks, values = among(some)
                query = f"SELECT lease, resource FROM cache_lease_resources WHERE type = ? AND resource IN ({marks})"
                found.update(connection.execute(query, (kind, *values)).fetchall())
        return found

    def resources(self, lease_id: str) -> list[tuple[str, str]]:
        """(type, resource) pairs that the lease holds, sorted; none when there is no such lease."""
        with self._database.reading() as connection:
            query = "SELECT type, resource FROM cache_lease_resources WHERE lease = ? ORDER BY type, resource"
            return [(kind, resource) for kind, resource in connection.execute(query, (lease_id,)).fetchall()]

    def all(self) -> list[Lease]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT id, created_at, expires_at, flat, labels FROM cache_leases ORDER BY id")
            return [_lease(*row) for row in rows.fetchall()]

    def ids(self) -> set[str]:
        """Of all leases, also of those that cannot be read."""
        with self._database.reading() as connection:
            return {lease_id for (lease_id,) in connection.execute("SELECT id FROM cache_leases").fetchall()}

    def delete(self, lease_id: str) -> None:
        """Drop the lease and its hold; one that is not there is no error."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM cache_leases WHERE id = ?", (lease_id,))
            connection.execute("DELETE FROM cache_lease_resources WHERE lease = ?", (lease_id,))

    def protect(self, resources: Iterable[str], *, kind: str = CONTENT) -> None:
        """Hold `resources` by the lease of the context; without one, nothing happens. `NotFound`: it was deleted."""
        held = _current.get()
        if held is not None:
            with self._database.transaction():
                if held.owner:
                    self._insert(held.lease, owner=held.owner)
                self.add(held.lease.id, resources, kind=kind)

    @contextmanager
    def hold(self, *, fresh: bool = False) -> Iterator[str]:
        """Run the block under the lease of the context, or under a temporary one that is dropped at its end,
        also when the block was cancelled. Gives the lease's id.

        `fresh` asks for a temporary one in any case: for work that several share, and that outlives each of them.
        A temporary lease is written when it first protects something: reading alone writes nothing.
        """
        outer = _current.get()
        if outer is not None and not fresh:
            yield outer.lease.id
            return
        now = time.time_ns()
        lease = Lease(secrets.token_hex(16), now, now + EXPIRY_SECONDS * 1_000_000_000, False, {TEMPORARY: "true"})
        token = _current.set(_Held(lease, f"{os.getpid()}:{_PROCESS}:{_start(os.getpid())}"))
        try:
            yield lease.id
        finally:
            _current.reset(token)
            with shield():
                if self._is_there(lease.id):
                    self.delete(lease.id)

    def drop_stale(self) -> None:
        """Drop temporary leases that nobody works under any more: their process is gone. Work may take longer than
        its lease was meant to, so one that has expired counts as long as its process lives."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT id, owner FROM cache_leases WHERE owner != ''").fetchall()
        for lease_id, owner in rows:
            if not _lives(owner):
                self.delete(lease_id)

    def holdings(self) -> list[Holding]:
        """Every lease with what it holds, as of one moment."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, created_at, expires_at, flat, labels, owner, type, resource FROM cache_leases "
                "LEFT JOIN cache_lease_resources ON lease = id ORDER BY id, type, resource"
            ).fetchall()
        now = time.time_ns()
        result = []
        for _, of_one in groupby(rows, key=lambda row: str(row[0])):
            found = list(of_one)
            *said, owner = found[0][:6]
            lease = _lease(*said)
            counts = _lives(owner) if owner else lease.expires_at is None or lease.expires_at > now
            held = tuple(row[7] for row in found if row[6] == CONTENT)
            result.append(Holding(lease, counts, held))
        return result

    def held(self, digests: Sequence[str]) -> set[str]:
        """Those of `digests`, some hundreds at most, that any lease holds."""
        with self._database.reading() as connection:
            marks, values = among(digests)
            query = f"SELECT DISTINCT resource FROM cache_lease_resources WHERE type = ? AND resource IN ({marks})"
            return {resource for (resource,) in connection.execute(query, (CONTENT, *values)).fetchall()}

    def followed(self) -> set[str]:
        """The digests that leases hold with all that is linked to them, which are those that are not flat."""
        with self._database.reading() as connection:
            # By the leases, and not by all that the flat ones hold: CROSS tells SQLite the order.
            query = (
                "SELECT DISTINCT resource FROM cache_leases CROSS JOIN cache_lease_resources ON lease = id "
                "WHERE type = ? AND NOT flat"
            )
            return {resource for (resource,) in connection.execute(query, (CONTENT,)).fetchall()}

    def _is_there(self, lease_id: str) -> bool:
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM cache_leases WHERE id = ?", (lease_id,)).fetchone() is not None

    def _insert(self, lease: Lease, *, owner: str) -> bool:
        with self._database.transaction() as connection:
            done = connection.execute(
                "INSERT OR IGNORE INTO cache_leases VALUES (?, ?, ?, ?, ?, ?)",
                (lease.id, lease.created_at, lease.expires_at, lease.flat, owner, json.dumps(dict(lease.labels))),
            )
        return done.rowcount == 1


def _lease(lease_id: str, created_at: object, expires_at: object, flat: object, labels: object) -> Lease:
    """A row of the table. `DataLoss`: it is none."""
    try:
        found = json.loads(labels)  # type: ignore[arg-type]
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ValueError("its labels are no texts by name")
        if not isinstance(created_at, int) or not (expires_at is None or isinstance(expires_at, int)):
            raise ValueError("its times are no numbers")
    except (TypeError, ValueError, RecursionError) as error:
        raise unreadable(f"lease {lease_id!r:.80}", error) from None
    return Lease(lease_id, created_at, expires_at, bool(flat), found)


def current_lease() -> str | None:
    """The lease that the running work is under."""
    held = _current.get()
    return held.lease.id if held is not None else None


def _lives(owner: str) -> bool:
    pid, process, start = [*owner.split(":", 2), "", ""][:3]
    if process == _PROCESS:
        return True
    if not pid.isdigit() or int(pid) == os.getpid():
        return False  # an earlier process had our number
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    now = _start(int(pid))
    return not start or not now or start == now


def _start(pid: int) -> str:
    """When the process began, in ticks since the machine did: its number may have been another's before. Field 22 of
    proc_pid_stat(5), where the name of the program, in parentheses, may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(4096).rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError, ValueError):
        return ""
