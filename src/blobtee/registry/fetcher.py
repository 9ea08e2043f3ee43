"""Reading blobs: by ranges, or as a file, resumed where they break off.

Nothing here is verified against the digest: whoever keeps the bytes
does that.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from typing import TYPE_CHECKING, BinaryIO

from blobtee import tasks
from blobtee.content.api import ReaderAt, ReaderFile
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    ConnectionFailed,
    InvalidArgument,
    from_os_error,
)
from blobtee.registry.bodies import Body
from blobtee.registry.retry import Retry, Transient
from blobtee.registry.streams import BlobSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SKIP = 256 << 10
_PIECE = 1 << 20


class BlobReader(ReaderAt):
    """A blob on a registry. Opening it asks nothing of the registry: the first read does, and may be `NotFound`.

    Ranges are one bounded request each. Where a host knows no ranges, the blob is fetched whole, once, into an unnamed
    temporary file, and served from there. Errors: `NotFound`, `Unauthenticated`, `PermissionDenied`,
    `TooManyRequests`, `SizeMismatch`, `ProtocolViolation`, `RemoteError`, and `ConnectionFailed` when nothing came for
    `Settings.patience` seconds; after any of these the reader can be used again.
    """

    def __init__(self, source: BlobSource) -> None:
        self.size = source.desc.size
        self._digest = source.desc.digest
        self._source = source
        self._settings = source.settings
        self._closed = False
        self._lock = threading.Lock()
        self._spool: BinaryIO | None = None

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        self._live()
        self._check(offset)
        view = memoryview(buffer).cast("B")
        view = view[: min(len(view), self.size - offset)]
        retry = Retry(self._settings, patient=True)
        filled = 0
        while filled < len(view):
            spool = self._spool
            if spool is not None:
                return filled + _read_spool(spool, offset + filled, view[filled:])
            try:
                filled += self._part(offset + filled, view[filled:], retry)
            except Transient as failure:
                retry.wait(failure)
        return filled

    def open(self, offset: int = 0) -> io.RawIOBase:
        """The blob from `offset` on as one body, streamed: the fast way. A break is resumed at the byte it came to.

        The file is seekable; a seek costs a request.
        """
        if offset < 0:
            raise InvalidArgument(f"cannot seek to {offset}")
        self._live()
        return RemoteFile(self, offset)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def _live(self) -> None:
        if self._closed:
            raise Closed(f"the reader of {self._digest} is closed")

    def _part(self, start: int, view: memoryview, retry: Retry) -> int:
        """Fetch the range that `view` has room for; how much of it came. 0 when it went into the spool instead."""
        body = self._source.begin(start, start + len(view))
        try:
            if body.position == start:
                n = body.readinto(view)
                retry.progress(n)
                return n
            self._fill_spool(body, retry)
            return 0
        finally:
            body.close()

    def _fill_spool(self, body: Body, retry: Retry) -> None:
        while not self._lock.acquire(timeout=0.1):
            tasks.check()
        try:
            self._live()
            if self._spool is not None:
                return
            try:
                spool: BinaryIO = tempfile.TemporaryFile(prefix="blobtee-")  # noqa: SIM115
            except OSError as error:
                raise from_os_error(error, "make a temporary file") from error
            try:
                _copy(body, spool, retry)
            except BaseException:
                spool.close()
                raise
            self._spool = spool
        finally:
            self._lock.release()


class DocumentReader(ReaderAt):
    """A document that was fetched already, as a reader."""

    def __init__(self, raw: bytes) -> None:
        self.size = len(raw)
        self._raw: bytes | None = raw

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        raw = self._raw
        if raw is None:
            raise Closed("the reader is closed")
        self._check(offset)
        view = memoryview(buffer).cast("B")
        piece = raw[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._raw = None


class RemoteFile(ReaderFile):
    """`BlobReader` as a file: one streamed body, begun at the first read. For one thread."""

    _reader: BlobReader

    def __init__(self, reader: BlobReader, offset: int) -> None:
        super().__init__(reader)
        self._position = offset
        self._body: Body | None = None
        self._retry = Retry(reader._settings, patient=True)
        self._failure: BlobteeError | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._failure = None
        return super().seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer`, or what is left of the blob. Less comes at the end, or before an error of the next call.

        Errors as for `BlobReader`.
        """
        if self.closed:
            raise Closed("the file is closed")
        self._reader._live()
        if self._failure is not None:
            kept, self._failure = self._failure, None
            raise kept
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._reader.size - self._position))]
        filled = 0
        while filled < len(view):
            try:
                n = self._open_body().readinto(view[filled:])
            except BaseException as error:
                self._drop()
                failure = self._outcome(error)
                if failure is None:
                    continue
                if filled and isinstance(failure, BlobteeError) and not isinstance(failure, Cancelled):
                    self._failure = failure
                    return filled
                raise failure from failure.__cause__
            filled += n
            self._position += n
            self._retry.progress(n)
        return filled

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _outcome(self, error: BaseException) -> BaseException | None:
        """What to raise after `error`; None, after a pause, when another try is due."""
        if not isinstance(error, Transient):
            return error
        try:
            self._retry.wait(error)
        except BlobteeError as final:
            return final
        return None

    def _open_body(self) -> Body:
        body = self._body
        if body is not None and not 0 <= self._position - body.position <= _SKIP:
            self._drop()
            body = None
        if body is None:
            body = self._body = self._reader._source.begin(self._position, self._reader.size)
        scrap = bytearray(min(_PIECE, self._position - body.position))
        while body.position < self._position:
            n = body.readinto(memoryview(scrap)[: self._position - body.position])
            self._retry.progress(n)
        return body

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _copy(body: Body, spool: BinaryIO, retry: Retry) -> None:
    buffer = memoryview(bytearray(_PIECE))
    while n := body.readinto(buffer):
        tasks.check()
        retry.progress(n)
        try:
            spool.write(buffer[:n])
        except OSError as error:
            raise from_os_error(error, "write a temporary file") from error
    try:
        spool.flush()
    except OSError as error:
        raise from_os_error(error, "write a temporary file") from error


def _read_spool(spool: BinaryIO, offset: int, view: memoryview) -> int:
    filled = 0
    while filled < len(view):
        try:
            n = os.preadv(spool.fileno(), [view[filled:]], offset + filled)
        except ValueError:
            raise Closed("the reader was closed meanwhile") from None
        except OSError as error:
            raise from_os_error(error, "read a temporary file") from error
        if not n:
            raise ConnectionFailed("the temporary copy of a blob ends early")
        filled += n
    return filled
