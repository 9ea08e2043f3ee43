"""The row that each blob has: what its file cannot say."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from blobtee.content.api import Info
from blobtee.content.database import rows, unreadable
from blobtee.errors import InvalidDigest
from blobtee.oci import Digest

STEPS = (
    """
    CREATE TABLE blobs (
        digest TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        labels TEXT NOT NULL,
        quarantined INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    """,
)
COLUMNS = "digest, size, created_at, updated_at, labels, quarantined"

_ROW = f"blobs ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"

# What `quarantined` holds: what becomes of a row whose file is not there.
PLAIN = 0
"""It means nothing: a commit was cut off."""
BROKEN = 1
"""The blob was set aside as damaged; a good one has the labels from its first moment on."""
EVICTED = 2
"""The same, of a blob that gave its bytes back. It says nothing as long as the file is there."""


class Record:
    """One row of the table; `DataLoss` when it cannot be read."""

    def __init__(self, row: tuple[str, int, int, int, str, int], digest: Digest | None = None) -> None:
        name, size, created_at, updated_at, labels, absence = row
        try:
            parsed = json.loads(labels) if labels != "{}" else {}
        except (ValueError, TypeError, RecursionError) as error:
            raise unreadable(f"the labels of blob {name}", error) from None
        if not isinstance(parsed, dict) or not all(isinstance(value, str) for value in parsed.values()):
            raise unreadable(f"the labels of blob {name}", "they are no texts by name")
        if not (isinstance(size, int) and isinstance(created_at, int) and isinstance(updated_at, int)):
            raise unreadable(f"the row of blob {name}", "size or times are no numbers")
        try:
            self.info = Info(digest or Digest(name), size, created_at, updated_at, parsed)
        except (InvalidDigest, TypeError) as error:
            raise unreadable("a row of the metadata", error) from None
        self.absence = absence
        self.quarantined = absence == BROKEN


def read(connection: sqlite3.Connection, digest: Digest) -> Record | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM blobs WHERE digest = ?", (digest,)).fetchone()
    return Record(row, digest) if row is not None else None


def add(connection: sqlite3.Connection, info: Info) -> bool:
    """Write the row of a blob that has none; False when it has."""
    done = connection.execute(f"INSERT OR IGNORE INTO {_ROW}", _values(info, PLAIN))
    return done.rowcount == 1


def add_all(connection: sqlite3.Connection, infos: Sequence[Info]) -> bool:
    """As `add`, of some dozens of blobs by one statement; False when any of them has a row."""
    marks, values = rows([_values(info, PLAIN) for info in infos])
    done = connection.execute(f"INSERT OR IGNORE INTO blobs ({COLUMNS}) VALUES {marks}", values)
    return done.rowcount == len(infos)


def write(connection: sqlite3.Connection, info: Info, absence: int = PLAIN) -> None:
    connection.execute(f"INSERT OR REPLACE INTO {_ROW}", _values(info, absence))


def restore(connection: sqlite3.Connection, digest: Digest, row: Record | None) -> None:
    """Make the row of a blob what it was before: `row`, or none."""
    if row is None:
        connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
    else:
        write(connection, row.info, row.absence)


def _values(info: Info, absence: int) -> tuple[str | int, ...]:
    labels = json.dumps(dict(info.labels)) if info.labels else "{}"
    return info.digest, info.size, info.created_at, info.updated_at, labels, absence
