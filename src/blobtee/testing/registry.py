"""A real registry in this process, for tests of whatever talks to registries.

It speaks the OCI distribution protocol 1.1 on a loopback port, counts what moves, and misbehaves on demand.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote, urlencode

from blobtee.errors import BlobteeError, InvalidArgument
from blobtee.oci import Digest, Index, Manifest, parse_document
from blobtee.oci.mediatypes import OCI_INDEX
from blobtee.testing.auth import Guard
from blobtee.testing.bodies import Body, Bytes, File
from blobtee.testing.http import CutShort, Headers, Request, Response, Server

_CODES = {
    400: "UNSUPPORTED",
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NOT_FOUND",
    405: "UNSUPPORTED",
    416: "BLOB_UPLOAD_INVALID",
}


@dataclass
class Answer:
    """What a fault hook puts in place of the true answer. Each member that is left alone stays as it would have been.

    `headers` replace, or with None remove. `body` replaces the body. `cut` breaks the connection off after so many
    bytes of it, `stall` stops there without breaking off (until the registry stops). `delay` waits first, in seconds.
    `ignore_range` answers a range request with 200 and everything. `hang_up` reads so many bytes of the request's body
    as if all was well (an upload keeps them), then breaks off without an answer.
    """

    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: Body | bytes | None = None
    cut: int | None = None
    stall: bool = False
    delay: float = 0
    ignore_range: bool = False
    hang_up: int | None = None


Fault = Callable[[Request], Answer | None]
"""Sees each request (see `Request` for what there is to look at); None lets it pass."""


@dataclass
class Entry:
    """A line of the request log. `sent` and `received` are body bytes; `sent` grows while the answer goes out."""

    method: str
    path: str
    kind: str
    repository: str
    identifier: str
    status: int
    received: int
    sent: int = 0
    range: str = ""
    connection: int = 0


class Counters:
    """What has moved, from the log. All of it is exact once the client has read the answers."""

    def __init__(self, log: list[Entry]) -> None:
        self.requests: Counter[tuple[str, str]] = Counter((entry.method, entry.kind) for entry in log)
        """By method and kind."""
        self.sent: Counter[str] = Counter()
        """Body bytes to clients, by kind."""
        self.received: Counter[str] = Counter()
        """Body bytes from clients, by kind."""
        for entry in log:
            self.sent[entry.kind] += entry.sent
            self.received[entry.kind] += entry.received


@dataclass
class _Upload:
    repository: str
    file: IO[bytes]
    hasher: hashlib._Hash
    size: int = 0


class MemoryRegistry:
    """A registry on a loopback port. Context manager; thread-safe.

    `host` is what goes before the repository in an image name, `url` the base of its requests. Kinds of requests are
    `ping`, `manifest`, `config` (a blob that a manifest names as its config), `blob`, `upload`, `tags`, `referrers`,
    `token` and `other`.

    - `root`: a folder for what is uploaded; without one it stays in memory.
    - `users`: name to password. `auth` is `basic` or `bearer` then; tokens live `token_lifetime` seconds, or until
      `expire_tokens()`; with `anonymous_pull` a token for pulling needs no name.
    - `tls`: a server's context makes it HTTPS.
    - `referrers`, `mounts`: False takes the API away, as older registries do.
    - `ranges`: False answers every range request with the whole blob.
    - `page_size`: tags in a page, at most.
    - `port`: 0 for any that is free. `start()` after `stop()` comes back on the same one.

    `faults` is a list of hooks; the first that answers wins.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        users: Mapping[str, str] | None = None,
        auth: str = "bearer",
        anonymous_pull: bool = False,
        token_lifetime: float = 300,
        tls: ssl.SSLContext | None = None,
        referrers: bool = True,
        mounts: bool = True,
        ranges: bool = True,
        page_size: int = 100,
        port: int = 0,
    ) -> None:
        self.referrers = referrers
        self.mounts = mounts
        self.ranges = ranges
        self.page_size = page_size
        self.faults: list[Fault] = []
        self.log: list[Entry] = []
        self._root = Path(root) if root is not None else None
        self._scheme = "https" if tls else "http"
        self._lock = threading.RLock()
        self._blobs: dict[Digest, Body] = {}
        self._linked: dict[str, set[Digest]] = {}
        self._manifests: dict[str, dict[Digest, Manifest | Index]] = {}
        self._tags: dict[str, dict[str, Digest]] = {}
        self._configs: set[Digest] = set()
        self._uploads: dict[str, _Upload] = {}
        self._guard = Guard(users, auth, anonymous_pull, token_lifetime) if users is not None else None
        self._server = Server(self._handle, self._observe, tls)
        self._server.port = port

    # Life

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Break off what is open and go away. Contents stay; uploads that were under way are gone."""
        self._server.stop()
        with self._lock:
            for upload in self._uploads.values():
                upload.file.close()
            self._uploads.clear()

    def __enter__(self) -> MemoryRegistry:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}"

    # What a test sees

    @property
    def counters(self) -> Counters:
        """Everything since the start or the last `reset()`."""
        with self._lock:
            return Counters(self.log)

    @property
    def connections_open(self) -> int:
        return self._server.open

    @property
    def connections_opened(self) -> int:
        """Connections accepted since the start."""
        return self._server.opened

    def reset(self) -> None:
        """Empty the log, and the counters with it."""
        with self._lock:
            self.log.clear()

    def entries(self, method: str | None = None, kind: str | None = None) -> list[Entry]:
        """The log, of one method and kind when named."""
        with self._lock:
            return [e for e in self.log if method in (None, e.method) and kind in (None, e.kind)]

    def fault(self, fault: Fault) -> Fault:
        """Add a hook; usable as a decorator."""
        self.faults.append(fault)
        return fault

    def break_connections(self) -> None:
        """Break all open connections off, and go on."""
        self._server.break_connections()

    def expire_tokens(self) -> None:
        """Make every bearer token handed out so far worthless."""
        if self._guard is not None:
            self._guard.expire()

    # What a test puts in and looks up

    def add_blob(self, repository: str, body: Body | bytes, digest: str | None = None) -> Digest:
        """Put a blob there without asking for its bytes to be right: a `digest` that is given is believed."""
        content = Bytes(body) if isinstance(body, bytes) else body
        name = Digest(digest) if digest is not None else content.digest()
        with self._lock:
            self._blobs[name] = content
            self._linked.setdefault(repository, set()).add(name)
        return name

    def add_document(self, repository: str, raw: bytes, media_type: str = "", tag: str | None = None) -> Digest:
        """Put a manifest or an index there, whether or not its blobs are."""
        document = parse_document(raw, media_type)
        with self._lock:
            self._manifests.setdefault(repository, {})[document.digest] = document
            self._linked.setdefault(repository, set())
            if isinstance(document, Manifest):
                self._configs.add(document.config.digest)
            if tag is not None:
                self._tags.setdefault(repository, {})[tag] = document.digest
        return document.digest

    def blob(self, digest: str) -> Body:
        """The blob's body; `KeyError`."""
        with self._lock:
            return self._blobs[Digest(digest)]

    def blobs(self, repository: str) -> set[Digest]:
        with self._lock:
            return set(self._linked.get(repository, ()))

    def document(self, repository: str, identifier: str) -> Manifest | Index:
        """By tag or digest; `KeyError`."""
        with self._lock:
            digest = self._tags.get(repository, {}).get(identifier, identifier)
            return self._manifests[repository][Digest(digest)]

    def tags(self, repository: str) -> list[str]:
        with self._lock:
            return sorted(self._tags.get(repository, ()))

    def remove_blob(self, digest: str) -> None:
        """Forget a blob everywhere."""
        with self._lock:
            self._blobs.pop(Digest(digest), None)
            for linked in self._linked.values():
                linked.discard(Digest(digest))

    # Requests

    def _observe(self, request: Request, status: int, received: int) -> Callable[[int], object]:
        entry = Entry(
            request.method,
            request.path,
            request.kind,
            request.repository,
            request.identifier,
            status,
            received,
            range=request.headers.get("range", ""),
            connection=request.connection,
        )
        with self._lock:
            self.log.append(entry)

        def count(nbytes: int) -> None:
            with self._lock:
                entry.sent += nbytes

        return count

    def _handle(self, request: Request) -> Response:
        self._classify(request)
        answer = next((answer for fault in self.faults if (answer := fault(request)) is not None), None)
        if answer is None:
            return self._respond(request)
        if answer.delay:
            self._server.stopping.wait(answer.delay)
        if answer.ignore_range:
            request.headers.pop("range", None)
        if answer.hang_up is not None:
            request.body = io.BufferedReader(CutShort(request.body, answer.hang_up))
        # An answer with a status of its own stands for the registry: nothing must happen behind it.
        response = self._respond(request) if answer.status is None else Response(answer.status)
        return _altered(response, answer)

    def _classify(self, request: Request) -> None:
        path = request.path
        if path == "/token":
            request.kind = "token"
        elif path in ("/v2", "/v2/"):
            request.kind = "ping"
        elif path.startswith("/v2/"):
            name = path[4:]
            for marker, kind in (
                ("/blobs/uploads", "upload"),
                ("/blobs/", "blob"),
                ("/manifests/", "manifest"),
                ("/tags/list", "tags"),
                ("/referrers/", "referrers"),
            ):
                repository, found, rest = name.rpartition(marker)
                if found:
                    request.kind, request.repository, request.identifier = kind, repository, rest.strip("/")
                    break
        if request.kind == "blob" and request.identifier in self._configs:
            request.kind = "config"

    def _respond(self, request: Request) -> Response:
        if self._guard is not None:
            refusal = self._guard.check(request, self.url)
            if refusal is not None:
                return refusal
        handlers = {
            "ping": self._ping,
            "token": self._token,
            "manifest": self._manifest,
            "blob": self._blob,
            "config": self._blob,
            "upload": self._upload,
            "tags": self._list_tags,
            "referrers": self._list_referrers,
        }
        handler = handlers.get(request.kind)
        if handler is None:
            return error(404, "no such endpoint")
        try:
            with self._lock if request.kind != "upload" else contextlib.nullcontext():
                return handler(request)
        except BlobteeError as refused:
            return error(400, str(refused))

    def _ping(self, request: Request) -> Response:
        return Response(200, Headers({"Docker-Distribution-Api-Version": "registry/2.0"}), Bytes(b"{}"))

    def _token(self, request: Request) -> Response:
        return self._guard.token(request) if self._guard is not None else error(404, "no tokens here")

    def _manifest(self, request: Request) -> Response:
        repository, identifier = request.repository, request.identifier
        if request.method == "PUT":
            return self._put_manifest(request)
        try:
            document = self.document(repository, identifier)
        except (KeyError, InvalidArgument):
            return error(404, "manifest unknown", "MANIFEST_UNKNOWN")
        if request.method == "DELETE":
            del self._manifests[repository][document.digest]
            tags = self._tags.get(repository, {})
            self._tags[repository] = {tag: digest for tag, digest in tags.items() if digest != document.digest}
            return Response(202)
        headers = Headers({"Content-Type": document.media_type, "Docker-Content-Digest": document.digest})
        return Response(200, headers, Bytes(document.raw))

    def _put_manifest(self, request: Request) -> Response:
        repository, identifier = request.repository, request.identifier
        raw = request.body.read(16 << 20)
        document = parse_document(raw, request.headers.get("content-type", ""))
        by_digest = ":" in identifier
        if by_digest and Digest(identifier) != document.digest:
            return error(400, "digest does not match", "DIGEST_INVALID")
        linked = self._linked.get(repository, set())
        known = self._manifests.get(repository, {})
        needed = document.blobs if isinstance(document, Manifest) else document.manifests
        missing = [d.digest for d in needed if d.digest not in linked and d.digest not in known and not d.urls]
        if missing:
            return error(404, f"unknown: {', '.join(missing)}", "MANIFEST_BLOB_UNKNOWN")
        digest = self.add_document(repository, raw, document.media_type, None if by_digest else identifier)
        headers = Headers({"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": digest})
        if document.subject is not None and self.referrers:
            headers["oci-subject"] = document.subject.digest
        return Response(201, headers)

    def _blob(self, request: Request) -> Response:
        digest = Digest(request.identifier)
        if digest not in self._linked.get(request.repository, ()):
            return error(404, "blob unknown", "BLOB_UNKNOWN")
        body = self._blobs[digest]
        headers = Headers(
            {
                "Content-Type": "application/octet-stream",
                "Docker-Content-Digest": digest,
                "ETag": f'"{digest}"',
                "Accept-Ranges": "bytes" if self.ranges else "none",
            }
        )
        wanted = request.headers.get("range", "")
        if not wanted or not self.ranges or request.method == "HEAD":
            return Response(200, headers, body)
        span = _span(wanted, body.size)
        if span is None:
            return Response(416, Headers({"Content-Range": f"bytes */{body.size}"}))
        start, stop = span
        headers["content-range"] = f"bytes {start}-{stop - 1}/{body.size}"
        return Response(206, headers, body, start, stop)

    def _upload(self, request: Request) -> Response:
        if request.method == "POST":
            return self._begin_upload(request)
        with self._lock:
            upload = self._uploads.get(request.identifier)
        if upload is None or upload.repository != request.repository:
            return error(404, "upload unknown", "BLOB_UPLOAD_UNKNOWN")
        if request.method == "DELETE":
            self._forget_upload(request.identifier)
            return Response(204)
        if request.method == "GET":
            return Response(204, self._where(request, upload))
        if request.method == "PATCH":
            start = request.headers.get("content-range", f"{upload.size}-").partition("-")[0]
            if start != str(upload.size):
                return Response(416, self._where(request, upload))
            _receive(request, upload)
            return Response(202, self._where(request, upload))
        if request.method == "PUT":
            _receive(request, upload)
            return self._finish_upload(request, request.identifier, upload)
        return error(405, "not for uploads")

    def _begin_upload(self, request: Request) -> Response:
        query = request.query
        if "mount" in query and self.mounts:
            digest = Digest(query["mount"])
            with self._lock:
                if digest in self._linked.get(query.get("from", ""), ()):
                    self._linked.setdefault(request.repository, set()).add(digest)
                    return Response(201, _at(request.repository, digest))
        folder = None if self._root is None else str(self._root)
        # The file outlives this request, and is closed with its upload.
        file = tempfile.SpooledTemporaryFile(64 << 20 if self._root is None else 1 << 20, dir=folder)  # noqa: SIM115
        upload = _Upload(request.repository, file, hashlib.sha256())
        with self._lock:
            number = f"{len(self.log)}-{id(upload):x}"
            self._uploads[number] = upload
        request.identifier = number
        if "digest" in query:
            _receive(request, upload)
            return self._finish_upload(request, number, upload)
        return Response(202, self._where(request, upload))

    def _finish_upload(self, request: Request, number: str, upload: _Upload) -> Response:
        expected = Digest(request.query.get("digest", ""))
        if expected.algorithm == "sha256":
            actual = f"sha256:{upload.hasher.hexdigest()}"
        else:
            upload.file.seek(0)
            actual = f"{expected.algorithm}:{hashlib.new(expected.algorithm, upload.file.read()).hexdigest()}"
        if actual != expected:
            self._forget_upload(number)
            return error(400, f"content is {actual}", "DIGEST_INVALID")
        upload.file.seek(0)
        if self._root is None:
            body: Body = Bytes(upload.file.read())
        else:
            path = self._root / expected.hex
            with path.open("wb") as kept:
                while piece := upload.file.read(1 << 20):
                    kept.write(piece)
            body = File(path)
        self.add_blob(upload.repository, body, expected)
        self._forget_upload(number)
        return Response(201, _at(upload.repository, expected))

    def _forget_upload(self, number: str) -> None:
        with self._lock:
            upload = self._uploads.pop(number, None)
        if upload is not None:
            upload.file.close()

    def _where(self, request: Request, upload: _Upload) -> Headers:
        location = f"/v2/{upload.repository}/blobs/uploads/{request.identifier}"
        headers = Headers({"Location": location, "Docker-Upload-UUID": request.identifier})
        if upload.size or request.method == "GET":
            headers["range"] = f"0-{max(0, upload.size - 1)}"
        return headers

    def _list_tags(self, request: Request) -> Response:
        if request.repository not in self._linked:
            return error(404, "repository unknown", "NAME_UNKNOWN")
        query = request.query
        wanted = int(query["n"]) if query.get("n", "").isdigit() else self.page_size
        page_size = min(wanted, self.page_size)
        tags = [tag for tag in self.tags(request.repository) if tag > query.get("last", "")]
        page = tags[:page_size]
        headers = Headers({"Content-Type": "application/json"})
        if len(tags) > len(page) and page:
            link = urlencode({"n": page_size, "last": page[-1]})
            headers["link"] = f'<{quote(request.path)}?{link}>; rel="next"'
        return Response(200, headers, Bytes(json.dumps({"name": request.repository, "tags": page}).encode()))

    def _list_referrers(self, request: Request) -> Response:
        if not self.referrers:
            return error(404, "no such endpoint")
        subject = Digest(request.identifier)
        wanted = request.query.get("artifactType")
        found = []
        for document in self._manifests.get(request.repository, {}).values():
            if document.subject is None or document.subject.digest != subject:
                continue
            artifact_type = document.artifact_type if isinstance(document, Manifest) else ""
            if wanted in (None, artifact_type):
                annotations = document.annotations
                found.append(replace(document.descriptor, artifact_type=artifact_type, annotations=annotations))
        headers = Headers({"Content-Type": OCI_INDEX})
        if wanted is not None:
            headers["oci-filters-applied"] = "artifactType"
        listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [desc.to_json() for desc in found]}
        return Response(200, headers, Bytes(json.dumps(listing).encode()))


