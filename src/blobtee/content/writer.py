"""The writer of one ingest on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from blobtee import tasks
from blobtee.content.api import Info, Status, Writer
from blobtee.content.arrivals import Claim
from blobtee.content.blobs import NO_CLAIM, Blobs
from blobtee.content.checks import check_commit, check_truncation, flat
from blobtee.content.digester import EMPTY, Hash, appended, digest_of, digester
from blobtee.content.files import PIECE, WRITING, Writeback, os_errors, write_all
from blobtee.content.ingests import Ingest
from blobtee.core import Sync
from blobtee.errors import AlreadyExists, BlobteeError, Closed, StorageFull, from_os_error
from blobtee.oci import Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_logger = logging.getLogger(__name__)

ALLOCATE_FROM = 1 << 20
"""Bytes from which on space for the whole blob is asked for before its first byte."""


class LocalWriter(Writer):
    """Writes at the end of the ingest's `data`, and hashes what it writes.

    Whoever makes one holds the ingest's lock; `release` is called once, when the writer is through with it.
    """

    def __init__(self, ingest: Ingest, status: Status, blobs: Blobs, release: Callable[[], None]) -> None:
        """Open the data, cut to `status.offset`, and hash what is there; the lock stays with the caller on errors."""
        self._ingest = ingest
        self._status = status
        self._blobs = blobs
        self._release = release
        # Closing the store closes its writers, and must not pull the descriptor from under one that is writing.
        self._turn = threading.RLock()
        self._algorithm = status.expected.algorithm if status.expected is not None else "sha256"
        self._hash = digester(self._algorithm)
        self._digest: Digest | None = EMPTY[self._algorithm]  # of what was hashed so far; None: not known yet
        self._offset_fd = -1
        self._allocate = status.total >= ALLOCATE_FROM
        self._sync: Sync | None = None  # of all that is written
        self._touched = False
        self._writeback = Writeback(status.offset)
        self._fd = ingest.open_data()
        if not ingest.is_new:
            try:
                self._resume()
            except BaseException:
                os.close(self._fd)
                raise

    def _resume(self) -> None:
        # The rest may be space that was allocated ahead, or bytes that nobody counted when the writer was killed.
        if os.fstat(self._fd).st_size > self._status.offset:
            os.ftruncate(self._fd, self._status.offset)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._ingest.offset_file)
        self._digest = None
        self._hash = self._hash_file(self._algorithm, self._status.offset)

    @property
    def status(self) -> Status:
        return self._status

    @property
    def digest(self) -> Digest:
        with self._turn:
            if self._digest is None:
                self._digest = digest_of(self._algorithm, self._hash)
            return self._digest

    def write(self, data: Buffer) -> int:
        """See `Writer.write`. When `status.total` bytes are there their sync begins, so that `commit` finds it done.

        A failed sync starts the ingest over: nobody knows then which bytes reached the disk. What comes next raises it:
        another write, or the commit.
        """
        with self._turn, flat(data) as view:
            self._check_open()
            if not view.nbytes:
                return 0
            self._end_sync()
            self._allocate_ahead()
            for start in range(0, view.nbytes, PIECE):
                with view[start : start + PIECE] as piece:
                    self._append(piece)
            if self._status.offset == self._status.total:
                self._begin_sync()
            return view.nbytes

    def truncate(self, size: int) -> None:
        """Any `size` up to the current offset; other than 0 it reads what stays. An error closes the writer: whoever
        resumes the ingest hashes what is there anew. But a sync that failed starts the ingest over, as in `write`."""
        with self._turn, os_errors("truncate an ingest"):
            self._check_open()
            check_truncation(size, self._status.offset)
            self._end_sync()
            try:
                self._cut(size)
            except BaseException:
                # The data and the hash do not belong together any more.
                self._finish(self._leave)
                raise

    def commit(
        self,
        size: int = 0,
        expected: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        claim: Claim = NO_CLAIM,
    ) -> Info:
        """See `Writer.commit`, and `Blobs.place` for `claim`. After any error the writer is closed."""
        with self._turn:
            self._check_open()
            try:
                info = self._commit(size, expected, labels or {}, claim)
            except AlreadyExists:
                self._finish(self._ingest.remove)
                raise
            except BaseException:
                self._finish(self._leave)
                raise
            self._finish(self._ingest.retire)
            return info

    def close(self) -> None:
        with self._turn:
            self._finish(self._leave)

    def _commit(self, size: int, expected: str | None, labels: Mapping[str, str], claim: Claim) -> Info:
        digest = check_commit(self._status, size, expected, self._digest_as)
        with os_errors(f"commit blob {digest}"):
            self._settle()
            if self._sync is None:
                self._blobs.check_missing(digest, claim)
                self._begin_sync()
            return self._blobs.place(
                self._ingest.data, digest, self._status.offset, labels, claim, sync=self._wait_for_sync
            )

    def _cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self._advance_to(size)
        self._drop_offset_file()
        self._digest = None
        self._hash = self._hash_file(self._algorithm, size)
        self._writeback = Writeback(size)
        self._allocate = self._status.total >= ALLOCATE_FROM

    def _append(self, piece: memoryview) -> None:
        """Write and hash one piece; a piece that fails leaves no trace."""
        offset = self._status.offset
        try:
            write_all(self._fd, piece, offset)
            if self._offset_fd >= 0:
                os.pwrite(self._offset_fd, b"%020d" % (offset + piece.nbytes), 0)
        except OSError as error:
            if self._offset_fd < 0:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, offset)
            raise from_os_error(error, f"write {piece.nbytes} bytes to an ingest at offset {offset}") from error
        self._digest = appended(self._algorithm, self._hash, piece)
        self._advance_to(offset + piece.nbytes)
        self._writeback.written(self._fd, offset + piece.nbytes)

    def _advance_to(self, offset: int) -> None:
        self._touched = True
        self._status = dataclasses.replace(
            self._status, offset=offset, updated_at=max(time.time_ns(), self._status.updated_at)
        )

    def _allocate_ahead(self) -> None:
        """Ask for the space of the whole blob, once: a full disk shows now, and the file comes out in few pieces."""
        if not self._allocate:
            return
        self._allocate = False
        offset, total = self._status.offset, self._status.total
        if offset >= total:
            return
        try:
            self._offset_fd = os.open(self._ingest.offset_file, WRITING, 0o644)
            os.pwrite(self._offset_fd, b"%020d" % offset, 0)
            os.posix_fallocate(self._fd, offset, total - offset)
        except OSError as error:
            with os_errors("undo an allocation"):
                os.ftruncate(self._fd, offset)
                self._drop_offset_file()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._allocate = True
                raise StorageFull(
                    f"no room for a blob of {total} bytes; free some space and run the same command again"
                ) from error
            # The file system cannot allocate ahead, or not that much: it will say so when it is full.

    def _settle(self) -> None:
        """Make the length of the data the offset again."""
        if self._offset_fd >= 0:
            if os.fstat(self._fd).st_size != self._status.offset:
                self._end_sync()  # it knew another length: of a write that failed behind what was announced
                os.ftruncate(self._fd, self._status.offset)
            self._drop_offset_file()

    def _drop_offset_file(self) -> None:
        if self._close_offset_file():
            os.unlink(self._ingest.offset_file)

    def _close_offset_file(self) -> bool:
        """Whether it was open."""
        fd, self._offset_fd = self._offset_fd, -1
        if fd >= 0:
            os.close(fd)
        return fd >= 0

    def _begin_sync(self) -> None:
        self._sync = Sync(self._fd)  # known before it is begun: an interrupt may come in between
        self._sync.begin()

    def _wait_for_sync(self) -> None:
        """Until all that is written is durable. Another thread may do it for the one that commits and has `_turn`."""
        if self._sync is not None:
            try:
                self._sync.wait()
            except OSError as error:
                raise from_os_error(error, "sync an ingest, which starts over") from error

    def _end_sync(self) -> None:
        """Something else is going to be written."""
        try:
            self._wait_for_sync()
        except BlobteeError:
            if not self._start_over():
                self._finish(self._leave)
            raise
        self._sync = None

    def _may_stay(self) -> bool:
        """Nothing more is going to be written: whether somebody may go on with what is there then."""
        try:
            self._wait_for_sync()
        except BlobteeError:
            return self._start_over()
        self._sync = None
        return True

    def _start_over(self) -> bool:
        """Whether the bytes are gone whose sync failed. It is known to have failed until they are."""
        try:
            self._cut(0)
        except (OSError, BlobteeError):
            return False
        self._sync = None
        return True

    def _digest_as(self, algorithm: str) -> Digest:
        if algorithm == self._algorithm:
            return self.digest
        with os_errors("read an ingest"):
            return digest_of(algorithm, self._hash_file(algorithm, self._status.offset))

    def _hash_file(self, algorithm: str, size: int) -> Hash:
        """Hash the first `size` bytes of the data. Cancellable."""
        hashed = digester(algorithm)
        buffer = bytearray(min(PIECE, size))
        at = 0
        with memoryview(buffer) as view:
            while at < size:
                tasks.check()
                n = os.preadv(self._fd, [view[: size - at]], at)
                if n == 0:
                    raise OSError(errno.EIO, "an ingest has lost its end")
                hashed.update(view[:n])
                at += n
        return hashed

    def _check_open(self) -> None:
        if self._fd < 0:
            raise Closed(f"the writer of {self._status.ref[:200]!r} is closed")

    def _leave(self) -> None:
        """Leave the ingest for another writer to go on with."""
        self._settle()
        if self._touched:
            self._ingest.write_updated(self._status.updated_at)

    def _finish(self, end: Callable[[], None]) -> None:
        """Close everything, have `end` done with the ingest, and give the lock back. Never fails: what cannot be tidied
        is found at the next opening."""
        if self._fd < 0:
            return
        try:
            if self._may_stay():
                end()
        except OSError as error:
            _logger.warning("ingest %.200r was left untidy: %s", self._status.ref, error)
        finally:
            try:
                if self._sync is not None and not self._may_stay():  # else only an interrupt came
                    with contextlib.suppress(OSError):
                        self._ingest.remove()
            finally:
                self._close()

    def _close(self) -> None:
        try:
            self._close_offset_file()
        finally:
            # What is closed twice is a file of somebody else's: an interrupt comes behind the first time.
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            finally:
                self._release()
