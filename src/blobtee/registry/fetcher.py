"""Reading blobs: bounded ranges and whole bodies, resumed where they break off.

The rules are those of `spec/tee.md` section 2. Nothing here is verified against the digest: whoever keeps the bytes
does that.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from blobtee import tasks
from blobtee.content.api import ReaderAt, ReaderFile
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    ConnectionFailed,
    InvalidArgument,
    ProtocolViolation,
    SizeMismatch,
    from_os_error,
)
from blobtee.oci import Descriptor
from blobtee.registry.headers import content_range, strong_etag
from blobtee.registry.limits import Kind
from blobtee.registry.problems import problem
from blobtee.registry.retry import Retry, Transient
from blobtee.registry.session import Reply, Scope, Session, refuse_encoding
from blobtee.registry.settings import Settings
from blobtee.registry.transport import Url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SKIP = 256 << 10
_PIECE = 1 << 20


class Body:
    """Bytes [position, end) of a blob, arriving. For one thread at a time."""

    def __init__(self, reply: Reply, start: int, end: int, what: str) -> None:
        self._reply = reply
        self._end = end
        self._what = what
        self.position = start

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as the body goes; 0 only at its end. `Transient` when it breaks off before that."""
        view = view[: self._end - self.position]
        n = 0
        if view:
            try:
                n = self._reply.readinto(view)
            except ConnectionFailed as error:
                raise Transient(error) from error
            if not n:
                raise Transient(
                    ConnectionFailed(f"{self._reply.url.netloc} ended {self._what} at byte {self.position}")
                )
        self.position += n
        if self.position == self._end:
            self._finish()
        return n

    def close(self) -> None:
        self._reply.close()

    def _finish(self) -> None:
        if self._reply.length is None:
            # Without a length, only the end of the body tells that it has no more than was asked for.
            try:
                if self._reply.readinto(memoryview(bytearray(1))):
                    raise ProtocolViolation(f"{self._reply.url.netloc} sent more bytes than {self._what} has")
            except ConnectionFailed:
                pass
        self._reply.close()


class Source:
    """One blob on one host: what was learned about getting it. Thread-safe."""

    def __init__(self, session: Session, repository: str, desc: Descriptor) -> None:
        self._session = session
        self._scope = Scope(repository)
        self._size = desc.size
        self._url = session.host.url(f"/{repository}/blobs/{desc.digest}")
        self._what = f"{repository}@{desc.digest} from {session.name}"
        self._lock = threading.Lock()
        self._location: Url | None = None
        self._etags: dict[str, str] = {}
        self.ranges = True
        self._restarted = False
        self.failure: BlobteeError | None = None

    def body(self, start: int, end: int) -> Body:
        """Ask for the bytes [start, end), not none of them.

        A host that does not know ranges gives a body that starts at 0; once, then it is an error. `Transient` is
        worth another try here, any other error is not.
        """
        if (start, end) == (0, self._size):
            return self._whole(self._request({}))
        if not self.ranges:
            return self._again()
        reply = self._request({"Range": f"bytes={start}-{end - 1}"})
        with _closing_on_error(reply):
            if reply.status == 206:
                self._check(reply, start, end)
                return Body(reply, start, end, self._what)
            if reply.status == 200:
                # The whole blob for a part of it: only a length that fits makes it believable.
                if reply.length != self._size:
                    raise ProtocolViolation(
                        f"{reply.url.netloc} answered a request for a range of {self._what} with something else"
                    )
                self._once_only()
                return self._whole(reply)
            if reply.status == 416:
                raise SizeMismatch(f"{self._what}, which says it has no bytes from {start} on", self._size, start)
            if reply.status == 501:
                reply.close()
                return self._again()
            raise problem(reply, f"read {self._what}", self._session.settings)

    def _again(self) -> Body:
        self._once_only()
        return self._whole(self._request({}))

    def _once_only(self) -> None:
        with self._lock:
            self.ranges = False
            if self._restarted:
                raise ProtocolViolation(
                    f"{self._session.name} knows no ranges, and has sent {self._what} from the start already"
                )
            self._restarted = True

    def _whole(self, reply: Reply) -> Body:
        with _closing_on_error(reply):
            if reply.status == 206:
                raise ProtocolViolation(f"{reply.url.netloc} sent a part of {self._what}, unasked")
            if reply.status != 200:
                raise problem(reply, f"read {self._what}", self._session.settings)
            refuse_encoding(reply)
            if reply.length is not None and reply.length != self._size:
                raise SizeMismatch(self._what, self._size, reply.length)
            self._same(reply)
            return Body(reply, 0, self._size, self._what)

    def _check(self, reply: Reply, start: int, end: int) -> None:
        refuse_encoding(reply)
        where = reply.url.netloc
        stated = reply.header("content-range")
        if stated is None:
            raise ProtocolViolation(f"{where} sent a part of {self._what} without saying which")
        if content_range(stated, where) != (start, end, self._size):
            raise ProtocolViolation(
                f"{where} was asked for bytes {start}-{end - 1}/{self._size} of {self._what} and sent {stated[:80]!r}"
            )
        if reply.length is not None and reply.length != end - start:
            raise ProtocolViolation(f"{where} announced {reply.length} bytes where {end - start} were asked for")
        self._same(reply)

    def _same(self, reply: Reply) -> None:
        etag = strong_etag(reply.header("etag"))
        if etag is None:
            return
        with self._lock:
            known = self._etags.setdefault(reply.url.netloc, etag)
        if known != etag:
            raise ProtocolViolation(f"{reply.url.netloc} has other bytes for {self._what} than before")

    def _request(self, headers: dict[str, str]) -> Reply:
        """GET, from where a redirect led last time if there was one, and anew through the registry if that fails."""
        with self._lock:
            location = self._location
        if location is not None:
            try:
                reply = self._session.open("GET", location, self._scope, Kind.DOWNLOAD, headers=headers)
            except Transient:
                self._forget()
            else:
                if reply.status < 400 or reply.status == 416:
                    return reply
                reply.close()
                self._forget()
        reply = self._ask(headers)
        if reply.redirected and reply.status in (400, 403) and location is None:
            # A signature that was too old on arrival: one more, fresh one.
            reply.close()
            reply = self._ask(headers)
        return reply

    def _ask(self, headers: dict[str, str]) -> Reply:
        reply = self._session.open("GET", self._url, self._scope, Kind.DOWNLOAD, headers=headers)
        if reply.redirected and reply.status in (200, 206):
            with self._lock:
                self._location = reply.url
        return reply

    def _forget(self) -> None:
        with self._lock:
            self._location = None


