"""One blob on one host: bounded ranges and whole bodies, as they come.

The rules are those of `spec/tee.md` section 2. Nothing here is verified against the digest: whoever keeps the bytes
does that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from blobtee.errors import BlobteeError, ConnectionFailed, ProtocolViolation, SizeMismatch
from blobtee.oci import Descriptor
from blobtee.registry.headers import content_range, strong_etag
from blobtee.registry.limits import Kind
from blobtee.registry.problems import problem
from blobtee.registry.retry import Transient
from blobtee.registry.session import Reply, Scope, Session, refuse_encoding


class Body:
    """Bytes [position, end) of a blob, arriving. For one thread at a time."""

    def __init__(self, reply: Reply, start: int, end: int, what: str) -> None:
        self._reply = reply
        self.end = end
        self._what = what
        self.position = start

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as the body goes; 0 only at its end. `Transient` when it breaks off before that."""
        view = view[: self.end - self.position]
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
        if self.position == self.end:
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
                body = self._whole(reply)
                self._once_only()
                return body
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
        redirects = self._session.redirects
        location = redirects.get(self._url)
        if location is not None:
            try:
                reply = self._session.open("GET", location, self._scope, Kind.DOWNLOAD, headers=headers)
            except Transient:
                redirects.forget(self._url, location)
            else:
                if reply.status < 400 or reply.status == 416:
                    return reply
                reply.close()
                redirects.forget(self._url, location)
        reply = self._ask(headers)
        if reply.redirected and reply.status in (400, 403) and location is None:
            # A signature that was too old on arrival: one more, fresh one.
            reply.close()
            reply = self._ask(headers)
        return reply

    def _ask(self, headers: dict[str, str]) -> Reply:
        reply = self._session.open("GET", self._url, self._scope, Kind.DOWNLOAD, headers=headers)
        if reply.redirected and reply.status in (200, 206):
            self._session.redirects.remember(self._url, reply.url)
        return reply


@contextmanager
def _closing_on_error(reply: Reply) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reply.close()
        raise
