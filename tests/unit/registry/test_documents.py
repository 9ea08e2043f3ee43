"""Manifests, tags and referrers, and everything that may come instead of them."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from dataclasses import replace

import pytest

from blobtee.errors import (
    BlobteeError,
    ConnectionFailed,
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    RemoteError,
    SizeMismatch,
    TooLarge,
    UnsupportedMediaType,
)
from blobtee.oci import Descriptor, Digest, Index, Manifest, mediatypes
from blobtee.registry import Repository, Settings
from tests.unit.registry.conftest import Connect, Serve
from tests.unit.registry.scripted import Asked, Script, Server, Wire

CONFIG = {"mediaType": mediatypes.OCI_CONFIG, "digest": Digest.of(b"{}"), "size": 2}
RAW = json.dumps(
    {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": CONFIG, "layers": [], "x": 1}, indent=3
).encode()
DIGEST = Digest.of(RAW)
HEAD = {"Content-Type": mediatypes.OCI_MANIFEST, "Docker-Content-Digest": DIGEST}


def manifest(raw: bytes = RAW, refuse_head: int = 0, **changed: str) -> Script:
    headers = {**HEAD, **{name.replace("_", "-"): value for name, value in changed.items()}}
    headers = {name: value for name, value in headers.items() if value}

    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "HEAD":
            wire.answer(refuse_head or 200, {**headers, "Content-Length": str(len(raw))})
        else:
            wire.answer(200, headers, raw)

    return script


def at(connect: Connect, server: Server, name: str = "team/app:v1") -> Repository:
    return connect().repository(f"{server.host}/{name}")


def test_resolving_a_tag_is_one_head(serve: Serve, connect: Connect) -> None:
    server = serve(manifest())
    assert at(connect, server).resolve() == Descriptor(mediatypes.OCI_MANIFEST, DIGEST, len(RAW))
    [asked] = server.requests
    assert (asked.method, asked.path) == ("HEAD", "/v2/team/app/manifests/v1")
    assert mediatypes.OCI_INDEX in asked.headers["accept"]
    assert mediatypes.DOCKER_MANIFEST in asked.headers["accept"]


@pytest.mark.parametrize("refused", [400, 403, 405, 501])
def test_where_head_is_refused_get_resolves(serve: Serve, connect: Connect, refused: int) -> None:
    server = serve(manifest(refuse_head=refused))
    assert at(connect, server).resolve("v2").digest == DIGEST
    assert [r.method for r in server.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("missing", ["Docker_Content_Digest", "Content_Type"])
def test_where_head_says_too_little_get_resolves(serve: Serve, connect: Connect, missing: str) -> None:
    server = serve(manifest(RAW, 0, **{missing: ""}))
    assert at(connect, server).resolve() == Descriptor(mediatypes.OCI_MANIFEST, DIGEST, len(RAW))


def test_a_digest_resolves_to_itself_only(serve: Serve, connect: Connect) -> None:
    server = serve(manifest())
    assert at(connect, server, f"team/app@{DIGEST}").resolve().digest == DIGEST
    with pytest.raises(DigestMismatch):
        at(connect, server).resolve(Digest.of(b"other"))


def test_a_document_keeps_its_bytes(serve: Serve, connect: Connect) -> None:
    document = at(connect, serve(manifest())).document()
    assert isinstance(document, Manifest)
    assert document.raw == RAW


@pytest.mark.parametrize("by", ["tag", "digest", "descriptor"])
def test_a_document_with_other_bytes_is_refused(serve: Serve, connect: Connect, by: str) -> None:
    wrong = RAW.replace(b'"x": 1', b'"x": 2')
    desc = Descriptor(mediatypes.OCI_MANIFEST, DIGEST, len(RAW))
    wanted = {"tag": "v1", "digest": DIGEST, "descriptor": desc}[by]
    changed = {} if by == "tag" else {"Docker_Content_Digest": ""}
    with pytest.raises(DigestMismatch) as caught:
        at(connect, serve(manifest(wrong, 0, **changed))).document(wanted)  # type: ignore[arg-type]
    assert caught.value.expected == DIGEST


def test_a_document_of_another_size_is_refused(serve: Serve, connect: Connect) -> None:
    with pytest.raises(SizeMismatch):
        at(connect, serve(manifest())).document(Descriptor(mediatypes.OCI_MANIFEST, DIGEST, 5))


def test_a_digest_of_another_algorithm_is_checked_with_it(serve: Serve, connect: Connect) -> None:
    strong = "sha512:" + hashlib.sha512(RAW).hexdigest()
    assert at(connect, serve(manifest(Docker_Content_Digest=strong))).document().digest == DIGEST
    wrong = "sha512:" + hashlib.sha512(b"no").hexdigest()
    with pytest.raises(DigestMismatch):
        at(connect, serve(manifest(Docker_Content_Digest=wrong))).document()


@pytest.mark.parametrize(
    ("raw", "changed", "kind"),
    [
        (b"<html>sign in</html>", {"Content_Type": "text/html", "Docker_Content_Digest": ""}, InvalidDocument),
        (b"[]", {"Docker_Content_Digest": ""}, InvalidDocument),
        (b"[" * 100_000, {"Docker_Content_Digest": ""}, InvalidDocument),
        (b'{"schemaVersion":1}', {"Docker_Content_Digest": ""}, UnsupportedMediaType),
        (RAW, {"Docker_Content_Digest": "nonsense"}, ProtocolViolation),
        (RAW, {"Content_Encoding": "gzip"}, ProtocolViolation),
    ],
)
def test_what_is_no_document_is_refused(
    serve: Serve, connect: Connect, raw: bytes, changed: dict[str, str], kind: type[BlobteeError]
) -> None:
    server = serve(manifest(raw, 0, **changed))
    with pytest.raises(kind) as caught:
        at(connect, server).document()
    assert server.host in str(caught.value)


def test_an_endless_document_is_bounded(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not wire.stopped.is_set():
            wire.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")

    with pytest.raises(TooLarge):
        at(connect, serve(script)).document()


def test_a_ten_gigabyte_error_page_is_not_read(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 403 X\r\nContent-Length: 10000000000\r\n\r\n")
        while not wire.stopped.is_set():
            wire.send(b"x" * (1 << 20))

    server = serve(script)
    with pytest.raises(PermissionDenied):
        at(connect, server).document()


def test_an_error_page_that_never_ends_is_given_up(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 403 X\r\nContent-Length: 100\r\n\r\nab")
        wire.silence()

    started = time.monotonic()
    with pytest.raises(PermissionDenied):
        at(connect, serve(script)).document()
    assert time.monotonic() - started < 20


def test_endless_headers_are_bounded(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 X\r\n")
        while not wire.stopped.is_set():
            wire.send(b"X-More: " + b"y" * 10_000 + b"\r\n")

    with pytest.raises(ProtocolViolation):
        at(connect, serve(script)).document()


def test_headers_that_trickle_are_given_up(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        for byte in b"HTTP/1.1 200 X\r\nX-Slow: " + b"z" * 1000:
            wire.send(bytes([byte]))
            if wire.stopped.wait(0.05):
                wire.drop()

    registry = connect(settings=Settings(answer=0.4, backoff=0.01, attempts=2))
    started = time.monotonic()
    with pytest.raises(ConnectionFailed, match="stood still"):
        registry.repository(f"{serve(script).host}/a/b:c").document()
    assert time.monotonic() - started < 20, "all of them take 50 s"


@pytest.mark.parametrize(
    "reply", [b"\x16\x03\x01\x02\x00", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 300_000]
)
def test_what_is_not_http_is_refused(serve: Serve, connect: Connect, reply: bytes) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(reply)
        wire.drop()

    with pytest.raises((ProtocolViolation, ConnectionFailed)):
        at(connect, serve(script)).document()


def test_redirects_are_followed_and_bounded(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        hops = int(asked.query.get("hop", ["0"])[0])
        if hops < 5:
            wire.answer(307, {"Location": f"?hop={hops + 1}"})
        else:
            manifest()(asked, wire)

    server = serve(script)
    assert at(connect, server).document().digest == DIGEST
    assert len(server.requests) == 6
    endless = serve(lambda asked, wire: wire.answer(302, {"Location": asked.target}))
    with pytest.raises(ProtocolViolation, match="more than 5 times"):
        at(connect, endless).document()


@pytest.mark.parametrize(
    "location",
    [
        "ftp://x/y",
        "http://",
        "http://user:pass@x/",
        "http://[zz]/",
        "\x01:",
        "file:///etc/passwd",
        "http://127.0.0.1:99999999/",
        "http://127.0.0.1:0/",
        "http://xn--zzzz/",
    ],
)
def test_redirects_to_nowhere_are_refused(serve: Serve, connect: Connect, location: str) -> None:
    with pytest.raises(ProtocolViolation):
        at(connect, serve(lambda asked, wire: wire.answer(302, {"Location": location}))).document()


def test_a_head_answer_with_a_body_does_not_spoil_the_next_request(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.answer(200, HEAD, RAW)

    repository = at(connect, serve(script))
    for _ in range(3):
        assert repository.resolve().digest == DIGEST
        assert repository.document().digest == DIGEST


def test_a_kept_connection_that_the_server_closed_is_replaced(serve: Serve, connect: Connect) -> None:
    good = manifest()

    def script(asked: Asked, wire: Wire) -> None:
        if len(server.requests) % 2 == 0:
            wire.drop()
        good(asked, wire)

    server = serve(script)
    repository = at(connect, server)
    for _ in range(3):
        assert repository.document().digest == DIGEST


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_registry_in_trouble_is_asked_again(serve: Serve, connect: Connect, status: int) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if len(server.requests) < 3:
            wire.answer(status)
        else:
            manifest()(asked, wire)

    server = serve(script)
    assert at(connect, server).document().digest == DIGEST


def test_trouble_that_stays_ends_after_the_last_try(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(500, {}, b"\x1b[31mred\x00\nline two" + b"x" * 10_000))
    with pytest.raises(RemoteError) as caught:
        at(connect, server).document()
    assert len(server.requests) == 3
    text = str(caught.value)
    assert "red" in text
    assert "line two" in text
    assert text.isprintable()
    assert len(text) < 600


def test_a_host_that_never_answered_fails_at_once(connect: Connect) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ConnectionFailed, match="connection refused") as caught:
            connect(settings=Settings(backoff=100)).repository(f"{host}/team/app").resolve()
        assert time.monotonic() - started < 20, "a pause before the next try is longer"
    assert host in str(caught.value)


def test_not_found_names_the_reference_and_what_to_do(serve: Serve, connect: Connect) -> None:
    server = serve(
        lambda asked, wire: wire.answer(
            404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
        )
    )
    with pytest.raises(NotFound) as caught:
        at(connect, server).document()
    assert "team/app:v1" in str(caught.value)
    assert server.host in str(caught.value)
    assert "MANIFEST_UNKNOWN: manifest unknown" in str(caught.value)


@pytest.mark.parametrize("identifier", ["../x", "a/b", "a?b", "", "..", "a b", "é"])
def test_an_identifier_cannot_be_another_path(serve: Serve, connect: Connect, identifier: str) -> None:
    server = serve(manifest())
    with pytest.raises(InvalidArgument):
        at(connect, server).document(identifier)
    assert server.requests == []


# Tags


def pages(*answers: tuple[bytes, str]) -> Script:
    def script(asked: Asked, wire: Wire) -> None:
        body, link = answers[int(asked.query.get("page", ["0"])[0])]
        wire.answer(200, {"Link": link} if link else {}, body)

    return script


def test_tags_come_page_by_page(serve: Serve, connect: Connect) -> None:
    script = pages(
        (b'{"tags":["a","b"]}', '</v2/team/app/tags/list?page=1>; rel="next"'),
        (b'{"tags":null}', '<http://x/>; rel="first", <list?page=2>; title="a, b"; rel=next'),
        (b'{"name":"team/app","tags":["c"]}', ""),
    )
    server = serve(script)
    tags = at(connect, server).tags()
    assert next(tags) == "a"
    assert len(server.requests) == 1
    assert list(tags) == ["b", "c"]


@pytest.mark.parametrize(
    ("body", "link"),
    [
        (b'{"tags":[]}', '</v2/team/app/tags/list?n=1000>; rel="next"'),
        (b'{"tags":[]}', '<http://other.example/x>; rel="next"'),
        (b'{"tags":[]}', "<" + "x" * 5000 + '>; rel="next"'),
        (b'{"tags":[1]}', ""),
        (b'{"tags":"abc"}', ""),
        (b"[]", ""),
        (b"{" * 100_000, ""),
    ],
)
def test_tag_lists_that_make_no_sense_are_refused(serve: Serve, connect: Connect, body: bytes, link: str) -> None:
    with pytest.raises(ProtocolViolation):
        list(at(connect, serve(pages((body, link)))).tags())


# Referrers


SIGNATURE = {"mediaType": mediatypes.OCI_MANIFEST, "digest": Digest.of(b"s"), "size": 1, "artifactType": "sig"}
SBOM = {"mediaType": mediatypes.OCI_MANIFEST, "digest": Digest.of(b"b"), "size": 1, "artifactType": "sbom"}


def index(*entries: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": entries}).encode()


def test_referrers_by_the_api_are_filtered_and_each_once(serve: Serve, connect: Connect) -> None:
    script = pages((index(SIGNATURE, SBOM), "<?page=1>; rel=next"), (index(SBOM), ""))
    server = serve(script)
    repository = at(connect, server)
    assert [d.artifact_type for d in repository.referrers(DIGEST)] == ["sig", "sbom"]
    assert [d.artifact_type for d in repository.referrers(DIGEST, "sbom")] == ["sbom"]
    assert server.asked("GET", "artifactType=sbom")


def test_referrers_by_tag_where_there_is_no_api(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.path == f"/v2/team/app/manifests/sha256-{DIGEST.hex}":
            wire.answer(200, {"Content-Type": mediatypes.OCI_INDEX}, index(SIGNATURE, SBOM))
        else:
            wire.answer(404)

    repository = at(connect, serve(script))
    assert [d.artifact_type for d in repository.referrers(DIGEST, "sig")] == ["sig"]
    assert repository.referrers(Digest.of(b"nobody")) == []


# Pushing documents


def test_a_document_is_pushed_as_it_is(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(201, {"Docker-Content-Digest": DIGEST}))
    repository = at(connect, server)
    assert repository.push_document(RAW, "v2").digest == DIGEST
    document = repository.push_document(RAW)
    assert document == Descriptor(mediatypes.OCI_MANIFEST, DIGEST, len(RAW))
    assert [r.path for r in server.requests] == ["/v2/team/app/manifests/v2", f"/v2/team/app/manifests/{DIGEST}"]
    assert {(r.body, r.headers["content-type"]) for r in server.requests} == {(RAW, mediatypes.OCI_MANIFEST)}


def test_a_document_that_was_stored_as_another_is_an_error(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(201, {"Docker-Content-Digest": Digest.of(b"x")}))
    with pytest.raises(DigestMismatch):
        at(connect, server).push_document(RAW, "v2")


@pytest.mark.parametrize("api", [True, False])
def test_a_document_with_a_subject_gets_into_the_list_of_referrers(serve: Serve, connect: Connect, api: bool) -> None:
    stored: dict[str, bytes] = {}

    def script(asked: Asked, wire: Wire) -> None:
        name = asked.path.rsplit("/", 1)[1]
        if asked.method == "PUT":
            stored[name] = asked.body
            wire.answer(201, {"OCI-Subject": DIGEST} if api else {})
        elif name in stored:
            wire.answer(200, {"Content-Type": mediatypes.OCI_INDEX}, stored[name])
        else:
            wire.answer(404)

    subject = Descriptor(mediatypes.OCI_MANIFEST, DIGEST, len(RAW))
    repository = at(connect, serve(script))
    for artifact in ("one", "two", "one"):
        document = {**json.loads(RAW), "artifactType": artifact, "subject": subject.to_json()}
        repository.push_document(json.dumps(document).encode())
    found = [d.artifact_type for d in repository.referrers(DIGEST)]
    assert found == ([] if api else ["one", "two"])
    if not api:
        assert isinstance(at(connect, serve(script)).document(f"sha256-{DIGEST.hex}"), Index)


def test_a_manifest_reader_gives_checked_bytes(serve: Serve, connect: Connect) -> None:
    desc = Descriptor(mediatypes.OCI_MANIFEST, DIGEST, len(RAW))
    repository = at(connect, serve(manifest()))
    with repository.reader_at(desc) as reader:
        assert reader.read_at(0, 10_000) == RAW
    with pytest.raises(DigestMismatch):
        repository.reader_at(replace(desc, digest=Digest.of(b"?"))).close()


def test_stat_is_one_head(serve: Serve, connect: Connect) -> None:
    server = serve(
        lambda asked, wire: (
            wire.answer(200 if DIGEST in asked.path else 404, {"Content-Length": "123"})
            if asked.method == "HEAD"
            else wire.answer(500)
        )
    )
    repository = at(connect, server)
    assert repository.stat(DIGEST) == 123
    assert repository.stat(Digest.of(b"no")) is None


def test_stat_does_not_believe_who_names_another_blob(serve: Serve, connect: Connect) -> None:
    other = Digest.of(b"other")
    server = serve(lambda asked, wire: wire.answer(200, {"Content-Length": "123", "Docker-Content-Digest": other}))
    with pytest.raises(DigestMismatch):
        at(connect, server).stat(DIGEST)
    assert at(connect, server).stat(other) == 123
