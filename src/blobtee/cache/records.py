"""Records of refs, in the store's database. They outlive the process; who uses them right now does not."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from blobtee.compression import Compression
from blobtee.content.database import Database, unreadable
from blobtee.errors import AlreadyExists, NotFound
from blobtee.oci import Descriptor, Digest

_STEPS = (
    """
    CREATE TABLE cache_records (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, blob TEXT, size INTEGER NOT NULL, media_type TEXT NOT NULL,
        diff_id TEXT, chain_id TEXT, blob_chain_id TEXT, urls TEXT NOT NULL, description TEXT NOT NULL,
        created_at INTEGER NOT NULL, snapshot_id TEXT NOT NULL, blob_only INTEGER NOT NULL
    );
    CREATE INDEX cache_records_chain ON cache_records (chain_id);
    CREATE INDEX cache_records_blob_chain ON cache_records (blob_chain_id);
    CREATE INDEX cache_records_blob ON cache_records (blob);
    CREATE TABLE cache_parents (
        record TEXT NOT NULL, position INTEGER NOT NULL, parent TEXT NOT NULL, PRIMARY KEY (record, position)
    );
    CREATE INDEX cache_parents_parent ON cache_parents (parent);
    CREATE TABLE cache_image_refs (
        record TEXT NOT NULL, position INTEGER NOT NULL, ref TEXT NOT NULL, PRIMARY KEY (record, ref)
    );
    """,
    """
    ALTER TABLE cache_records ADD COLUMN recipe TEXT NOT NULL DEFAULT '';
    """,
)


class Kind(Enum):
    """What a ref is: a first layer, one on another ref, refs one after another, or what one changes over another."""

    BASE = "base"
    LAYER = "layer"
    MERGE = "merge"
    DIFF = "diff"


@dataclass(frozen=True)
class Recipe:
    """How a blob is made of a directory: with it, the same bytes can be made again. `epoch` is Unix seconds.

    `annotations` are those of the blob that was made: its labels in the store go with it.
    """

    compression: Compression
    epoch: int | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What is remembered of a ref (`spec/remote.md` section 2).

    `parents` are ids: none for a base, one for a layer, those merged in order for a merge, lower ("" for nothing) and
    upper for a diff. `size` is the blob's, in bytes. `created_at` is nanoseconds since the epoch, 0 when not set.
    `recipe` is of a blob that was made here of a directory. `snapshot_id` says of which (see `Snapshots`).
    """

    id: str
    kind: Kind
    parents: tuple[str, ...] = ()
    blob: Digest | None = None
    size: int = 0
    media_type: str = ""
    diff_id: Digest | None = None
    chain_id: Digest | None = None
    blob_chain_id: Digest | None = None
    urls: tuple[str, ...] = ()
    image_refs: tuple[str, ...] = ()
    description: str = ""
    created_at: int = 0
    snapshot_id: str = ""
    blob_only: bool = False
    recipe: Recipe | None = None


def new_id() -> str:
    """An id that no other record has."""
    return secrets.token_hex(16)


