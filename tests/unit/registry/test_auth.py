"""Signing in, and that secrets stay where they belong."""

from __future__ import annotations

import base64
import json
import logging
import stat
import threading
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from blobtee import tasks
from blobtee.errors import InvalidDocument, PermissionDenied, ProtocolViolation, Unauthenticated
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Credential, FileCredentials, Hosts, Registry
from blobtee.registry.headers import Challenge, challenges
from tests.unit.registry.conftest import Connect, Serve
from tests.unit.registry.scripted import Asked, Script, Server, Wire
from tests.unit.registry.test_push import DESC as BLOB
from tests.unit.registry.test_push import Bytes, Uploads

SECRET = "s3cr3t-p4ssw0rd"
USER = Credential("ann", SECRET, source="a test")
BASIC = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()


class Known:
    def __init__(self, credential: Credential | None = USER) -> None:
        self.credential = credential
        self.asked: list[tuple[str, str]] = []

    def get(self, host: str, repository: str) -> Credential | None:
        self.asked.append((host, repository))
        return self.credential


class Guarded:
    """A registry that wants bearer tokens, and its token server."""

    def __init__(self, serve: Serve, inner: Script | None = None, lifetime: int = 300) -> None:
        self.valid: set[str] = set()
        self.lifetime = lifetime
        self.inner = inner or (lambda asked, wire: wire.answer(200, {}, b'{"tags":["a"]}'))
        self.tokens = serve(self.token)
        self.registry = serve(self.front)

    def token(self, asked: Asked, wire: Wire) -> None:
        form = parse_qs(asked.body.decode())
        refreshed = form.get("refresh_token") == ["identity"]
        if asked.headers.get("authorization") not in (BASIC, None) or (asked.method == "POST" and not refreshed):
            wire.answer(401)
            return
        token = f"token-{len(self.tokens.requests)}"
        self.valid.add(token)
        wire.answer(200, {}, json.dumps({"token": token, "expires_in": self.lifetime}).encode())

    def front(self, asked: Asked, wire: Wire) -> None:
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.valid:
            challenge = f'Bearer realm="{self.tokens.url}/token",service="reg, \\"quoted\\""'
            wire.answer(401, {"WWW-Authenticate": challenge})
        else:
            self.inner(asked, wire)


def tags(registry: Registry, server: Server, repository: str = "team/app") -> list[str]:
    return list(registry.repository(f"{server.host}/{repository}").tags())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Basic"], [Challenge("basic", {})]),
        (['BASIC realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (
            ['Basic realm="a, b", Bearer realm="https://t/?a=b",service=s , scope="repository:x:pull,push"'],
            [
                Challenge("basic", {"realm": "a, b"}),
                Challenge("bearer", {"realm": "https://t/?a=b", "service": "s", "scope": "repository:x:pull,push"}),
            ],
        ),
        (['Bearer realm="q\\"q"', "Negotiate"], [Challenge("bearer", {"realm": 'q"q'}), Challenge("negotiate", {})]),
        (['Bearer realm = "x" , error="e"'], [Challenge("bearer", {"realm": "x", "error": "e"})]),
        ([""], []),
        (['="'], []),
        (['Bearer realm="unclosed'], [Challenge("bearer", {})]),
    ],
)
def test_challenges_are_read(headers: list[str], expected: list[Challenge]) -> None:
    assert challenges(headers) == expected