class BlobReader(ReaderAt):
    """A blob on a registry. Opening it asks nothing of the registry: the first read does, and may be `NotFound`.

    Ranges are one bounded request each. Where a host knows no ranges, the blob is fetched whole, once, into an unnamed
    temporary file, and served from there. Errors: `NotFound`, `Unauthenticated`, `PermissionDenied`,
    `TooManyRequests`, `SizeMismatch`, `ProtocolViolation`, `RemoteError`, and `ConnectionFailed` when nothing came for
    `Settings.patience` seconds; after any of these the reader can be used again.
    """

    def __init__(self, sources: Sequence[Source], desc: Descriptor, settings: Settings) -> None:
        self.size = desc.size
        self._digest = desc.digest
        self._sources = list(sources)
        self._settings = settings
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
        body = self._begin(start, start + len(view))
        try:
            if body.position == start:
                n = body.readinto(view)
                retry.progress(n)
                return n
            self._fill_spool(body, retry)
            return 0
        finally:
            body.close()

    def _begin(self, start: int, end: int) -> Body:
        """A body from the first host that gives one. Hosts that broke a rule are not asked again by this reader."""
        transient: Transient | None = None
        final: BlobteeError | None = None
        for source in self._sources:
            # Looked at once: another thread of this reader may take the note back at any time.
            if (known := source.failure) is not None:
                final = known
                continue
            try:
                return source.body(start, end)
            except Transient as failure:
                transient = failure
            except (Cancelled, Closed):
                raise
            except BlobteeError as error:
                final = source.failure = error
        if transient is not None:
            raise transient
        assert final is not None  # There is one source at least.
        for source in self._sources:
            source.failure = None  # A later call may find better days, or a sign-in done meanwhile.
        raise final

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
            body = self._body = self._reader._begin(self._position, self._reader.size)
        scrap = bytearray(min(_PIECE, self._position - body.position))
        while body.position < self._position:
            n = body.readinto(memoryview(scrap)[: self._position - body.position])
            self._retry.progress(n)
        return body

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


@contextmanager
def _closing_on_error(reply: Reply) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reply.close()
        raise


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
