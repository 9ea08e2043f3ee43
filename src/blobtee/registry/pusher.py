"""Writing blobs: not at all if the registry has them, by a mount if another repository has them, else uploaded.

An upload is one PUT of the whole. When it breaks off, the registry is asked how much it got, and only the rest is
sent (PATCH, then a closing PUT). A registry that refuses large bodies gets chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from blobtee import tasks
from blobtee.content.api import Provider
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    InvalidArgument,
    InvalidReference,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    RemoteError,
    SizeMismatch,
    Unauthenticated,
)
from blobtee.oci import Descriptor, Digest, Reference
from blobtee.registry.documents import check_digest
from blobtee.registry.headers import upload_offset
from blobtee.registry.limits import Kind
from blobtee.registry.problems import problem
from blobtee.registry.retry import Retry, Transient
from blobtee.registry.session import Reply, Scope, Session, follow
from blobtee.registry.transport import Url

_PIECE = 1 << 20
_MAX_CANDIDATES = 8
_REFUSED = (Unauthenticated, PermissionDenied, NotFound, InvalidArgument, ProtocolViolation)


@dataclass(frozen=True)
class Pushed:
    """How a blob got there: `exists`, `mounted` (from `source`) or `uploaded`; `nbytes` were sent, repeats too."""

    how: str
    nbytes: int = 0
    source: str = ""


def ranked(repository: str, candidates: Iterable[str]) -> list[str]:
    """Repositories to mount from, the longest common path prefix first. What is no repository is left out."""
    names: dict[str, int] = {}
    for name in candidates:
        with suppress(InvalidReference):
            if name != repository and Reference.parse(f"registry.invalid/{name}").repository == name:
                pairs = zip(repository.split("/"), name.split("/"), strict=False)
                names.setdefault(name, len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))))
    return sorted(names, key=lambda name: -names[name])[:_MAX_CANDIDATES]


class BlobPush:
    """One blob on its way to `repository` on `session`'s host. `run()` it once."""

    def __init__(self, session: Session, repository: str, desc: Descriptor, provider: Provider) -> None:
        self._session = session
        self._settings = session.settings
        self._repository = repository
        self._desc = desc
        self._provider = provider
        self._scope = Scope(repository, "pull,push")
        self._what = f"push {repository}@{desc.digest} to {session.name}"
        self._chunked = False
        self._sent = 0
        self._location: Url | None = None
        self._offset = 0
        self._source_error: BaseException | None = None
        self._retry = Retry(session.settings, patient=True)
        self._progress: tasks.Progress

    def run(self, mount_from: Sequence[str]) -> Pushed:
        """Errors of the registry, and those of the provider as they are. An upload that failed is cancelled there."""
        if self._exists():
            return Pushed("exists")
        for candidate in ranked(self._repository, mount_from):
            self._cancel()
            mounted, self._location = self._mount(candidate)
            if mounted:
                return Pushed("mounted", source=candidate)
        with tasks.meter(self._desc.digest, "push", self._desc.size) as self._progress:
            self._upload()
        return Pushed("uploaded", self._sent)

    def _exists(self) -> bool:
        size = stat(self._session, self._repository, self._desc.digest, self._scope)
        if size is not None and size >= 0 and size != self._desc.size:
            raise SizeMismatch(f"{self._repository}@{self._desc.digest} on {self._session.name}", self._desc.size, size)
        return size is not None

    def _mount(self, source: str) -> tuple[bool, Url | None]:
        """Whether the blob is there now, and if not, the upload that the registry began instead, if it did."""
        query = {"mount": str(self._desc.digest), "from": source}
        url = self._session.host.url(f"/{self._repository}/blobs/uploads/", **query)
        scope = Scope(self._repository, "pull,push", (source,))
        try:
            with self._session.ask("POST", url, scope, self._what, expect=(201, 202)) as reply:
                if reply.status == 202:
                    return False, self._moved(reply)
                check_digest(reply, self._desc.digest, f"{self._repository} on {self._session.name}")
                return True, None
        except _REFUSED:
            # Most often a repository that this user may not read: no reason to fail.
            return False, None

    def _upload(self) -> None:
        unsure = False
        while True:
            try:
                if unsure and self._location is not None and not self._find() and self._exists():
                    return  # Only the answer was lost.
                if self._location is None:
                    self._location, self._offset = self._start(), 0
                self._progress.set(self._offset)
                unsure = True
                self._send()
                return
            except _Restart:
                self._cancel()
            except Transient as failure:
                self._check_source()
                self._wait(failure)
            except BlobteeError as error:
                if not isinstance(error, Cancelled):
                    self._cancel()
                self._check_source()
                raise

    def _wait(self, failure: Transient) -> None:
        try:
            self._retry.wait(failure)
        except Cancelled:
            raise
        except BlobteeError:
            self._cancel()
            raise

    def _start(self) -> Url:
        url = self._session.host.url(f"/{self._repository}/blobs/uploads/")
        with self._session.once("POST", url, self._scope, self._what, expect=(202,)) as reply:
            return self._moved(reply)

    def _find(self) -> bool:
        """Learn where the upload is now and how many bytes it has; False when it has to begin anew."""
        assert self._location is not None
        try:
            with self._session.once("GET", self._location, self._scope, self._what, expect=(200, 202, 204)) as reply:
                got = upload_offset(reply.header("range"), self._session.name)
                if reply.header("location"):
                    self._location = self._moved(reply)
        except (NotFound, InvalidArgument):
            self._location = None
            return False
        if not 0 < got <= self._desc.size:
            # Nothing there (or "0-0", which may be a byte): a fresh upload is the safe way.
            self._cancel()
            return False
        self._retry.progress(max(0, got - self._offset))
        self._offset = got
        return True

    def _send(self) -> None:
        """Send the blob from `_offset` on."""
        size = self._desc.size
        if self._offset == 0 and not self._chunked:
            self._close(0, size)
            return
        while self._offset < size:
            start = self._offset
            end = min(size, start + self._settings.chunk) if self._chunked else size
            with self._body("PATCH", start, end) as reply:
                self._accept(reply, whole=not self._chunked)
                stated = reply.header("range")
                got = upload_offset(stated, self._session.name) if stated else end
                if not start < got <= end:
                    raise ProtocolViolation(f"{self._session.name} counts {got} bytes of an upload after {end}")
                self._location, self._offset = self._moved(reply), got
                self._retry.progress(got - start)
        self._close(size, size)

    def _close(self, start: int, end: int) -> None:
        """PUT what is left, which may be nothing, and make it a blob."""
        with self._body("PUT", start, end) as reply:
            self._accept(reply, whole=start < end)
            check_digest(reply, self._desc.digest, f"{self._repository} on {self._session.name}")

    def _accept(self, reply: Reply, *, whole: bool) -> None:
        """Raise unless the registry took what was sent; `whole`: all that was left, which may have been too much."""
        if reply.status in (201, 202, 204):
            return
        if reply.status == 413 and whole and self._desc.size > self._settings.chunk:
            self._chunked = True
            raise _Restart
        error = problem(reply, self._what, self._settings)
        if reply.status in (404, 416) and not isinstance(error, Transient):
            # It lost the upload or counts differently: ask it where it is, then go on from there.
            raise Transient(error)
        raise error

    def _body(self, method: str, start: int, end: int) -> Reply:
        assert self._location is not None
        url = self._location
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - start)}
        if method == "PUT":
            url = url.with_query(digest=str(self._desc.digest))
        else:
            headers["Content-Range"] = f"{start}-{end - 1}"
        body = (lambda: self._pieces(start, end)) if end > start else b""
        reply = self._session.open(
            method, url, self._scope, Kind.UPLOAD, headers=headers, body=body, answer=self._settings.commit
        )
        if self._source_error is not None:
            reply.close()
            self._check_source()
        return reply

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The source's bytes [start, end). Its failures are kept apart from those of the registry."""
        try:
            with self._provider.reader_at(self._desc) as reader, reader.open(start) as file:
                self._progress.set(start)
                position = start
                while position < end:
                    piece = file.read(min(_PIECE, end - position))
                    if not piece:
                        raise SizeMismatch(f"the source of {self._desc.digest}", self._desc.size, position)
                    position += len(piece)
                    yield piece
                    self._sent += len(piece)
                    self._progress.advance(len(piece))
        except GeneratorExit:
            raise
        except BaseException as error:
            self._source_error = error
            raise

    def _check_source(self) -> None:
        if self._source_error is not None:
            raise self._source_error

    def _moved(self, reply: Reply) -> Url:
        location = reply.header("location")
        if not location:
            raise ProtocolViolation(f"{self._session.name} began an upload without saying where")
        return follow(reply.url, location)

    def _cancel(self) -> None:
        """Tell the registry that an upload will not go on. It finds out by itself too, so failing here is no error."""
        location, self._location, self._offset = self._location, None, 0
        if location is not None:
            with suppress(RemoteError, Transient, NotFound, InvalidArgument, Unauthenticated, PermissionDenied):
                gone = (200, 202, 204, 404, 405)
                self._session.once("DELETE", location, self._scope, self._what, expect=gone).close()


class _Restart(Exception):
    """The upload has to begin anew, in another way."""


def stat(session: Session, repository: str, digest: Digest, scope: Scope, *, hasty: bool = False) -> int | None:
    """Size in bytes of a blob, None when it is not there, -1 when it is and its size is not told. `DigestMismatch`: the
    registry says that it has another under this name."""
    url = session.host.url(f"/{repository}/blobs/{digest}")
    what = f"look up {repository}@{digest} on {session.name}"
    with session.ask("HEAD", url, scope, what, expect=(200, 404), hasty=hasty) as reply:
        if reply.status == 404:
            return None
        check_digest(reply, digest, f"{repository} on {session.name}")
        return -1 if reply.length is None else reply.length
