"""How blobs come: their rows, their names and the sync of their names, once for all that come at the same time.

A blob's row, with what keeps it, and the file's bytes are durable, whichever comes first, before the file gets the
blob's name, and who brings it is told of it when the name is durable. A failure in between undoes what was done for
that blob. Others see the file from its name on, and by its rights whether that is durable (`settling`): until then who
is to rely on the blob waits for its lock.
"""

from __future__ import annotations

import contextvars
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

from blobtee.content import lastuse, records
from blobtee.content.api import Info
from blobtee.content.database import Database
from blobtee.content.files import make_directory, sync_directory
from blobtee.content.settling import SETTLED
from blobtee.content.together import Together
from blobtee.core import settle_files
from blobtee.errors import BlobteeError, one_more
from blobtee.oci import Digest

_SHORT_NBYTES = 1 << 20
"""Bytes of a file whose sync takes no longer than that of a name."""


class Claim:
    """What somebody writes in the database to keep a blob that comes, in one transaction with the blob's own row.

    It may be written again when that transaction failed: what counts is what it did the last time. The thread may be
    another one.
    """

    several: ClassVar[bool] = False
    """Whether the class has a `write_all`."""

    def write(self) -> None:
        """In a transaction, and in the context of who gave the claim."""
        raise NotImplementedError

    @classmethod
    def write_all(cls, claims: Sequence[Self]) -> bool:
        """Write several of the class by a few statements, of different blobs, in a transaction. False: they have to be
        written one by one; the transaction is taken back."""
        raise NotImplementedError


class NoClaim(Claim):
    """For whoever keeps nothing."""

    several = True

    def write(self) -> None:
        pass

    @classmethod
    def write_all(cls, claims: Sequence[Self]) -> bool:
        return True


class Arrival:
    """One blob that comes. Who makes it holds the blob's lock, and has seen that no file is there."""

    def __init__(
        self,
        data: str | Path,
        target: str,
        digest: Digest,
        size: int,
        labels: Mapping[str, str],
        claim: Claim,
        sync: Callable[[], object],
    ) -> None:
        """The file `data`, of `size` bytes, which may be written by its rights, is to have the name `target`, once
        `sync` has returned."""
        self.data = data
        self.target = target
        self.directory = os.path.dirname(target)
        self.digest = digest
        self.claim = claim
        self.sync = sync
        self.info = Info(digest, size, 0, 0, labels)
        self.before: records.Record | None = None
        self.error: Exception | None = None
        self._labels = labels
        self._context = contextvars.copy_context()
        self._announced = False
        self._named = False

    def announce(self, connection: sqlite3.Connection) -> None:
        """Write the row, in a transaction."""
        info = self.begin(time.time_ns())
        self._context.run(self.claim.write)
        before = None
        if not records.add(connection, info):
            before = records.read(connection, self.digest)
            absence = before.absence if before is not None else records.PLAIN
            if before is not None and absence:
                self.info = Info(
                    self.digest, info.size, info.created_at, info.updated_at, {**before.info.labels, **self._labels}
                )
            # The mark stays until the file is there: killed before, the blob is still one that has to come back.
            records.write(connection, self.info, absence)
        self.announced(before)

    def begin(self, now: int) -> Info:
        """The row of a blob of which there is none, for who writes it now."""
        self.info = Info(self.digest, self.info.size, now, now, self._labels)
        return self.info

    def announced(self, before: records.Record | None) -> None:
        """The row is written, in a transaction that may still fail, where `before` was one: `undo` puts that back."""
        self.before = before
        self._announced = True

    def name(self) -> None:
        """Give the file, when it is durable, its name, which is not durable yet."""
        self.sync()
        try:
            os.rename(self.data, self.target)
        except FileNotFoundError:
            make_directory(Path(self.directory))
            os.rename(self.data, self.target)
        self._named = True

    def stay(self) -> None:
        """There is no undoing it any more: by the file's rights others will rely on it."""
        self._named = self._announced = False

    def undo(self, database: Database) -> None:
        """Nobody may rely on a name that is not durable: the file gets its old one again. Twice is as good as once."""
        if self._named:
            self._named = False
            with suppress(OSError):
                os.rename(self.target, self.data)
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
        if arrival.info.size > _SHORT_NBYTES:
            arrival.sync()  # all that come at once would wait for it
        self._together.do(arrival)
        if arrival.error is not None:
            raise arrival.error
        return arrival.info

    def _settle(self, arrivals: Sequence[Arrival], let_begin: Callable[[], None]) -> None:
        try:
            self._announce(arrivals)
            # While names become durable, the rows of the next ones do; and syncs of one directory the kernel joins.
            let_begin()
            self._name(arrivals)
        except BaseException:
            for arrival in arrivals:
                arrival.undo(self._database)
            raise

    def _announce(self, arrivals: Sequence[Arrival]) -> None:
        """Write the rows, durably."""
        if len(arrivals) > 1 and self._announce_new(arrivals):
            return
        errors = self._database.transactions([arrival.announce for arrival in arrivals])
        for arrival, error in zip(arrivals, errors, strict=True):
            arrival.error = error

    def _announce_new(self, arrivals: Sequence[Arrival]) -> bool:
        """By a few statements for all of them: each lets other threads run. False: nothing has changed, as something is
        known of one of them, or wrong with one, which has to be told of that alone."""
        by_kind: dict[type[Claim], list[Claim]] = {}
        for arrival in arrivals:
            by_kind.setdefault(type(arrival.claim), []).append(arrival.claim)
        if not all(kind.several for kind in by_kind):
            return False
        try:
            with self._database.transaction() as connection:
                _write_all(connection, by_kind, arrivals)
        except _NotNew:
            return False
        except BlobteeError as error:  # not begun, or not durable: trying again would only take as long once more
            for arrival in arrivals:
                arrival.error = one_more(error)
        return True

    def _name(self, arrivals: Sequence[Arrival]) -> None:
        """Give those their names that are announced, durably."""
        named: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            if arrival.error is None:
                self._attempt(arrival.name, [arrival])
            if arrival.error is None:
                named.setdefault(arrival.directory, []).append(arrival)
        for directory, there in named.items():
            self._attempt(partial(sync_directory, directory), there)
        come = [arrival for arrival in arrivals if arrival.error is None]
        for arrival in come:
            arrival.stay()
        # What a file is when nothing can undo it any more, as good as it goes; its coming is a use of it.
        settle_files([each.target for each in come], SETTLED, lastuse.RESOLUTION_NS)

    def _attempt(self, work: Callable[[], object], arrivals: Sequence[Arrival]) -> None:
        """Do what `arrivals` need, or none of them comes."""
        try:
            work()
        except Exception as error:
            for arrival in arrivals:
                arrival.error = one_more(error)
                arrival.undo(self._database)


class _NotNew(Exception):
    """Something is known of a blob that comes, or is wrong with one."""


def _write_all(
    connection: sqlite3.Connection, claims: Mapping[type[Claim], Sequence[Claim]], arrivals: Sequence[Arrival]
) -> None:
    now = time.time_ns()
    try:
        is_new = all(kind.write_all(each) for kind, each in claims.items()) and records.add_all(
            connection, [arrival.begin(now) for arrival in arrivals]
        )
    except Exception as error:
        raise _NotNew from error
    if not is_new:
        raise _NotNew
    for arrival in arrivals:
        arrival.announced(None)
