"""The test registry itself: what others trust when they count bytes."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from blobtee.oci import Compressed, Digest
from blobtee.testing import Answer, File, Generated, MemoryRegistry, Request, image, index, layer

DATA = bytes(range(256)) * 5000


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


class Client:
    def __init__(self, registry: MemoryRegistry, context: ssl.SSLContext | None = None) -> None:
        host, port = registry.host.split(":")
        self.connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
            if context
            else http.client.HTTPConnection(host, int(port), timeout=10)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def __call__(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        self.connection.request(method, target, body, headers or {})
        response = self.connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@pytest.fixture
def ask(registry: MemoryRegistry) -> Iterator[Client]:
    with Client(registry) as client:
        yield client


def test_a_blob_comes_whole_and_by_range_over_one_connection_and_is_counted(
    registry: MemoryRegistry, ask: Client
) -> None:
    digest = registry.add_blob("a/b", DATA)
    assert ask("GET", f"/v2/a/b/blobs/{digest}")[::2] == (200, DATA)
    status, headers, body = ask("GET", f"/v2/a/b/blobs/{digest}", headers={"Range": "bytes=10-19"})
    assert (status, body) == (206, DATA[10:20])
    assert headers["content-range"] == f"bytes 10-19/{len(DATA)}"
    assert ask("GET", f"/v2/a/b/blobs/{digest}", headers={"Range": "bytes=-5"})[2] == DATA[-5:]
    assert ask("GET", f"/v2/a/b/blobs/{digest}", headers={"Range": f"bytes={len(DATA)}-"})[0] == 416
    status, headers, body = ask("HEAD", f"/v2/a/b/blobs/{digest}")
    assert (status, headers["content-length"], body) == (200, str(len(DATA)), b"")
    assert registry.counters.sent["blob"] == len(DATA) + 15
    assert registry.counters.requests == {("GET", "blob"): 4, ("HEAD", "blob"): 1}
    assert (registry.connections_opened, registry.connections_open) == (1, 1)
    assert [entry.range for entry in registry.entries("GET")][1] == "bytes=10-19"


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_blob_uploaded_in_chunks_can_be_asked_for_its_state_and_read_back(tmp_path: Path, in_memory: bool) -> None:
    digest = Digest.of(DATA)
    with MemoryRegistry(root=None if in_memory else tmp_path) as registry, Client(registry) as ask:
        status, headers, _ = ask("POST", "/v2/a/blobs/uploads/")
        place = headers["location"]
        assert status == 202
        assert ask("PATCH", place, DATA[:1000], {"Content-Range": "0-999"})[0] == 202
        assert ask("GET", place)[1]["range"] == "0-999"
        assert ask("PATCH", place, DATA[5:10], {"Content-Range": "5-9"})[0] == 416
        assert ask("PUT", f"{place}?digest={digest}", DATA[1000:])[0] == 201
        assert ask("GET", f"/v2/a/blobs/{digest}")[2] == DATA
        assert ask("GET", place)[0] == 404
        assert registry.counters.received["upload"] == len(DATA) + 5


def test_a_blob_uploaded_at_once_or_chunk_coded_is_checked_against_its_digest(
    registry: MemoryRegistry, ask: Client
) -> None:
    digest = Digest.of(DATA)
    assert ask("POST", f"/v2/a/blobs/uploads/?digest={digest}", b"other")[0] == 400
    assert not registry.blobs("a")
    ask.connection.request(
        "POST", f"/v2/a/blobs/uploads/?digest={digest}", iter([DATA[:7], DATA[7:]]), encode_chunked=True
    )
    response = ask.connection.getresponse()
    response.read()
    assert response.status == 201
    assert registry.blob(digest).read() == DATA


def test_a_blob_is_mounted_only_from_a_repository_that_has_it(registry: MemoryRegistry, ask: Client) -> None:
    digest = registry.add_blob("one", DATA)
    assert ask("POST", f"/v2/two/blobs/uploads/?mount={digest}&from=nowhere")[0] == 202
    assert ask("POST", f"/v2/two/blobs/uploads/?mount={digest}&from=one")[0] == 201
    assert registry.blobs("two") == {digest}
    registry.mounts = False
    assert ask("POST", f"/v2/three/blobs/uploads/?mount={digest}&from=one")[0] == 202


def test_manifests_need_their_blobs_and_are_found_by_tag_and_digest(registry: MemoryRegistry, ask: Client) -> None:
    source = image([{"hello": b"world"}])
    kind = {"Content-Type": source.descriptor.media_type}
    assert ask("PUT", "/v2/a/manifests/v1", source.manifest, kind)[0] == 404
    for data in source.blobs.values():
        registry.add_blob("a", data)
    assert ask("PUT", "/v2/a/manifests/v1", source.manifest, kind)[0] == 201
    assert ask("PUT", f"/v2/a/manifests/{Digest.of(b'x')}", source.manifest, kind)[0] == 400
    for identifier in ("v1", source.descriptor.digest):
        status, headers, body = ask("GET", f"/v2/a/manifests/{identifier}")
        assert (status, headers["content-type"], body) == (200, source.descriptor.media_type, source.manifest)
    assert ask("HEAD", "/v2/a/manifests/v2")[0] == 404
    config = json.loads(source.manifest)["config"]["digest"]
    ask("GET", f"/v2/a/blobs/{config}")
    assert registry.counters.requests["GET", "config"] == 1


def test_tags_come_in_pages_that_link_to_the_next(registry: MemoryRegistry, ask: Client) -> None:
    source = image([{"f": b""}])
    for number in range(5):
        source.push(registry, "a", f"t{number}")
    registry.page_size = 2
    target, found = "/v2/a/tags/list?n=100", []
    while target:
        _, headers, body = ask("GET", target)
        found += json.loads(body)["tags"]
        target = headers.get("link", "<>").split(">")[0][1:]
    assert found == ["t0", "t1", "t2", "t3", "t4"]
    assert registry.counters.requests["GET", "tags"] == 3


def test_referrers_are_listed_and_filtered_until_the_api_is_switched_off(registry: MemoryRegistry, ask: Client) -> None:
    source = image([{"f": b""}])
    source.push(registry, "a")
    artifact = json.loads(source.manifest) | {
        "subject": source.descriptor.to_json(),
        "artifactType": "application/x-index",
        "annotations": {"k": "v"},
    }
    digest = registry.add_document("a", json.dumps(artifact).encode(), source.descriptor.media_type)
    target = f"/v2/a/referrers/{source.descriptor.digest}"
    listed = json.loads(ask("GET", target)[2])["manifests"]
    assert [(entry["digest"], entry["artifactType"], entry["annotations"]) for entry in listed] == [
        (digest, "application/x-index", {"k": "v"})
    ]
    status, headers, body = ask("GET", f"{target}?artifactType=other")
    assert (status, headers["oci-filters-applied"], json.loads(body)["manifests"]) == (200, "artifactType", [])
    registry.referrers = False
    assert ask("GET", target)[0] == 404


def test_bearer_tokens_are_asked_for_scoped_and_expire() -> None:
    with MemoryRegistry(users={"me": "secret"}, anonymous_pull=True) as registry, Client(registry) as ask:
        digest = registry.add_blob("a", DATA)
        status, headers, _ = ask("GET", f"/v2/a/blobs/{digest}")
        assert status == 401
        assert headers["www-authenticate"].endswith('scope="repository:a:pull"')
        token = json.loads(ask("GET", "/token?scope=repository:a:pull,push")[2])["token"]
        bearer = {"Authorization": f"Bearer {token}"}
        assert ask("GET", f"/v2/a/blobs/{digest}", headers=bearer)[0] == 200
        assert ask("POST", "/v2/a/blobs/uploads/", headers=bearer)[0] == 401
        assert ask("GET", f"/v2/b/blobs/{digest}", headers=bearer)[0] == 401
        basic = {"Authorization": "Basic bWU6c2VjcmV0"}
        token = json.loads(ask("GET", "/token?scope=repository:a:pull,push", headers=basic)[2])["token"]
        assert ask("POST", "/v2/a/blobs/uploads/", headers={"Authorization": f"Bearer {token}"})[0] == 202
        assert ask("GET", "/token", headers={"Authorization": "Basic bWU6d3Jvbmc="})[0] == 401
        registry.expire_tokens()
        assert ask("GET", f"/v2/a/blobs/{digest}", headers=bearer)[0] == 401


def test_basic_credentials_are_checked() -> None:
    with MemoryRegistry(users={"me": "secret"}, auth="basic") as registry, Client(registry) as ask:
        assert ask("GET", "/v2/")[1]["www-authenticate"].startswith("Basic ")
        assert ask("GET", "/v2/", headers={"Authorization": "Basic bWU6c2VjcmV0"})[0] == 200
        assert ask("GET", "/v2/", headers={"Authorization": "Basic bWU6d3Jvbmc="})[0] == 401


def test_tls_serves_files_and_generated_bodies(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    (tmp_path / "blob").write_bytes(DATA)
    with MemoryRegistry(tls=server) as registry, Client(registry, client) as ask:
        on_disk = registry.add_blob("a", File(tmp_path / "blob"))
        made = registry.add_blob("a", Generated(3_000_000, seed=7))
        assert ask("GET", f"/v2/a/blobs/{on_disk}")[2] == DATA
        body = ask("GET", f"/v2/a/blobs/{made}")[2]
        assert (len(body), f"sha256:{hashlib.sha256(body).hexdigest()}") == (3_000_000, made)
        part = ask("GET", f"/v2/a/blobs/{made}", headers={"Range": "bytes=1048570-1048580"})[2]
        assert part == body[1048570:1048581]


def test_faults_answer_in_the_registry_s_place(registry: MemoryRegistry, ask: Client) -> None:
    digest = registry.add_blob("a", DATA)
    target = f"/v2/a/blobs/{digest}"
    answers: list[Answer | None] = []
    registry.fault(lambda request: answers.pop(0) if answers and request.kind == "blob" else None)

    answers.append(Answer(503, {"Retry-After": "1"}, b"busy"))
    status, headers, body = ask("GET", target)
    assert (status, headers["retry-after"], body) == (503, "1", b"busy")
    answers.append(Answer(ignore_range=True))
    assert ask("GET", target, headers={"Range": "bytes=1-2"})[::2] == (200, DATA)
    answers.append(Answer(headers={"Content-Range": "bytes 0-1/2", "ETag": None}))
    _, headers, body = ask("GET", target, headers={"Range": "bytes=5-6"})
    assert (headers["content-range"], body, "etag" in headers) == ("bytes 0-1/2", DATA[5:7], False)
    answers.append(Answer(cut=1000))
    registry.reset()
    with pytest.raises(http.client.IncompleteRead) as broken:
        ask("GET", target)
    assert len(broken.value.partial) == 1000
    assert registry.counters.sent["blob"] == 1000
    ask.connection.close()
    assert ask("GET", target)[2] == DATA


def test_a_hung_up_upload_keeps_what_had_come(registry: MemoryRegistry, ask: Client) -> None:
    place = ask("POST", "/v2/a/blobs/uploads/")[1]["location"]
    registry.fault(lambda request: Answer(hang_up=500) if request.method == "PATCH" else None)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask("PATCH", place, DATA)
    ask.connection.close()
    assert ask("GET", place)[1]["range"] == "0-499"


def test_a_stopped_registry_breaks_stalled_answers_off_and_comes_back_on_its_port(registry: MemoryRegistry) -> None:
    digest = registry.add_blob("a", DATA)

    def stall(request: Request) -> Answer | None:
        return Answer(cut=10, stall=True) if request.kind == "blob" else None

    registry.faults.append(stall)
    host = registry.host
    with socket.create_connection(tuple(host.split(":")), timeout=10) as connection:  # type: ignore[arg-type]
        connection.sendall(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with connection.makefile("rb") as stream:
            while stream.readline().strip():
                pass
            assert stream.read(10) == DATA[:10]
            registry.stop()
            assert stream.read() == b""
    registry.faults.clear()
    registry.start()
    assert registry.host == host
    with Client(registry) as ask:
        assert ask("GET", f"/v2/a/blobs/{digest}")[2] == DATA


def test_who_speaks_tls_to_a_plain_registry_is_refused_at_once(registry: MemoryRegistry) -> None:
    host, port = registry.host.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"\x16\x03\x01\x00\xc8" + bytes(200))  # without the end of a line, as by chance
        assert client.recv(1) == b""


def test_nonsense_from_a_client_ends_that_connection_alone(registry: MemoryRegistry, ask: Client) -> None:
    host, port = registry.host.split(":")
    for nonsense in (b"\x16\x03\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(nonsense)
            assert connection.recv(1) == b""
    assert ask("GET", "/v2/")[0] == 200


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", list(Compressed))
def test_an_image_is_the_same_bytes_each_time_and_consistent(docker: bool, compression: Compressed) -> None:
    files = {"etc": None, "etc/name": b"x" * 5000, "link": "etc/name"}
    one, two = (image([files, {"b": b"2"}], docker=docker, compression=compression) for _ in range(2))
    assert one == two
    config = json.loads(one.config)
    assert config["rootfs"]["diff_ids"] == [each.diff_id for each in one.layers]
    for digest, data in one.blobs.items():
        assert digest == Digest.of(data)


def test_an_index_is_pushed_with_all_that_it_names_and_written_as_a_layout(
    registry: MemoryRegistry, tmp_path: Path
) -> None:
    base = layer({"base": b"1"})
    both = index({name: image([base, {"arch": name.encode()}]) for name in ("linux/amd64", "linux/arm64")})
    assert both.push(registry, "team/app", "v1") == f"{registry.host}/team/app:v1"
    assert registry.document("team/app", "v1").digest == both.descriptor.digest
    assert len(registry.blobs("team/app")) == 5
    root = both.write_layout(tmp_path / "layout")
    assert len(list((root / "blobs/sha256").iterdir())) == 5 + 3
