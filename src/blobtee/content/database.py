"""The metadata of a store: one SQLite file, shared by threads and processes.

Each room keeps its own tables in it (`migrate`). Writers take turns; readers do not wait for them (WAL).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from blobtee.content.files import WRITING
from blobtee.core import Watch
from blobtee.errors import (
    BlobteeError,
    Closed,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    StorageError,
    StorageFull,
    one_more,
)

BUSY_SECONDS = 30.0
"""How long a writer waits for the writer of another process."""

RESERVE = 6 << 20
"""Bytes: half as much again as the log has at a checkpoint (SQLite's 1000 pages), for when that one fails."""

BALLAST = 1 << 20
"""Bytes of a file beside the database that goes when that is opened on a full disk, and comes again in the end. SQLite
takes room for its log, and an index of that, before anything can be read: who is to make room would need some first."""

_IDLE = 8
_logger = logging.getLogger(__name__)
# SQLite says the same of a page that the disk could not read just now.
_REMEDY = "if it stays so, stop all that use the store, move blobtee.db* away and start again: the blobs stay"
_STEPS_TABLE = "CREATE TABLE IF NOT EXISTS migrations (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"


class Database:
    """Thread-safe. Errors of SQLite inside the blocks of `transaction()` and `reading()` leave as errors of ours:
    `DataLoss` for a damaged file, `StorageFull`, `PermissionDenied`, `ResourceExhausted` when other processes hold it
    for too long, `StorageError` and `Internal` for the rest.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        """Open or create the file at `path`; None means a private one in memory.

        With `read_only` nothing is created; a file that is not there reads as an empty database.
        """
        self._path = path
        self._read_only = read_only
        self._immutable = False
        self._memory = path is None or (read_only and not path.exists())
        self._what = "the metadata" if path is None else str(path)
        self._lock = threading.Lock()
        self._turn = threading.RLock()
        self._own = threading.local()
        self._idle: list[sqlite3.Connection] = []
        self._watched: tuple[Watch, sqlite3.Connection] | None = None
        self._closed = False
        if not self._memory and not read_only:
            self._drop_ballast()
        with self._translated():
            self._idle.append(self._first())

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A block that changes everything it changes, durably when left, or nothing when an error leaves it.

        Writers of all processes take turns. A block inside another one of the same thread joins it.
        """
        if self._read_only:
            raise PermissionDenied(f"the store is read-only: cannot change {self._what}")
        outer: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if outer is not None:
            if not outer.in_transaction:
                raise Internal("a transaction was begun inside a block that only reads")
            yield outer
            return
        with self._turn, self._translated(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a block of `transaction()` or `reading()`."""
        return getattr(self._own, "connection", None) is not None

    def transactions(self, works: Sequence[Callable[[sqlite3.Connection], object]]) -> list[Exception | None]:
        """Do each of `works` as in a transaction of its own; returns what went wrong with each, None for one that is
        durable.

        It is one transaction for all, and one sync. When one of them fails, none has changed anything, and each is done
        again by itself, which it has to bear. When the one cannot be begun or made durable, that is the error of all.
        Inside a block of `transaction()` of this thread they are a part of that.
        """
        if len(works) > 1 and not self.in_transaction:
            try:
                with self.transaction() as connection:
                    for work in works:
                        _tried(work, connection)
                return [None] * len(works)
            except _Failed:
                pass
            except BlobteeError as error:
                return [one_more(error) for _ in works]
        return [self._alone(work) for work in works]

    def _alone(self, work: Callable[[sqlite3.Connection], object]) -> Exception | None:
        try:
            with self.transaction() as connection:
                work(connection)
        except Exception as error:
            return error
        return None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A block of statements that only read. Inside a transaction of this thread it sees that one's changes."""
        outer: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if outer is not None:
            yield outer
            return
        if self._memory:
            with self._turn, self._translated(), self._connection() as connection:
                yield connection
        else:
            with self._translated(), self._connection() as connection:
                yield connection

    def migrate(self, component: str, steps: Sequence[str]) -> None:
        """Bring the tables of `component` up to date: run those of `steps` (SQL scripts, never changed once shipped,
        only added to) that it has not seen, all in one transaction.

        `FailedPrecondition` when the file was made by a newer version, with more steps than these.
        """
        if self._read_only and not self._memory:
            self._require(component, len(steps))
            return
        with self._turn, self._translated(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._step(connection, component, steps)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def check(self) -> None:
        """Read all of it: `DataLoss` when SQLite finds it damaged, also where nobody has looked yet."""
        with self.reading() as connection:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise DataLoss(f"{self._what} is damaged ({' '.join(found.split()):.300}); {_REMEDY}")

    def reserve(self) -> None:
        """Take room on the disk for `RESERVE` bytes of changes, for as long as the database is open in some process: so
        that on a full disk what is not needed can still be let go of, which is a change too. As good as it goes.

        The log may be longer than what is in it: SQLite reads up to the first frame whose checksum is wrong, and writes
        over it from the beginning after each checkpoint (SQLite, fileformat2, "The Write-Ahead Log").
        """
        if self._memory or self._read_only:
            return
        try:
            fd = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.posix_fallocate(fd, 0, RESERVE)
            finally:
                os.close(fd)
        except OSError as error:
            _logger.warning("no room is kept for changes of %s on a full disk: %s", self._what, error.strerror)

    def watch(self) -> Watch | None:
        """What tells of each change that is committed, by whichever process, until `close`. None: that cannot be told
        of this database."""
        if self._memory or self._read_only:
            return None
        with self._turn:
            if self._watched is not None:
                return self._watched[0]
            with self._translated():
                # A connection of its own keeps what is watched: the last one that is closed takes it away.
                connection = self._probed(self._connect())
            try:
                assert self._path is not None
                watch = Watch(self._path)
            except (InvalidArgument, OSError):
                connection.close()
                return None
            with self._lock:
                self._watched = (watch, connection)
                if not self._closed:
                    return watch
        self.close()
        raise Closed("the store is closed")

    def close(self) -> None:
        """Close all connections that are not in use; one in use is closed when its block ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            watched, self._watched = self._watched, None
        if watched is not None:
            watched[0].end()
            idle.append(watched[1])
        for connection in idle:
            connection.close()
        if not self._memory and not self._read_only:
            self._take_ballast()

    def _drop_ballast(self) -> None:
        with suppress(OSError):
            if self._free() < BALLAST:
                os.unlink(f"{self._path}-ballast")

    def _take_ballast(self) -> None:
        """As good as it goes: it is for a day that may never come."""
        with suppress(OSError):
            path = f"{self._path}-ballast"
            if self._free() >= BALLAST and not (os.path.exists(path) and os.path.getsize(path) == BALLAST):
                fd = os.open(path, WRITING, 0o600)
                try:
                    os.posix_fallocate(fd, 0, BALLAST)
                finally:
                    os.close(fd)

    def _free(self) -> int:
        assert self._path is not None
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize

    def _step(self, connection: sqlite3.Connection, component: str, steps: Sequence[str]) -> None:
        connection.execute(_STEPS_TABLE)
        version = self._version(connection, component)
        if version > len(steps):
            raise self._newer()
        for step in steps[version:]:
            # Not executescript(), which commits what came before.
            statement = ""
            for part in step.split(";"):
                statement += part + ";"
                if sqlite3.complete_statement(statement):
                    connection.execute(statement)
                    statement = ""
        connection.execute("INSERT OR REPLACE INTO migrations VALUES (?, ?)", (component, len(steps)))

    def _require(self, component: str, version: int) -> None:
        with self.reading() as connection:
            try:
                there = self._version(connection, component)
            except sqlite3.OperationalError:  # no table of migrations yet
                there = 0
        if there > version:
            raise self._newer()
        if there < version:
            raise PermissionDenied(f"{self._what} needs an update of its tables, and the store is read-only")

    @staticmethod
    def _version(connection: sqlite3.Connection, component: str) -> int:
        row = connection.execute("SELECT version FROM migrations WHERE component = ?", (component,)).fetchone()
        if row is not None and not isinstance(row[0], int):
            raise unreadable("the version of the tables of the metadata", "it is no number")
        return row[0] if row is not None else 0

    def _newer(self) -> BlobteeError:
        return FailedPrecondition(f"{self._what} was written by a newer version of blobtee; update this one")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise Closed("the store is closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        self._own.connection = connection
        try:
            yield connection
        finally:
            self._own.connection = None
            if connection.in_transaction:
                # Interrupted where nobody could roll back: kept like this, it would lock all others out.
                connection.rollback()
            with self._lock:
                keep = not self._closed and len(self._idle) < _IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        if self._memory:
            return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        mode = "mode=rwc" if not self._read_only else "mode=ro&immutable=1" if self._immutable else "mode=ro"
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(str(self._path)))}?{mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if not self._read_only:
                # Labels are as durable as the blob they belong to, so each commit is synced.
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _first(self) -> sqlite3.Connection:
        """The first connection; it finds out whether the file can be used at all."""
        if self._memory:
            return self._connect()
        if self._read_only:
            return self._first_read_only()
        connection = self._connect()
        try:
            deadline = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    return connection
                except sqlite3.OperationalError as error:
                    # Two processes that create the file at once: SQLite does not wait here by itself.
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        except BaseException:
            connection.close()
            raise

    def _first_read_only(self) -> sqlite3.Connection:
        try:
            return self._probed(self._connect())
        except sqlite3.OperationalError:
            # WAL needs its side files, and here nobody may create them. So nobody else is writing either.
            self._immutable = True
            return self._probed(self._connect())

    @staticmethod
    def _probed(connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: sqlite3.Error) -> BlobteeError:
        code = getattr(error, "sqlite_errorcode", None)
        code = code & 0xFF if code is not None else None
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return DataLoss(f"{self._what} is damaged ({error}); {_REMEDY}")
        if code == sqlite3.SQLITE_FULL:
            return StorageFull(f"cannot write {self._what}: {error}; free some space and run the same command again")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return PermissionDenied(f"cannot write {self._what}: {error}")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM):
            return ResourceExhausted(f"cannot use {self._what}: {error}")
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return StorageError(f"cannot use {self._what}: {error}")
        return Internal(f"a statement on {self._what} failed: {error}")


def unreadable(what: str, why: object) -> DataLoss:
    """The error for a row that SQLite gives, but that no version of blobtee has written."""
    return DataLoss(f"{what} cannot be read: {why}; {_REMEDY}")


def among(values: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """What stands in the brackets of `IN (…)`, and the parameters for it, which are `values`, the last of them perhaps
    more than once: SQLite keeps what it prepared of each text, and a text for each number of values would be hundreds,
    with tens of KiB each, for every connection."""
    rounded = 1 << max(0, len(values) - 1).bit_length()
    padded = (*values, *(values[-1] for _ in range(rounded - len(values)) if values))
    return ",".join("?" * len(padded)), padded


def rows(values: Sequence[tuple[str | int, ...]]) -> tuple[str, tuple[str | int, ...]]:
    """What stands behind `VALUES`, and the parameters for it; one of the rows perhaps more than once, as in `among`."""
    row = f"({','.join('?' * len(values[0]))})"
    rounded = 1 << (len(values) - 1).bit_length()
    parameters = [*chain.from_iterable(values)]
    if missing := rounded - len(values):
        # SQLite copies each of them, and labels may have a MiB.
        parameters += min(values, key=_nchars) * missing
    return ",".join([row] * rounded), tuple(parameters)


def _nchars(row: tuple[str | int, ...]) -> int:
    return sum(len(value) for value in row if isinstance(value, str))


class _Failed(Exception):
    """One of several works in a transaction has failed."""


def _tried(work: Callable[[sqlite3.Connection], object], connection: sqlite3.Connection) -> None:
    try:
        work(connection)
    except Exception as error:
        raise _Failed from error
