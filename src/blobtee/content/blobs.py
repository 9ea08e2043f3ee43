"""Committed blobs of a root: the files, and one row for each with what a file cannot say.

The file decides whether a blob is there. Its row is written before the file gets its name and goes after it, so that
labels are there in a blob's first moment and a row alone means nothing. A file that somebody else put there
(containerd, skopeo) gets its row when it is first asked for.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path

from blobtee.content import filters, lastuse, records
from blobtee.content.api import Info
from blobtee.content.arrivals import Arrival, Arrivals, Claim, NoClaim
from blobtee.content.database import Database, among
from blobtee.content.digester import digest_of, digester
from blobtee.content.files import PIECE, FileReader, os_errors, set_aside, sync_directory
from blobtee.content.labels import checked, merged
from blobtee.content.locks import Locks
from blobtee.content.settling import WRITABLE, Settling
from blobtee.errors import (
    AlreadyExists,
    BlobteeError,
    DataLoss,
    Internal,
    NotFound,
    PermissionDenied,
    SizeMismatch,
    from_os_error,
)
from blobtee.oci import Descriptor, Digest
from blobtee.oci.digest import LENGTHS
from blobtee.tasks import check

_logger = logging.getLogger(__name__)

_PAGE = 500
NO_CLAIM = NoClaim()


def _is_synced() -> None:
    """For a file that is durable already."""


class Blobs:
    """Thread-safe. `locks` is None in a read-only root."""

    def __init__(self, root: Path, database: Database, locks: Locks | None) -> None:
        self._root = root
        self._directory = root / "blobs"
        self._prefix = f"{self._directory}/"
        self._database = database
        self._locks = locks
        self._arrivals = Arrivals(database)
        self._settling = Settling()
        database.migrate("blobs", records.STEPS)

    def path(self, digest: Digest) -> Path:
        return Path(self.file(digest))

    def file(self, digest: Digest) -> str:
        # Plain text: a walk and each opening come through here, and paths of pathlib cost more than the system call.
        return f"{self._prefix}{digest.algorithm}/{digest.hex}"

    def reader(self, desc: Descriptor) -> FileReader:
        """See `Provider.reader_at`; a negative `desc.size` is not compared."""
        digest = Digest(desc.digest)
        with os_errors(f"open blob {digest}"):
            try:
                fd = lastuse.open_file(self.file(digest))
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"no blob {digest} in {self._root}") from None
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise DataLoss(f"blob {digest} is no file")
                # A file as long as its descriptor says needs no second opinion: opening costs no query.
                if found.st_size != desc.size:
                    row = self._row(digest)
                    if row is not None and not row.quarantined and row.info.size != found.st_size:
                        raise _damaged(digest, row.info.size, found.st_size)
                    if desc.size >= 0:
                        raise SizeMismatch(f"blob {digest}", desc.size, found.st_size)
                lastuse.note(fd, found)
            except BaseException:
                os.close(fd)
                raise
        return FileReader(fd, found.st_size, f"blob {digest}")

    def has(self, digest: Digest) -> bool:
        """Is it there, as long as it should be?"""
        return self._is_whole(digest, self._settled(digest))

    def _is_whole(self, digest: Digest, found: os.stat_result | None) -> bool:
        if found is None:
            return False
        row = self._row(digest)
        return row is None or row.quarantined or row.info.size == found.st_size

    def info(self, digest: Digest) -> Info:
        """`NotFound`; `DataLoss` when the file has not the size that the blob had when it was committed."""
        return self._info(digest, self._settled(digest))

    def _info(self, digest: Digest, found: os.stat_result | None) -> Info:
        if found is None:
            raise NotFound(f"no blob {digest} in {self._root}")
        row = self._row(digest)
        if row is None or row.quarantined:
            return self._adopt(digest, found)
        if row.info.size != found.st_size:
            raise _damaged(digest, row.info.size, found.st_size)
        return row.info

    def check_missing(self, digest: Digest, claim: Claim = NO_CLAIM) -> None:
        """`AlreadyExists` when the blob is there: then `claim` was written while nothing could remove it."""
        if self.has(digest):
            with self._writing(digest):
                self._check_missing(digest, claim)

    def _check_missing(self, digest: Digest, claim: Claim) -> None:
        if self._is_whole(digest, self._settled(digest, locked=True)):
            claim.write()
            raise AlreadyExists(f"blob {digest} is in the store already")

    def sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """See `LocalStore.sizes`."""
        marks, values = among(digests)
        query = f"SELECT digest, size FROM blobs WHERE NOT quarantined AND digest IN ({marks})"
        with self._database.reading() as connection:
            known: dict[str, int] = dict(connection.execute(query, values).fetchall())
        found = ((digest, self._settled(digest)) for digest in digests)
        return {
            digest: status.st_size
            for digest, status in found
            if status is not None and known.get(digest, status.st_size) == status.st_size
        }

    def place(
        self,
        data: str | Path,
        digest: Digest,
        size: int,
        labels: Mapping[str, str],
        claim: Claim = NO_CLAIM,
        sync: Callable[[], object] = _is_synced,
    ) -> Info:
        """Make the file `data`, which may be written by its rights, the blob `digest`, durably; any error leaves it
        where it is. `sync` returns when the bytes of the file are durable, or raises; any thread may call it, and more
        than once.

        `claim` is written inside the transaction that makes the blob's row, before it is there; at `AlreadyExists`
        while nothing can remove it.
        """
        labels = checked(labels)
        target = self.file(digest)
        with self._writing(digest):
            if os.path.lexists(target):
                self._check_missing(digest, claim)
                aside = set_aside(self._root, Path(target), f"{digest.algorithm}-{digest.hex}")
                _logger.warning("blob %s had a wrong size; a good one takes its place, the old is %s", digest, aside)
            arrival = Arrival(data, target, digest, size, labels, claim, sync)
            info = self._arrivals.settle(arrival)
            if arrival.before is not None and arrival.before.quarantined:
                self._arrived(info)
        return info

    def update(self, digest: Digest, labels: Mapping[str, str | None], replace: bool) -> Info:
        with self._writing(digest):
            before = self._info(digest, self._settled(digest, locked=True))
            after = Info(
                digest,
                before.size,
                before.created_at,
                max(time.time_ns(), before.updated_at + 1),
                merged({} if replace else before.labels, labels),
            )
            with self._database.transaction() as connection:
                records.write(connection, after)
        return after

    def delete(self, digest: Digest) -> None:
        with self._writing(digest):
            try:
                os.unlink(self.path(digest))
            except (FileNotFoundError, NotADirectoryError):
                self._restore(digest, None)
                raise NotFound(f"no blob {digest} in {self._root}") from None
            sync_directory(self.path(digest).parent)
            self._restore(digest, None)

    def discard(self, digest: Digest) -> bool:
        """See `LocalStore.discard`. After a loss of power the file may be back, as a blob without labels."""
        if self._locks is None:
            raise PermissionDenied(f"the store in {self._root} is read-only")
        if not self._locks.try_acquire(f"blob:{digest}"):
            return False
        try:
            with os_errors(f"remove blob {digest}"), self._database.transaction() as connection:
                try:
                    os.unlink(self.path(digest))
                except (FileNotFoundError, NotADirectoryError):
                    return False
                connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
                return True
        finally:
            self._locks.release(f"blob:{digest}")

    def evict(self, digest: Digest, may_go: Callable[[], AbstractContextManager[bool]]) -> bool:
        """See `LocalStore.evict`. Killed at any point, the blob is there with its labels, or gone and they are kept."""
        if self._locks is None:
            raise PermissionDenied(f"the store in {self._root} is read-only")
        if not self._locks.try_acquire(f"blob:{digest}"):
            return False
        fd = -1
        try:
            with os_errors(f"give back the bytes of blob {digest}"):
                try:
                    info = self._info(digest, self._settled(digest, locked=True))
                    fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
                except (NotFound, FileNotFoundError):
                    return False
                row = self._row(digest)
                if row is None or row.absence != records.EVICTED:
                    with self._database.transaction() as connection:
                        records.write(connection, info, records.EVICTED)
                # Nothing is written by this one: it keeps everybody from holding the blob, who would then see it there.
                with self._database.transaction(), may_go() as allowed:
                    if not allowed:
                        return False
                    os.unlink(self.path(digest))
                sync_directory(self.path(digest).parent)
                return True
        finally:
            if fd >= 0:
                # Only now its blocks are set free, which of a large file takes a while.
                os.close(fd)
            self._locks.release(f"blob:{digest}")

    def forget(self, digest: Digest) -> None:
        """Drop what is kept of a blob that gave its bytes back; of any other, nothing happens."""
        with self._writing(digest), self._database.transaction():
            row = self._row(digest)
            if row is not None and row.absence == records.EVICTED and self._stat(digest) is None:
                self._restore(digest, None)

    def mend(self, digest: Digest) -> bool:
        """See `LocalStore.mend`."""
        with self._writing(digest):
            hashing = digester(digest.algorithm)
            with open(lastuse.open_file(self.file(digest)), "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                row = self._row(digest)
                if not stat.S_ISREG(found.st_mode) or row is None or row.quarantined or row.info.size == found.st_size:
                    return False
                while data := file.read(PIECE):
                    check()
                    hashing.update(data)
            if digest_of(digest.algorithm, hashing) != digest:
                return False
            with self._database.transaction() as connection:
                records.write(connection, dataclasses.replace(row.info, size=found.st_size))
            return True

    def last_used(self, digest: Digest) -> int:
        """Nanoseconds since the epoch; `NotFound`."""
        found = self._stat(digest)
        if found is None:
            raise NotFound(f"no blob {digest} in {self._root}")
        return found.st_atime_ns

    def quarantine(self, digest: Digest) -> Info:
        """Take a bad blob out of the store; its row stays, marked, for the good one that takes its place."""
        with self._writing(digest):
            found = self._stat(digest)
            if found is None:
                raise NotFound(f"no blob {digest} in {self._root}")
            row = self._row(digest)
            info = row.info if row is not None else _unknown(digest, found)
            with self._database.transaction() as connection:
                records.write(connection, info, records.BROKEN)
            try:
                aside = set_aside(self._root, self.path(digest), f"{digest.algorithm}-{digest.hex}")
            except BaseException:
                with suppress(BlobteeError):
                    if self._stat(digest) is not None:
                        # With that row it would be taken for a good one that has come back.
                        self._restore(digest, row)
                raise
            sync_directory(self.path(digest).parent)
            _logger.warning("blob %s is damaged; set aside as %s", digest, aside)
        return info

    def quarantined(self) -> list[Info]:
        """Blobs that were taken out and have not come back, in order of their digests."""
        return self._absent(records.BROKEN)

    def evicted(self) -> list[Info]:
        """Blobs that gave their bytes back and have not come again, in order of their digests."""
        return self._absent(records.EVICTED)

    def _absent(self, absence: int) -> list[Info]:
        with self._database.reading() as connection:
            query = f"SELECT {records.COLUMNS} FROM blobs WHERE quarantined = ? ORDER BY digest"
            rows = connection.execute(query, (absence,)).fetchall()
        infos = [records.Record(row).info for row in rows]
        return [info for info in infos if self._stat(info.digest) is None]

    def walk(self, matches: filters.Filter) -> Iterator[Info]:
        """Pages through the directory and asks for the rows of each page; nothing is held while the caller works."""
        for algorithm in LENGTHS:
            names = self._names(algorithm)
            while page := list(islice(names, _PAGE)):
                for info in self._page([Digest(f"{algorithm}:{name}") for name in page]):
                    if matches(filters.blob_fields(info.digest, info.labels)):
                        yield info

    def _names(self, algorithm: str) -> Iterator[str]:
        name = re.compile(f"[0-9a-f]{{{LENGTHS[algorithm]}}}\\Z")
        try:
            entries = os.scandir(self._directory / algorithm)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise from_os_error(error, f"list {self._directory / algorithm}") from error
        with entries, os_errors(f"list {self._directory / algorithm}"):
            for entry in entries:
                if name.match(entry.name):
                    yield entry.name

    def _page(self, digests: Sequence[Digest]) -> Iterator[Info]:
        marks, values = among(digests)
        query = f"SELECT {records.COLUMNS} FROM blobs WHERE digest IN ({marks})"
        with self._database.reading() as connection:
            found = connection.execute(query, values).fetchall()
        rows = {row[0]: row for row in found}
        for digest in digests:
            status = self._stat(digest)
            if status is None:
                continue
            row = records.Record(rows[digest], digest) if digest in rows else None
            yield _unknown(digest, status) if row is None or row.quarantined else row.info

    def _stat(self, digest: Digest) -> os.stat_result | None:
        try:
            found = os.stat(self.file(digest))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise from_os_error(error, f"look for blob {digest}") from error
        return found if stat.S_ISREG(found.st_mode) else None

    def _settled(self, digest: Digest, *, locked: bool = False) -> os.stat_result | None:
        """As `_stat`, for who tells somebody that the blob is there: it is there to stay, or is none.

        While its name is not durable, this waits for who brings it; what nobody brings is made durable now. A store
        that may only be read tells what it sees. `locked`: the caller has the blob's lock.
        """
        found = self._stat(digest)
        if found is None or not found.st_mode & WRITABLE or self._locks is None or self._settling.knows(found):
            return found
        with os_errors(f"keep blob {digest}"):
            if locked:
                return self._settle(digest)
            if not self._database.in_transaction:
                with self._locks.holding(f"blob:{digest}"):
                    return self._settle(digest)
            # Who has the lock may be waiting for this transaction.
            if not self._locks.try_acquire(f"blob:{digest}"):
                # Should he fail to do the same, the blob was not there after all.
                sync_directory(os.path.dirname(self.file(digest)))
                return self._stat(digest)
            try:
                return self._settle(digest)
            finally:
                self._locks.release(f"blob:{digest}")

    def _settle(self, digest: Digest) -> os.stat_result | None:
        """Under the blob's lock, where everybody else has settled it, undone it or gone."""
        found = self._stat(digest)
        if found is None or self._settling.knows(found):
            return found
        try:
            return self._settling.settle(self.file(digest))
        except FileNotFoundError:  # removed by somebody who takes no locks
            return None

    def _row(self, digest: Digest) -> records.Record | None:
        with self._database.reading() as connection:
            return records.read(connection, digest)

    def _adopt(self, digest: Digest, found: os.stat_result) -> Info:
        info = _unknown(digest, found)
        if self._locks is None:
            return info
        with self._database.transaction() as connection:
            row = self._row(digest)
            if row is not None and not row.quarantined:
                return row.info
            if row is not None:
                info = Info(digest, info.size, row.info.created_at, row.info.updated_at, row.info.labels)
            records.write(connection, info)
        return info

    def _restore(self, digest: Digest, row: records.Record | None) -> None:
        with self._database.transaction() as connection:
            records.restore(connection, digest, row)

    def _arrived(self, info: Info) -> None:
        """Take the mark of quarantine off. Until that is done `info()` adopts the file, so this may fail."""
        with suppress(BlobteeError), self._database.transaction() as connection:
            records.write(connection, info)

    @contextmanager
    def _writing(self, digest: Digest) -> Iterator[None]:
        """Hold the blob's lock; the file system's errors in the block leave as ours.

        `Internal` inside a transaction of this thread: who has the lock may be waiting for that, so that both would
        wait for ever.
        """
        if self._locks is None:
            raise PermissionDenied(f"the store in {self._root} is read-only")
        if self._database.in_transaction:
            raise Internal(f"blob {digest} was to be changed inside a transaction, which others may wait for")
        with self._locks.holding(f"blob:{digest}"), os_errors(f"change blob {digest}"):
            yield


def _unknown(digest: Digest, found: os.stat_result) -> Info:
    """What a file says by itself."""
    return Info(digest, found.st_size, found.st_mtime_ns, found.st_mtime_ns)


def _damaged(digest: Digest, size: int, actual: int) -> DataLoss:
    return DataLoss(
        f"blob {digest} is damaged: {actual} bytes on disk, {size} when it was written; "
        "`blobtee verify --repair` fetches it again"
    )