def error(status: int, message: str, code: str | None = None) -> Response:
    """An answer in the form that registries give their errors."""
    body = {"errors": [{"code": code or _CODES.get(status, "UNKNOWN"), "message": message}]}
    return Response(status, Headers({"Content-Type": "application/json"}), Bytes(json.dumps(body).encode()))


def _altered(response: Response, answer: Answer) -> Response:
    for name, value in answer.headers.items():
        if value is None:
            response.headers.pop(name.lower(), None)
        else:
            response.headers[name.lower()] = value
    if answer.body is not None:
        response.body = Bytes(answer.body) if isinstance(answer.body, bytes) else answer.body
        response.start, response.stop = 0, None
    response.cut, response.stall = answer.cut, answer.stall
    return response


def _at(repository: str, digest: Digest) -> Headers:
    return Headers({"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest})


def _receive(request: Request, upload: _Upload) -> None:
    while piece := request.body.read1(1 << 20):
        upload.file.write(piece)
        upload.hasher.update(piece)
        upload.size += len(piece)


def _span(text: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a Range header asks for; None when it cannot be had."""
    unit, _, spec = text.partition("=")
    first, dash, last = spec.partition("-")
    if unit != "bytes" or not dash or "," in spec or not (first + last).isdigit():
        return None
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    stop = min(int(last) + 1, size) if last else size
    return (int(first), stop) if int(first) < stop else None
