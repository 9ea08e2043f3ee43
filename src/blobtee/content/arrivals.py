"""How blobs come: their rows, their names and the sync of their names, once for all that come at the same time.

A blob's row, with what keeps it, is durable before its file gets the blob's name, and who brings it is told of it when
the name is durable. A failure in between undoes what was done for that blob. Others see the file from its name on, and
by its rights whether that is durable (`settling`): until then who is to rely on the blob waits for its lock.
"""

from __future__ import annotations

import contextvars
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from blobtee.content import lastuse, records
from blobtee.content.api import Info
from blobtee.content.database import Database
from blobtee.content.files import make_directory, sync_directory
from blobtee.content.settling import COMING, SETTLED
from blobtee.content.together import Together
from blobtee.errors import BlobteeError, one_more
from blobtee.oci import Digest

Claim = Callable[[], None]
"""What somebody writes in the database to keep a blob that comes, in one transaction with the blob's own row.

It may be called again when that transaction failed: what counts is what it did the last time. The thread may be
another one; the context is that of who gave it."""


class Arrival:
    """One blob that comes. Who makes it holds the blob's lock, and has seen that no file is there."""

    def __init__(
        self, data: str | Path, target: str, digest: Digest, size: int, labels: Mapping[str, str], claim: Claim
    ) -> None:
        """The synced file `data`, of `size` bytes, is to have the name `target`."""
        self.data = data
        self.target = target
        self.directory = os.path.dirname(target)
        self.digest = digest
        self.info = Info(digest, size, 0, 0, labels)
        self.before: records.Record | None = None
        self.error: Exception | None = None
        self._labels = labels
        self._claim = claim
        self._context = contextvars.copy_context()
        self._announced = False
        self._named = False
        self._rights: int | None = None

    def announce(self, connection: sqlite3.Connection) -> None:
        """Write the row, in a transaction."""
        now = time.time_ns()
        self.before = None
        self.info = Info(self.digest, self.info.size, now, now, self._labels)
        self._context.run(self._claim)
        if not records.add(connection, self.info):
            self.before = before = records.read(connection, self.digest)
            absence = before.absence if before is not None else records.PLAIN
            if before is not None and absence:
                self.info = Info(self.digest, self.info.size, now, now, {**before.info.labels, **self._labels})
            # The mark stays until the file is there: killed before, the blob is still one that has to come back.
            records.write(connection, self.info, absence)
        self._announced = True

    def name(self) -> None:
        """Give the file its name, which is not durable yet, and does not look it."""
        rights = stat.S_IMODE(os.stat(self.data).st_mode)
        if rights != COMING:
            # What is linked may have those of a blob; of a file system that refuses there is no telling.
            with suppress(OSError):
                os.chmod(self.data, COMING)
                self._rights = rights
        try:
            os.rename(self.data, self.target)
        except FileNotFoundError:
            make_directory(Path(self.directory))
            os.rename(self.data, self.target)
        self._named = True

    def finish(self) -> None:
        """What the file is when nothing can undo it any more, as good as it goes: until then a writer may go on."""
        with suppress(OSError):  # not every file system has rights
            os.chmod(self.target, SETTLED)
        with suppress(OSError):
            lastuse.came(self.target)

    def undo(self, database: Database) -> None:
        """Nobody may rely on a name that is not durable: the file gets its old one again. Twice is as good as once."""
        if self._named:
            self._named = False
            with suppress(OSError):
                os.rename(self.target, self.data)
        if self._rights is not None:
            rights, self._rights = self._rights, None
            with suppress(OSError):
                os.chmod(self.data, rights)
        if self._announced:
            self._announced = False
            with suppress(BlobteeError), database.transaction() as connection:  # a row alone means nothing
                records.restore(connection, self.digest, self.before)


class Arrivals:
    """Those of one store in one process. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together = Together(self._settle)

    def settle(self, arrival: Arrival) -> Info:
        """Make it a blob, durably, or raise what went wrong: then nothing has changed. Not inside a transaction of this
        thread, which those would wait for that do it for all."""
        self._together.do(arrival)
        if arrival.error is not None:
            raise arrival.error
        return arrival.info

    def _settle(self, arrivals: Sequence[Arrival]) -> None:
        try:
            errors = self._database.transactions([arrival.announce for arrival in arrivals])
            for arrival, error in zip(arrivals, errors, strict=True):
                arrival.error = error
                if error is None:
                    self._attempt(arrival.name, [arrival])
            named: dict[str, list[Arrival]] = {}
            for arrival in arrivals:
                if arrival.error is None:
                    named.setdefault(arrival.directory, []).append(arrival)
            for directory, there in named.items():
                self._attempt(partial(sync_directory, directory), there)
        except BaseException:
            for arrival in arrivals:
                arrival.undo(self._database)
            raise
        for arrival in arrivals:
            if arrival.error is None:
                arrival.finish()

    def _attempt(self, work: Callable[[], object], arrivals: Sequence[Arrival]) -> None:
        """Do what `arrivals` need, or none of them comes."""
        try:
            work()
        except Exception as error:
            for arrival in arrivals:
                arrival.error = one_more(error)
                arrival.undo(self._database)