def test_a_public_image_needs_an_anonymous_token(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    assert tags(connect(), guarded.registry) == ["a"]
    [asked] = guarded.tokens.requests
    assert "authorization" not in asked.headers
    assert asked.query == {"service": ['reg, "quoted"'], "scope": ["repository:team/app:pull"]}


def test_credentials_buy_a_token_and_go_to_the_token_server_only(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    registry = connect(credentials=Known())
    assert tags(registry, guarded.registry) == ["a"]
    assert tags(registry, guarded.registry) == ["a"]
    assert [r.headers.get("authorization") for r in guarded.tokens.requests] == [BASIC]
    assert [r.headers.get("authorization") for r in guarded.registry.requests] == [
        None,
        "Bearer token-1",
        "Bearer token-1",
    ]


def test_each_repository_has_its_own_token_without_another_401(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    registry = connect()
    tags(registry, guarded.registry)
    tags(registry, guarded.registry, "team/other")
    assert len(guarded.registry.requests) == 3
    assert len(guarded.tokens.requests) == 2


def test_an_identity_token_is_sent_as_a_refresh_grant(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    registry = connect(credentials=Known(Credential(identity_token="identity")))
    assert tags(registry, guarded.registry) == ["a"]
    [asked] = guarded.tokens.requests
    assert asked.method == "POST"
    form = parse_qs(asked.body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["scope"] == ["repository:team/app:pull"]


def test_a_token_that_stopped_working_is_replaced_once(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    registry = connect()
    tags(registry, guarded.registry)
    guarded.valid.clear()
    assert tags(registry, guarded.registry) == ["a"]
    assert len(guarded.tokens.requests) == 2


def test_a_token_near_its_end_is_renewed_without_a_401(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = Guarded(serve)
    registry = connect()
    tags(registry, guarded.registry)
    import time

    real = time.monotonic
    monkeypatch.setattr("blobtee.registry.auth.signer.time.monotonic", lambda: real() + 290)
    tags(registry, guarded.registry)
    assert len(guarded.tokens.requests) == 2
    assert len(guarded.registry.requests) == 3


def test_a_registry_that_never_has_enough_is_asked_twice(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    guarded.front = lambda asked, wire: wire.answer(401, {"WWW-Authenticate": f'Bearer realm="{guarded.tokens.url}/t"'})  # type: ignore[method-assign]
    server = serve(guarded.front)
    with pytest.raises(Unauthenticated) as caught:
        tags(connect(credentials=Known()), server)
    assert server.host in str(caught.value)
    assert len(server.requests) == 2


def test_refused_credentials_say_where_they_came_from(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    registry = connect(credentials=Known(Credential("bob", "wr0ng", source="/home/bob/.docker/config.json")))
    with pytest.raises(Unauthenticated) as caught:
        tags(registry, guarded.registry)
    assert "/home/bob/.docker/config.json" in str(caught.value)
    assert "wr0ng" not in str(caught.value)


def test_many_threads_fetch_one_token(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve)
    registry = connect(credentials=Known())
    barrier = threading.Barrier(8)

    def ask() -> list[str]:
        barrier.wait()
        return tags(registry, guarded.registry)

    with tasks.Group() as group:
        for _ in range(8):
            group.spawn(ask)
    assert len(guarded.tokens.requests) == 1


def test_basic_sign_in(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.headers.get("authorization") == BASIC:
            wire.answer(200, {}, b'{"tags":["a"]}')
        else:
            wire.answer(401, {"WWW-Authenticate": 'Basic realm="x"'})

    server = serve(script)
    known = Known()
    assert tags(connect(credentials=known), server) == ["a"]
    assert known.asked == [(server.host, "team/app")]
    with pytest.raises(Unauthenticated, match="docker login"):
        tags(connect(), server)
    with pytest.raises(Unauthenticated, match="refused"):
        tags(connect(credentials=Known(Credential("ann", "no"))), server)


def test_an_unknown_way_of_signing_in_is_named(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(401, {"WWW-Authenticate": "Negotiate"}))
    with pytest.raises(Unauthenticated, match="negotiate"):
        tags(connect(), server)


def test_a_plain_token_server_gets_nothing_from_a_tls_registry(
    serve: Serve, connect: Connect, server_tls: object, ca_file: str
) -> None:
    thief = serve(lambda asked, wire: wire.answer(200, {}, b'{"token":"t"}'))
    server = serve(
        lambda asked, wire: wire.answer(401, {"WWW-Authenticate": f'Bearer realm="{thief.url}/t"'}), tls=server_tls
    )
    registry = connect(hosts=Hosts((), https=[server.host]), credentials=Known(), environ={"SSL_CERT_FILE": ca_file})
    with pytest.raises(ProtocolViolation, match="plain HTTP"):
        tags(registry, server)
    assert thief.requests == []


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token":5}', b'{"token":"a\\nb"}', b"{" * 100_000, b'{"token":""}'])
def test_a_token_that_is_none_is_refused(serve: Serve, connect: Connect, body: bytes) -> None:
    tokens = serve(lambda asked, wire: wire.answer(200, {}, body))
    server = serve(lambda asked, wire: wire.answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.url}"'}))
    with pytest.raises(ProtocolViolation, match="no token"):
        tags(connect(), server)


def test_a_mount_asks_for_reading_the_other_repository_too(serve: Serve, connect: Connect) -> None:
    guarded = Guarded(serve, Uploads(mountable=("team/base",)))
    repository = connect().repository(f"{guarded.registry.host}/team/app")
    assert repository.push(BLOB, Bytes(), mount_from=["team/base"]).how == "mounted"
    assert [sorted(r.query["scope"]) for r in guarded.tokens.requests] == [
        ["repository:team/app:pull,push"],
        ["repository:team/app:pull,push", "repository:team/base:pull"],
    ]


def test_credentials_follow_no_redirect_to_another_host(serve: Serve, connect: Connect) -> None:
    def other(asked: Asked, wire: Wire) -> None:
        wire.answer(200, {}, b'{"tags":["b"]}')

    elsewhere = serve(other)
    guarded = Guarded(serve, lambda asked, wire: wire.answer(307, {"Location": f"{elsewhere.url}/x"}))
    assert tags(connect(credentials=Known()), guarded.registry) == ["b"]
    assert "authorization" not in elsewhere.requests[0].headers


def test_credentials_do_not_go_to_an_upload_location_on_another_host(serve: Serve, connect: Connect) -> None:
    elsewhere = serve(Uploads())
    uploads = Uploads()

    def front(asked: Asked, wire: Wire) -> None:
        uploads.absolute = elsewhere.url
        uploads(asked, wire)

    guarded = Guarded(serve, front)
    elsewhere.script.parts["u0"] = bytearray()  # type: ignore[attr-defined]
    guarded_repository = connect(credentials=Known()).repository(f"{guarded.registry.host}/team/app")
    assert guarded_repository.push(BLOB, Bytes()).how == "uploaded"
    assert elsewhere.requests
    assert all("authorization" not in asked.headers for asked in elsewhere.requests)


def test_a_token_server_that_redirects_elsewhere_does_not_pass_the_password_on(serve: Serve, connect: Connect) -> None:
    thief = serve(lambda asked, wire: wire.answer(200, {}, b'{"token":"t"}'))
    tokens = serve(lambda asked, wire: wire.answer(307, {"Location": thief.url + "/t"}))

    def front(asked: Asked, wire: Wire) -> None:
        if asked.headers.get("authorization") == "Bearer t":
            wire.answer(200, {}, b'{"tags":[]}')
        else:
            wire.answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.url}"'})

    server = serve(front)
    tags(connect(credentials=Known()), server)
    assert all("authorization" not in asked.headers for asked in thief.requests)
    with pytest.raises(ProtocolViolation, match="redirects a POST"):
        tags(connect(credentials=Known(Credential(identity_token="identity"))), server)
    assert all(not asked.body for asked in thief.requests)


def test_secrets_show_in_no_log_error_or_repr(serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    data = b"x" * 100
    signature = "signature=hush-hush"
    storage = serve(lambda asked, wire: wire.answer(403, {}, b"no"))
    guarded = Guarded(serve, lambda asked, wire: wire.answer(307, {"Location": f"{storage.url}/d?{signature}"}))
    registry = connect(credentials=Known())
    repository = registry.repository(f"{guarded.registry.host}/team/app")
    with (
        repository.reader_at(Descriptor("x", Digest.of(data), 100)) as reader,
        pytest.raises(PermissionDenied) as caught,
    ):
        reader.read_at(0, 10)
    with pytest.raises(PermissionDenied):
        repository.resolve()
    texts = [
        caplog.text,
        str(caught.value),
        repr(caught.value),
        repr(USER),
        repr(repository),
        repr(Credential(identity_token=SECRET)),
    ]
    for text in texts:
        for secret in (SECRET, BASIC.split()[1], "token-1", "hush-hush"):
            assert secret not in text
    assert "GET " in caplog.text


def test_a_storage_that_repeats_the_signature_is_quoted_without_it(serve: Serve, connect: Connect) -> None:
    page = (
        b'<?xml version="1.0"?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>Too old.</Message>'
        b"<SignatureProvided>hush-hush</SignatureProvided></Error>"
    )
    storage = serve(lambda asked, wire: wire.answer(403, {}, page))
    server = serve(lambda asked, wire: wire.answer(307, {"Location": f"{storage.url}/d?signature=hush-hush"}))
    repository = connect().repository(f"{server.host}/team/app")
    with repository.reader_at(Descriptor("x", Digest.of(b"x"), 1)) as reader, pytest.raises(PermissionDenied) as caught:
        reader.read_at(0, 1)
    assert "SignatureDoesNotMatch: Too old." in str(caught.value)
    assert "hush-hush" not in str(caught.value)


# Files and helpers


def config(path: Path, **document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def found(credentials: FileCredentials, host: str, repository: str = "team/app") -> tuple[str, str, str] | None:
    credential = credentials.get(host, repository)
    return None if credential is None else (credential.username, credential.password, credential.identity_token)


def test_docker_config_with_its_old_keys(tmp_path: Path) -> None:
    config(
        tmp_path / ".docker" / "config.json",
        auths={
            "https://index.docker.io/v1/": auth("hub", "p:q"),
            "https://old.example/v2/": auth("old", "p"),
            "plain.example:5000": {"username": "u", "password": "p"},
            "token.example": {"identitytoken": "it"},
            "empty.example": {},
        },
    )
    credentials = FileCredentials({"HOME": str(tmp_path)})
    assert found(credentials, "docker.io", "library/python") == ("hub", "p:q", "")
    assert found(credentials, "old.example") == ("old", "p", "")
    assert found(credentials, "plain.example:5000") == ("u", "p", "")
    assert found(credentials, "token.example") == ("", "", "it")
    assert found(credentials, "empty.example") is None
    assert found(credentials, "plain.example") is None


def test_the_longest_path_wins(tmp_path: Path) -> None:
    path = config(
        tmp_path / "auth.json",
        auths={
            "r.example": auth("host", "1"),
            "r.example/team": auth("team", "2"),
            "r.example/team/app": auth("app", "3"),
        },
    )
    credentials = FileCredentials({"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(path)})
    assert found(credentials, "r.example", "team/app") == ("app", "3", "")
    assert found(credentials, "r.example", "team/apple") == ("team", "2", "")
    assert found(credentials, "r.example", "x") == ("host", "1", "")


def test_files_are_looked_at_in_order(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    credentials = FileCredentials(environ)
    assert found(credentials, "r.example") is None
    config(tmp_path / ".config" / "containers" / "auth.json", auths={"r.example": auth("four", "")})
    assert found(credentials, "r.example") == ("four", "", "")
    config(tmp_path / "run" / "containers" / "auth.json", auths={"r.example": auth("three", "")})
    assert found(credentials, "r.example") == ("three", "", "")
    config(tmp_path / ".docker" / "config.json", auths={"r.example": auth("two", "")})
    assert found(credentials, "r.example") == ("two", "", "")
    environ["DOCKER_CONFIG"] = str(tmp_path / "d")
    config(tmp_path / "d" / "config.json", auths={"r.example": auth("moved", "")})
    assert found(credentials, "r.example") == ("moved", "", "")
    environ["REGISTRY_AUTH_FILE"] = str(config(tmp_path / "one.json", auths={"r.example": auth("one", "")}))
    assert found(credentials, "r.example") == ("one", "", "")


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"auths": [1]}', '{"auths": {"r.example": {"auth": "%%"}}}', '{"auths": {"r.example": "s3cr3t"}}'],
)
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "auth.json"
    path.write_text(text)
    with pytest.raises(InvalidDocument) as caught:
        FileCredentials({"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(path)}).get("r.example", "x")
    assert str(path) in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_a_file_that_cannot_be_read_matters_only_when_no_other_knows(tmp_path: Path) -> None:
    (tmp_path / "auth.json").mkdir()  # What container tools make of a missing file that they mount.
    credentials = FileCredentials({"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})
    with pytest.raises(Unauthenticated, match=r"auth\.json"):
        credentials.get("r.example", "x")
    config(tmp_path / ".docker" / "config.json", auths={"r.example": auth("ann", "pw")})
    assert found(credentials, "r.example") == ("ann", "pw", "")


def helper(folder: Path, name: str, script: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"HOME": str(folder), "PATH": f"{folder}:/usr/bin:/bin", "REGISTRY_AUTH_FILE": str(folder / "c.json")}


def test_a_helper_is_asked_for_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = helper(
        tmp_path / "bin",
        "mine",
        'read server; printf \'{"ServerURL":"%s","Username":"%s","Secret":"pw"}\' "$server" "$server"',
    )
    monkeypatch.setenv("PATH", environ["PATH"])
    config(tmp_path / "bin" / "c.json", credHelpers={"r.example": "mine"}, credsStore="mine", auths={"r.example": {}})
    credentials = FileCredentials(environ)
    assert found(credentials, "r.example") == ("r.example", "pw", "")
    assert found(credentials, "other.example") == ("other.example", "pw", "")
    assert found(credentials, "docker.io") == ("https://index.docker.io/v1/", "pw", "")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('printf \'{"Username":"<token>","Secret":"it"}\'', ("", "", "it")),
        ("echo 'credentials not found in native keychain'; exit 1", None),
        # An agent stays behind, with the pipe in its hands.
        ('sleep 30 & printf \'{"Username":"ann","Secret":"pw"}\'', ("ann", "pw", "")),
    ],
)
def test_what_a_helper_may_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: tuple[str, str, str] | None
) -> None:
    environ = helper(tmp_path / "bin", "mine", script)
    monkeypatch.setenv("PATH", environ["PATH"])
    config(tmp_path / "bin" / "c.json", credsStore="mine")
    assert found(FileCredentials(environ, helper_timeout=25.0), "r.example") == expected


@pytest.mark.parametrize(
    ("script", "seconds", "message"),
    [
        ("sleep 60", 1.0, "within"),
        ("exec 1>&-; sleep 60", 1.0, "within"),
        ("yes", 60.0, "more than"),
        ("echo s3cr3t; exit 3", 60.0, "exit code 3"),
        ("echo '[\"s3cr3t\"]'", 60.0, "no credential"),
    ],
)
def test_a_helper_that_misbehaves_is_stopped_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float, message: str
) -> None:
    environ = helper(tmp_path / "bin", "mine", script)
    monkeypatch.setenv("PATH", environ["PATH"])
    config(tmp_path / "bin" / "c.json", credsStore="mine")
    with pytest.raises(Unauthenticated, match=message) as caught:
        FileCredentials(environ, helper_timeout=seconds).get("r.example", "x")
    assert "s3cr3t" not in str(caught.value)


def test_a_helper_with_a_path_for_a_name_is_not_run(tmp_path: Path) -> None:
    config(tmp_path / ".docker" / "config.json", credsStore="../../evil")
    with pytest.raises(Unauthenticated, match="not a helper"):
        FileCredentials({"HOME": str(tmp_path)}).get("r.example", "x")


def test_a_missing_helper_does_not_stop_a_public_pull_but_is_told_when_it_matters(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    config(tmp_path / ".docker" / "config.json", credsStore="not-there")
    credentials = FileCredentials({"HOME": str(tmp_path)})
    guarded = Guarded(serve)
    assert tags(connect(credentials=credentials), guarded.registry) == ["a"]
    tokens = serve(lambda asked, wire: wire.answer(401))
    server = serve(lambda asked, wire: wire.answer(401, {"WWW-Authenticate": f'Bearer realm="{tokens.url}"'}))
    with pytest.raises(Unauthenticated, match="docker-credential-not-there: not installed"):
        tags(connect(credentials=credentials), server)