class Records:
    """The table of records. Thread-safe; several may be open on one database, in several processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("cache.records", _STEPS)

    def get(self, record_id: str) -> Record:
        """`NotFound`; `DataLoss` when what is stored makes no sense."""
        with self._database.reading() as connection:
            row = connection.execute(f"{_SELECT} WHERE id = ?", (record_id,)).fetchone()
            if row is None:
                raise NotFound(f"no ref {record_id[:80]!r}")
            return _record(connection, row)

    def all(self) -> Iterator[Record]:
        """Every record, by id. No lock is held between two of them."""
        last = ""
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(f"{_SELECT} WHERE id > ? ORDER BY id LIMIT 100", (last,)).fetchall()
                records = [_record(connection, row) for row in rows]
            if not records:
                return
            yield from records
            last = records[-1].id

    def by_blob_chain(self, blob_chain_id: str) -> list[Record]:
        return self._by("blob_chain_id", blob_chain_id)

    def by_chain(self, chain_id: str) -> list[Record]:
        return self._by("chain_id", chain_id)

    def on_blob(self, digest: str) -> list[str]:
        """Ids of the records that have the blob, and of all that are built on them."""
        with self._database.reading() as connection:
            query = (
                "WITH RECURSIVE found(id) AS (SELECT id FROM cache_records WHERE blob = ? UNION "
                "SELECT record FROM cache_parents JOIN found ON parent = id) SELECT id FROM found ORDER BY id"
            )
            return [record_id for (record_id,) in connection.execute(query, (digest,)).fetchall()]

    def children(self, record_id: str) -> list[str]:
        """Ids of the records that have this one as a parent."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT DISTINCT record FROM cache_parents WHERE parent = ?", (record_id,))
            return [row[0] for row in rows.fetchall()]

    def insert(self, record: Record) -> None:
        """`AlreadyExists` when the id is taken."""
        with self._database.transaction() as connection:
            known = connection.execute("SELECT 1 FROM cache_records WHERE id = ?", (record.id,)).fetchone()
            if known:
                raise AlreadyExists(f"ref {record.id} is there already")
            connection.execute(
                "INSERT INTO cache_records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.kind.value,
                    record.blob,
                    record.size,
                    record.media_type,
                    record.diff_id,
                    record.chain_id,
                    record.blob_chain_id,
                    json.dumps(record.urls),
                    record.description,
                    record.created_at,
                    record.snapshot_id,
                    record.blob_only,
                    _written(record.recipe),
                ),
            )
            connection.executemany(
                "INSERT INTO cache_parents VALUES (?, ?, ?)",
                [(record.id, position, parent) for position, parent in enumerate(record.parents)],
            )
            for image_ref in record.image_refs:
                self.add_image_ref(record.id, image_ref)

    def add_image_ref(self, record_id: str, image_ref: str) -> None:
        """Remember one more image that the record is part of; a known one stays where it is in the order."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO cache_image_refs SELECT ?1, coalesce(max(position), -1) + 1, ?2 "
                "FROM cache_image_refs WHERE record = ?1",
                (record_id, image_ref),
            )

    def describe(self, record_id: str, description: str, *, only_when_empty: bool = False) -> None:
        condition = " AND description = ''" if only_when_empty else ""
        with self._database.transaction() as connection:
            connection.execute(
                f"UPDATE cache_records SET description = ? WHERE id = ?{condition}", (description, record_id)
            )

    def set_blob(self, record_id: str, desc: Descriptor, diff_id: Digest, recipe: Recipe) -> Record:
        """Give the record the blob that was made for it, unless it has one by now; the record as it is then.

        `NotFound` when the record was removed meanwhile.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE cache_records SET blob = ?, size = ?, media_type = ?, diff_id = ?, recipe = ?, blob_only = 0 "
                "WHERE id = ? AND blob IS NULL",
                (desc.digest, desc.size, desc.media_type, diff_id, _written(recipe), record_id),
            )
            return self.get(record_id)

    def set_chain_ids(self, record_id: str, chain_id: Digest, blob_chain_id: Digest) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE cache_records SET chain_id = ?, blob_chain_id = ? WHERE id = ? AND chain_id IS NULL",
                (chain_id, blob_chain_id, record_id),
            )

    def remove(self, record_id: str) -> None:
        """Forget the record; one that is not there is no error."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM cache_records WHERE id = ?", (record_id,))
            connection.execute("DELETE FROM cache_parents WHERE record = ?", (record_id,))
            connection.execute("DELETE FROM cache_image_refs WHERE record = ?", (record_id,))

    def _by(self, column: str, value: str) -> list[Record]:
        with self._database.reading() as connection:
            rows = connection.execute(f"{_SELECT} WHERE {column} = ? ORDER BY created_at, id", (value,)).fetchall()
            return [_record(connection, row) for row in rows]


_SELECT = (
    "SELECT id, kind, blob, size, media_type, diff_id, chain_id, blob_chain_id, urls, description, created_at, "
    "snapshot_id, blob_only, recipe FROM cache_records"
)


def _record(connection: sqlite3.Connection, row: tuple[str, ...]) -> Record:
    record_id, kind, blob, size, media_type, diff_id, chain_id, blob_chain_id, urls, description, created_at = row[:11]
    parents = connection.execute("SELECT parent FROM cache_parents WHERE record = ? ORDER BY position", (record_id,))
    refs = connection.execute("SELECT ref FROM cache_image_refs WHERE record = ? ORDER BY position", (record_id,))
    try:
        return Record(
            id=record_id,
            kind=Kind(kind),
            parents=tuple(parent for (parent,) in parents.fetchall()),
            blob=Digest(blob) if blob else None,
            size=int(size),
            media_type=media_type,
            diff_id=Digest(diff_id) if diff_id else None,
            chain_id=Digest(chain_id) if chain_id else None,
            blob_chain_id=Digest(blob_chain_id) if blob_chain_id else None,
            urls=tuple(str(url) for url in json.loads(urls)),
            image_refs=tuple(ref for (ref,) in refs.fetchall()),
            description=description,
            created_at=int(created_at),
            snapshot_id=row[11],
            blob_only=bool(row[12]),
            recipe=_recipe(row[13]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise unreadable(f"the record of ref {record_id}", error) from error


def _written(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    compression = recipe.compression
    return json.dumps(
        {
            "type": compression.type.value,
            "level": compression.level,
            "epoch": recipe.epoch,
            "annotations": dict(recipe.annotations),
        }
    )


def _recipe(text: str) -> Recipe | None:
    if not text:
        return None
    value = json.loads(text)
    annotations = {str(key): str(text) for key, text in value["annotations"].items()}
    return Recipe(Compression(value["type"], level=value["level"]), value["epoch"], annotations)
