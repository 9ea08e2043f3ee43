"""Directories that refs were made of: where they are, and whether they still are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from blobtee.content.database import Database, unreadable
from blobtee.content.files import os_errors
from blobtee.errors import InvalidArgument, NotFound, from_os_error
from blobtee.tasks import check

_STEPS = (
    """
    CREATE TABLE cache_snapshots (id TEXT PRIMARY KEY, form TEXT NOT NULL, path BLOB NOT NULL);
    """,
)


class Form(Enum):
    TREE = "tree"
    """The whole tree of a ref."""
    OVERLAY = "overlay"
    """What a ref puts on top of its parent, as the upper directory of an overlay mount."""


@dataclass(frozen=True)
class Snapshot:
    """A directory of the caller's. `id` is the `snapshot_id` of the records that it is for."""

    id: str
    form: Form
    path: Path

    def require(self) -> Path:
        """The path; `NotFound` when there is no directory any more, `PermissionDenied` where nobody may look."""
        with os_errors(f"use the directory {str(self.path)!r:.300}"):
            exists = self.path.is_dir()
        if not exists:
            raise NotFound(f"the directory {str(self.path)!r:.300}, which ref {self.id} was made of, is gone")
        return self.path

    def usage(self) -> int:
        """Bytes that the directory takes on its disk, as `du` counts: each inode once. 0 when it is gone."""
        seen: set[tuple[int, int]] = set()
        return sum(_taken(self.path, seen))


class Snapshots:
    """The table of directories. Thread-safe; several may be open on one database, in several processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("cache.snapshots", _STEPS)

    def insert(self, snapshot: Snapshot) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO cache_snapshots VALUES (?, ?, ?)",
                (snapshot.id, snapshot.form.value, os.fsencode(snapshot.path)),
            )

    def find(self, snapshot_id: str) -> Snapshot | None:
        """None when no directory is known by this id. `DataLoss` when what is stored makes no sense."""
        with self._database.reading() as connection:
            query = "SELECT form, path FROM cache_snapshots WHERE id = ?"
            row = connection.execute(query, (snapshot_id,)).fetchone()
        if row is None:
            return None
        try:
            return Snapshot(snapshot_id, Form(row[0]), Path(os.fsdecode(row[1])))
        except (ValueError, TypeError) as error:
            raise unreadable(f"what is known of snapshot {snapshot_id}", error) from error

    def remove_unused(self, snapshot_id: str) -> None:
        """Forget the directory when no record says that it is made of it. The directory itself is left alone."""
        with self._database.transaction() as connection:
            connection.execute(
                "DELETE FROM cache_snapshots WHERE id = ?1 "
                "AND NOT EXISTS (SELECT 1 FROM cache_records WHERE snapshot_id = ?1)",
                (snapshot_id,),
            )


def registered(path: str | os.PathLike[str], store_root: Path | None) -> Path:
    """The real path of a directory that a layer can be made of.

    `NotFound`, `InvalidArgument`: it is no directory, or the store lies in it, which would have to hold itself.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InvalidArgument(f"no path has a NUL character: {text!r:.300}")
    try:
        real = Path(os.path.realpath(text, strict=True))
    except OSError as error:
        raise from_os_error(error, f"use the directory {text!r:.300}") from error
    if not real.is_dir():
        raise InvalidArgument(f"{text!r:.300} is not a directory")
    if store_root is not None and Path(os.path.realpath(store_root)).is_relative_to(real):
        raise InvalidArgument(f"{text!r:.300} holds the store itself; a layer cannot be made of it")
    return real


def _taken(path: Path, seen: set[tuple[int, int]]) -> Iterator[int]:
    stack = [str(path)]
    try:
        yield os.lstat(path).st_blocks * 512
    except OSError:
        return
    while stack:
        check()
        try:
            with os.scandir(stack.pop()) as found:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    elif (status.st_dev, status.st_ino) in seen:
                        continue
                    elif status.st_nlink > 1:
                        seen.add((status.st_dev, status.st_ino))
                    yield status.st_blocks * 512
        except OSError:  # gone meanwhile, or not for us to see
            continue
