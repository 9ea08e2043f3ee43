"""Pushing: nothing when it is there, a mount where possible, else an upload that survives breaks."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

import pytest

from blobtee import tasks
from blobtee.content.api import ReaderAt
from blobtee.errors import (
    Cancelled,
    ConnectionFailed,
    DigestMismatch,
    PermissionDenied,
    ProtocolViolation,
    SizeMismatch,
)
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Registry, Settings
from blobtee.registry.fetcher import DocumentReader
from blobtee.registry.pusher import ranked
from tests.unit.registry.conftest import Connect, Serve
from tests.unit.registry.scripted import Asked, Server, Wire

DATA = random.Random(9).randbytes(700_001)
DESC = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))


class Bytes:
    """A provider that counts how often it is asked."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.opened = 0

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        self.opened += 1
        return DocumentReader(self.data)


@dataclass
class Uploads:
    """A registry's upload side. `keep` cuts uploads short: that many bytes of a body are kept, then it breaks off."""

    keep: list[int] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    mountable: tuple[str, ...] = ()
    limit: int = 1 << 40
    parts: dict[str, bytearray] = field(default_factory=dict)
    absolute: str = ""
    status_known: bool = True

    def __call__(self, asked: Asked, wire: Wire) -> None:
        last = asked.path.rsplit("/", 1)[1]
        if asked.method == "HEAD":
            found = self.blobs.get(last)
            wire.answer(404 if found is None else 200, {"Content-Length": str(len(found or b""))})
        elif asked.method == "POST":
            if asked.query.get("from", [""])[0] in self.mountable:
                wire.answer(201, {"Docker-Content-Digest": asked.query["mount"][0]})
                return
            name = f"u{len(self.parts)}"
            self.parts[name] = bytearray()
            wire.answer(202, self.where(asked, name))
        elif asked.method == "GET":
            if not self.status_known or last not in self.parts:
                wire.answer(404)
                return
            wire.answer(204, {**self.where(asked, last), "Range": f"0-{max(0, len(self.parts[last]) - 1)}"})
        elif asked.method == "DELETE":
            del self.parts[last]
            wire.answer(204)
        else:
            self.receive(asked, wire, last)

    def receive(self, asked: Asked, wire: Wire, name: str) -> None:
        part = self.parts[name]
        if len(asked.body) > self.limit:
            wire.answer(413)
            return
        assert asked.headers["content-type"] == "application/octet-stream"
        if asked.method == "PATCH":
            assert asked.headers["content-range"] == f"{len(part)}-{len(part) + len(asked.body) - 1}"
        assert asked.query["state"] == [str(len(part))]
        if asked.body and self.keep:
            part += asked.body[: self.keep.pop(0)]
            wire.drop()
        part += asked.body
        if asked.method == "PATCH":
            wire.answer(202, {**self.where(asked, name), "Range": f"0-{len(part) - 1}"})
            return
        digest = asked.query["digest"][0]
        assert digest == Digest.of(bytes(part))
        self.blobs[digest] = bytes(self.parts.pop(name))
        wire.answer(201, {"Docker-Content-Digest": digest})

    def where(self, asked: Asked, name: str) -> dict[str, str]:
        base = asked.path.split("/blobs/")[0]
        return {"Location": f"{self.absolute}{base}/blobs/uploads/{name}?state={len(self.parts[name])}"}


def push(
    registry: Registry, server: Server, provider: Bytes | None = None, mount_from: tuple[str, ...] = ()
) -> tuple[str, int, str]:
    pushed = registry.repository(f"{server.host}/team/app").push(DESC, provider or Bytes(), mount_from=mount_from)
    return pushed.how, pushed.nbytes, pushed.source


def methods(server: Server) -> list[str]:
    return [asked.method for asked in server.requests]


def test_a_blob_that_is_there_is_not_read(serve: Serve, connect: Connect) -> None:
    server = serve(Uploads(blobs={DESC.digest: DATA}))
    provider = Bytes()
    assert push(connect(), server, provider, ("team/base",)) == ("exists", 0, "")
    assert methods(server) == ["HEAD"]
    assert provider.opened == 0


def test_a_blob_of_another_size_under_the_same_digest_is_refused(serve: Serve, connect: Connect) -> None:
    server = serve(Uploads(blobs={DESC.digest: DATA[1:]}))
    with pytest.raises(SizeMismatch):
        push(connect(), server)


def test_an_upload_is_one_put_of_known_length(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()
    server = serve(uploads)
    assert push(connect(), server) == ("uploaded", len(DATA), "")
    assert uploads.blobs == {DESC.digest: DATA}
    assert methods(server) == ["HEAD", "POST", "PUT"]
    assert server.requests[2].headers["content-length"] == str(len(DATA))
    assert "transfer-encoding" not in server.requests[2].headers


def test_an_empty_blob_can_be_pushed(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()
    server = serve(uploads)
    empty = Descriptor("application/octet-stream", Digest.of(b""), 0)
    connect().repository(f"{server.host}/team/app").push(empty, Bytes(b""))
    assert uploads.blobs == {empty.digest: b""}


def test_an_absolute_upload_location_on_the_same_host_is_followed(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()
    server = serve(uploads)
    uploads.absolute = server.url
    push(connect(), server)
    assert uploads.blobs


def test_the_nearest_repository_is_mounted_first() -> None:
    names = ["other/x", "team/app/cache", "team/base", "team/app", "bad name:x,pull", "team/base", "UPPER"]
    assert ranked("team/app", names) == ["team/app/cache", "team/base", "other/x"]


def test_a_mount_moves_nothing(serve: Serve, connect: Connect) -> None:
    uploads = Uploads(mountable=("team/base",))
    server = serve(uploads)
    provider = Bytes()
    assert push(connect(), server, provider, ("elsewhere/x", "team/base")) == ("mounted", 0, "team/base")
    assert provider.opened == 0
    assert methods(server) == ["HEAD", "POST"]


def test_a_refused_mount_uses_the_upload_that_the_registry_began_and_cancels_the_others(
    serve: Serve, connect: Connect
) -> None:
    uploads = Uploads()
    server = serve(uploads)
    assert push(connect(), server, None, ("team/base", "other/x"))[0] == "uploaded"
    assert methods(server) == ["HEAD", "POST", "DELETE", "POST", "PUT"]
    assert uploads.parts == {}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_mount_that_is_an_error_falls_back_to_an_upload(serve: Serve, connect: Connect, status: int) -> None:
    uploads = Uploads()

    def script(asked: Asked, wire: Wire) -> None:
        if "mount" in asked.query:
            wire.answer(status)
        else:
            uploads(asked, wire)

    assert push(connect(), serve(script), None, ("secret/x",))[0] == "uploaded"
    assert uploads.blobs


@pytest.mark.parametrize("keep", [[300_000], [1], [0], [600_000, 50_000, 0, 10], [len(DATA)]])
def test_an_upload_that_breaks_off_goes_on_where_the_registry_is(
    serve: Serve, connect: Connect, keep: list[int]
) -> None:
    uploads = Uploads(keep=list(keep))
    assert push(connect(), serve(uploads))[0] == "uploaded"
    assert uploads.blobs == {DESC.digest: DATA}
    assert uploads.parts == {}


def test_a_resumed_upload_sends_the_rest_only(serve: Serve, connect: Connect) -> None:
    uploads = Uploads(keep=[500_000])
    server = serve(uploads)
    push(connect(), server)
    [patch] = server.asked("PATCH")
    assert len(patch.body) == len(DATA) - 500_000
    assert methods(server) == ["HEAD", "POST", "PUT", "GET", "PATCH", "PUT"]


def test_an_upload_whose_session_is_lost_begins_anew(serve: Serve, connect: Connect) -> None:
    uploads = Uploads(keep=[500_000], status_known=False)
    server = serve(uploads)
    assert push(connect(), server)[0] == "uploaded"
    assert methods(server).count("POST") == 2


def test_a_lost_answer_to_the_last_put_is_found_out(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()

    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "PUT":
            uploads.blobs[DESC.digest] = asked.body
            uploads.parts.clear()
            wire.drop()
        uploads(asked, wire)

    server = serve(script)
    push(connect(), server)
    assert methods(server) == ["HEAD", "POST", "PUT", "GET", "HEAD"]


def test_a_registry_that_takes_no_large_body_gets_chunks(serve: Serve, connect: Connect) -> None:
    uploads = Uploads(limit=300_000)
    server = serve(uploads)
    push(connect(settings=Settings(chunk=256 << 10, backoff=0.01)), server)
    assert uploads.blobs == {DESC.digest: DATA}
    assert [len(r.body) for r in server.asked("PATCH")] == [262_144, 262_144, len(DATA) - 524_288]


def test_an_upload_that_never_succeeds_ends_and_is_cancelled(serve: Serve, connect: Connect) -> None:
    uploads = Uploads(keep=[0] * 10_000)
    server = serve(uploads)
    with pytest.raises(ConnectionFailed):
        push(connect(settings=Settings(backoff=0.02, patience=0.3)), server)
    assert uploads.parts == {}
    assert len(server.requests) < 200


@pytest.mark.parametrize("status", [404, 416])
def test_a_registry_that_always_counts_differently_does_not_hold_us(
    serve: Serve, connect: Connect, status: int
) -> None:
    uploads = Uploads()

    def script(asked: Asked, wire: Wire) -> None:
        if asked.method in ("PUT", "PATCH"):
            wire.answer(status)
        else:
            uploads(asked, wire)

    server = serve(script)
    with pytest.raises(LookupError if status == 404 else ValueError):
        push(connect(settings=Settings(backoff=0.02, patience=0.3)), server)
    assert len(server.requests) < 200


def test_another_digest_in_the_answer_is_an_error(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()

    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "PUT":
            wire.answer(201, {"Docker-Content-Digest": Digest.of(b"x")})
        else:
            uploads(asked, wire)

    with pytest.raises(DigestMismatch):
        push(connect(), serve(script))


def test_a_source_that_ends_early_is_its_own_error_and_leaves_no_upload(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()
    server = serve(uploads)
    with pytest.raises(SizeMismatch, match="source"):
        push(connect(), server, Bytes(DATA[:-1]))
    assert uploads.blobs == {}
    assert uploads.parts == {}


def test_a_source_that_loses_its_connection_is_not_taken_for_the_registry(serve: Serve, connect: Connect) -> None:
    class Broken(Bytes):
        def reader_at(self, desc: Descriptor) -> ReaderAt:
            self.opened += 1
            raise ConnectionFailed("the source is gone")

    provider = Broken()
    with pytest.raises(ConnectionFailed, match="the source is gone"):
        push(connect(), serve(Uploads()), provider)
    assert provider.opened == 1


def test_an_upload_location_on_a_plain_host_is_refused_over_tls(
    serve: Serve, connect: Connect, server_tls: object, ca_file: str
) -> None:
    uploads = Uploads(absolute="http://127.0.0.1:1")
    server = serve(uploads, tls=server_tls)
    from blobtee.registry import Hosts

    registry = connect(hosts=Hosts((), https=[server.host]), environ={"SSL_CERT_FILE": ca_file})
    with pytest.raises(ProtocolViolation, match="without TLS"):
        push(registry, server)


def test_denied_uploads_say_so(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "HEAD":
            wire.answer(404)
        else:
            wire.answer(403, {}, b'{"errors":[{"code":"DENIED","message":"read only"}]}')

    server = serve(script)
    with pytest.raises(PermissionDenied, match="DENIED: read only") as caught:
        push(connect(), server)
    assert f"{server.host}" in str(caught.value)


def test_a_cancelled_upload_ends_at_once(serve: Serve, connect: Connect) -> None:
    uploads = Uploads()

    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "PUT":
            wire.silence()
        uploads(asked, wire)

    server = serve(script)
    with tasks.scope() as scope:
        timer = threading.Timer(0.2, scope.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            push(connect(settings=Settings()), server)
    timer.join()


def test_progress_of_an_upload_ends_at_its_size(serve: Serve, connect: Connect) -> None:
    events: list[tasks.Event] = []
    with tasks.reporting(events.append):
        push(connect(), serve(Uploads()))
    assert events[-1].current == events[-1].total == len(DATA)
    assert events[-1].completed is not None


def test_an_upload_location_is_used_letter_by_letter(serve: Serve, connect: Connect) -> None:
    state = "/up?b=~%7e+%2B&flag&a=1&b=2"

    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "POST":
            wire.answer(202, {"Location": state})
        else:
            wire.answer(404 if asked.method == "HEAD" else 201)

    server = serve(script)
    assert push(connect(), server)[0] == "uploaded"
    [put] = server.asked("PUT")
    assert put.target.startswith(f"{state}&digest=sha256")
