"""Pulling: what moves, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blobtee import tasks
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    LazyUnavailable,
    NeedsRemoteProvider,
    NotFound,
    PermissionDenied,
    UnsupportedMediaType,
)
from blobtee.oci import Compressed, Descriptor
from blobtee.registry import Registry
from blobtee.tee.map import CHUNK
from blobtee.testing import Answer, Generated, MemoryRegistry, Request, image, index, layer
from blobtee.testing.images import Files
from blobtee.transfer import open_image, pull, verify

FILES: list[Files] = [
    {"etc": None, "etc/name": b"base" * 1000},
    {"etc/name": b"top", "usr/big": bytes(range(256)) * 4000},
]


def digests(store: LocalStore) -> set[str]:
    return {info.digest for info in store.walk()}


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", list(Compressed))
def test_a_lazy_pull_moves_documents_and_a_read_moves_the_layer_that_is_read(
    server: MemoryRegistry, client: Registry, store: LocalStore, docker: bool, compression: Compressed
) -> None:
    source = image(FILES, docker=docker, compression=compression)
    name = source.push(server, "team/app", "v1")
    with pull(name, store, lazy=True, registry=client) as pulled:
        assert server.counters.sent["blob"] == 0
        assert server.counters.sent["manifest"] + server.counters.sent["config"] == len(source.manifest) + len(
            source.config
        )
        assert [each.is_lazy() for each in pulled.ref.layer_chain()] == [True, True] if pulled.ref else False
        with pulled.open("/etc/name") as file:
            assert file.read() == b"top"
        assert server.counters.sent["blob"] == len(source.layers[1].data)
        assert digests(store) == {
            source.descriptor.digest,
            pulled.manifest.config.digest,
            source.layers[1].descriptor.digest,
        }


def test_a_whole_pull_brings_everything_and_a_second_one_nothing(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    with pull(name, store, registry=client) as pulled:
        assert digests(store) == {source.descriptor.digest, *source.blobs}
        assert store.layout.names()[name].digest == source.descriptor.digest
        assert pulled.name == name
    server.reset()
    pull(name, store, registry=client).close()
    assert set(server.counters.requests) == {("HEAD", "manifest")}


def test_an_image_that_is_new_is_opened_in_two_requests_and_one_that_is_known_in_one(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    name = image(FILES).push(server, "team/app")
    for requests in ({("GET", "manifest"): 1, ("GET", "config"): 1}, {("HEAD", "manifest"): 1}):
        server.reset()
        pull(name, store, lazy=True, registry=client).close()
        assert server.counters.requests == requests
    image([{"other": b"by now"}]).push(server, "team/app")
    with pull(name, store, lazy=True, registry=client) as pulled:
        assert pulled.descriptor.digest == server.document("team/app", "latest").digest


def test_labels_tie_documents_to_what_they_name_and_blobs_to_where_they_came_from(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    both = index({name: image([{"arch": name.encode()}]) for name in ("linux/amd64", "linux/arm64")})
    name = both.push(server, "team/app")
    both.push(server, "team/other")
    with pull(name, store, platform="linux/arm64", registry=client) as pulled:
        manifest, config, top = (
            pulled.descriptor.digest,
            pulled.manifest.config.digest,
            pulled.manifest.layers[0].digest,
        )
    source = f"containerd.io/distribution.source.{server.host}"
    members = json.loads(both.manifest)["manifests"]
    assert store.info(both.descriptor.digest).labels == {
        "containerd.io/gc.ref.content.m.0": members[0]["digest"],
        "containerd.io/gc.ref.content.m.1": manifest,
        source: "team/app",
    }
    assert store.info(manifest).labels == {
        "containerd.io/gc.ref.content.config": config,
        "containerd.io/gc.ref.content.l.0": top,
        source: "team/app",
    }
    assert store.info(config).labels == {source: "team/app"}
    assert store.info(top).labels[source] == "team/app"
    pull(f"{server.host}/team/other", store, platform="linux/arm64", registry=client).close()
    assert store.info(manifest).labels[source] == "team/app,team/other"


def test_the_platform_decides_and_one_that_is_not_there_is_not_found(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    both = index({name: image([{"arch": name.encode()}]) for name in ("linux/amd64", "linux/riscv64")})
    name = both.push(server, "team/app")
    with pull(name, store, platform="linux/riscv64", registry=client) as pulled:
        assert str(pulled.platform) == "linux/riscv64"
        with pulled.open("arch") as file:
            assert file.read() == b"linux/riscv64"
    with pytest.raises(NotFound, match="linux/amd64, linux/riscv64"):
        pull(name, store, platform="linux/s390x", registry=client)
    with open_image(name, store, registry=client) as only_one:
        assert str(only_one.platform) == "linux/riscv64"
    with pytest.raises(NotFound, match="not in the store for linux/amd64; there is: linux/riscv64"):
        open_image(name, store, platform="linux/amd64", registry=client)
    single = image([{"f": b""}]).push(server, "team/single")
    with pytest.raises(NotFound, match="no image for linux/s390x"):
        pull(single, store, platform="linux/s390x", registry=client)


def test_an_opened_image_brings_its_lazy_layers_from_where_it_came(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    pull(name, store, lazy=True, registry=client).close()
    with open_image(name, store, registry=client) as opened, opened.open("usr/big") as file:
        assert file.read() == bytes(range(256)) * 4000
    with pytest.raises(NotFound, match="pull it first"):
        open_image("nothing/like:it", store)


def test_layers_come_from_another_repository_of_the_labels_when_the_first_has_lost_them(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    pull(source.push(server, "team/one"), store, lazy=True, registry=client).close()
    name = source.push(server, "team/two")
    pull(name, store, lazy=True, registry=client).close()
    for blob in server.blobs("team/two"):
        server._linked["team/two"].discard(blob)
    with open_image(name, store, registry=client) as opened:
        opened.get_remote().unlazy()
    gets = server.entries("GET", "blob")
    assert {entry.repository for entry in gets if entry.status == 200} == {"team/one"}


def test_a_layer_that_nobody_has_any_more_is_lazily_unavailable(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    with pull(name, store, lazy=True, registry=client) as pulled:
        server.remove_blob(source.layers[1].descriptor.digest)
        with pytest.raises(LazyUnavailable, match=source.layers[1].descriptor.digest), pulled.open("etc/name"):
            pass


def test_an_image_without_layers_is_an_image(server: MemoryRegistry, client: Registry, store: LocalStore) -> None:
    with pull(image([]).push(server, "empty"), store, registry=client) as pulled:
        assert pulled.ref is None
        assert list(pulled.walk()) == []
        remote = pulled.get_remote(create_if_needed=True)
        assert remote.descriptors == ()
        remote.unlazy()
        filling = pulled.fill()
        filling.wait()


def test_a_memory_store_takes_images_but_knows_no_names(server: MemoryRegistry, client: Registry) -> None:
    name = image(FILES).push(server, "team/app")
    with MemoryStore() as memory:
        with pull(name, memory, registry=client) as pulled, pulled.open("etc/name") as file:
            assert file.read() == b"top"
        with pytest.raises(InvalidArgument, match="no names"):
            open_image(name, memory)


def changed(**members: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {**document, **members}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (changed(layers=[]), InvalidDocument),
        (
            lambda m: {**m, "config": {**m["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            UnsupportedMediaType,
        ),
        (
            lambda m: {**m, "layers": [{**each, "mediaType": "text/plain"} for each in m["layers"]]},
            UnsupportedMediaType,
        ),
        (changed(schemaVersion=1), UnsupportedMediaType),
        (changed(manifests=[]), InvalidDocument),
        (changed(layers=7), InvalidDocument),
    ],
)
def test_documents_that_break_the_rules_are_refused_before_any_layer_moves(
    server: MemoryRegistry,
    client: Registry,
    store: LocalStore,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    error: type[BlobteeError],
) -> None:
    source = image(FILES)
    source.push(server, "team/app")
    raw = json.dumps(change(json.loads(source.manifest))).encode()

    @server.fault
    def lie(request: Request) -> Answer | None:
        if request.kind != "manifest":
            return None
        headers = {"Content-Type": source.descriptor.media_type, "Content-Length": str(len(raw))}
        return Answer(200, headers, raw)

    with pytest.raises(error):
        pull(f"{server.host}/team/app", store, registry=client)
    assert server.counters.sent["blob"] == 0
    assert store.layout.names() == {}


LIES: dict[str, Answer] = {
    "other bytes": Answer(body=b"\0" * 4000),
    "too short": Answer(body=b"x" * 100),
    "too long": Answer(headers={"Content-Length": None, "Transfer-Encoding": None}, body=b"x" * 9000),
    "an error": Answer(500, body=b"oops"),
    "an error page of 10 GB": Answer(403, body=Generated(10 << 30)),
    "not there": Answer(404),
    "forbidden": Answer(403),
    "an endless redirect": Answer(307, {"Location": "/v2/team/app/blobs/again"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_registry_that_lies_about_a_layer_gets_an_error_and_the_store_stays_clean(
    server: MemoryRegistry, client: Registry, store: LocalStore, lie: str
) -> None:
    source = image([{"f": bytes(range(256)) * 10}], compression=Compressed.NONE)
    name = source.push(server, "team/app")
    server.fault(lambda request: LIES[lie] if request.kind == "blob" else None)
    with pytest.raises(BlobteeError):
        pull(name, store, registry=client)
    assert source.layers[0].descriptor.digest not in digests(store)
    assert store.layout.names() == {}
    server.faults.clear()
    with pull(name, store, registry=client) as pulled, pulled.open("f") as file:
        assert file.read() == bytes(range(256)) * 10


def test_a_registry_that_ignores_ranges_after_a_break_costs_bytes_but_never_wrong_ones(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image([layer({"f": Generated(3_000_000).read()}, compression=Compressed.NONE)])
    name = source.push(server, "team/app")
    answers = [Answer(cut=2_000_000), Answer(ignore_range=True)]
    server.fault(lambda request: answers.pop(0) if request.kind == "blob" and answers else None)
    pull(name, store, registry=client).close()
    assert answers == []
    assert verify(store).good
    assert source.layers[0].descriptor.digest in digests(store)


def test_a_token_that_expires_in_the_middle_of_a_layer_is_renewed(client: Registry, store: LocalStore) -> None:
    source = image([layer({"f": Generated(3_000_000).read()}, compression=Compressed.NONE)])
    with MemoryRegistry(users={}, anonymous_pull=True) as server:
        name = source.push(server, "team/app")
        ranges: list[str] = []

        @server.fault
        def expire(request: Request) -> Answer | None:
            if request.kind != "blob":
                return None
            ranges.append(request.headers.get("range", ""))
            if len(ranges) == 1:
                return Answer(cut=1_000_000)
            if len(ranges) == 2:
                server.expire_tokens()
            return None

        pull(name, store, registry=client).close()
        assert [entry.status for entry in server.entries("GET", "blob")] == [200, 401, 206]
        assert ranges[1] == ranges[2] != ""
    assert verify(store).good


def test_a_lying_config_is_refused(server: MemoryRegistry, client: Registry, store: LocalStore) -> None:
    name = image(FILES).push(server, "team/app")
    server.fault(lambda request: Answer(body=b"{}") if request.kind == "config" else None)
    with pytest.raises(BlobteeError):
        pull(name, store, lazy=True, registry=client)
    assert digests(store) == set()


def chunks_here(store: LocalStore) -> int:
    """Chunks that are here of a blob of 3,000,000 bytes, as its map on the disk says (`tee.map`)."""
    chunks = -(-3_000_000 // CHUNK)
    maps = (store.root / "partial").glob("*/*/map")
    return max((path.read_bytes()[1024 : 1024 + chunks].count(1) for path in maps), default=0)


def test_a_pull_that_is_cancelled_ends_at_once_and_the_next_one_goes_on(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image([layer({"f": bytes(3_000_000)}, compression=Compressed.NONE)])
    name = source.push(server, "team/app")
    stalled = threading.Event()

    @server.fault
    def stall(request: Request) -> Answer | None:
        if request.kind != "blob":
            return None
        stalled.set()
        return Answer(cut=(1 << 20) + 100, stall=True)

    cancellation = tasks.Cancellation()
    errors: list[BaseException] = []

    def work() -> None:
        with tasks.scope(cancellation):
            try:
                pull(name, store, registry=client)
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert stalled.wait(10)
    while chunks_here(store) < (1 << 20) // CHUNK:
        assert thread.is_alive()
    cancellation.cancel("enough")
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(errors[0], Cancelled)
    server.faults.clear()
    server.reset()
    pull(name, store, registry=client).close()
    assert server.counters.sent["blob"] <= len(source.layers[0].data) - (1 << 20)


def test_sixty_four_threads_want_the_same_lazy_layer_and_it_moves_once(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image([layer({"f": bytes(2_000_000)}, compression=Compressed.NONE)])
    with pull(source.push(server, "team/app"), store, lazy=True, registry=client) as pulled:
        remote = pulled.get_remote()
        barrier = threading.Barrier(64)

        def read(offset: int) -> bytes:
            barrier.wait()
            with remote.provider.reader_at(remote.descriptors[0]) as reader:
                return reader.read_at(offset, 512)

        with tasks.Group() as group:
            running = [group.spawn(read, offset) for offset in range(64)]
        assert [task.result() for task in running] == [source.layers[0].data[n : n + 512] for n in range(64)]
    assert server.counters.requests["GET", "blob"] == 1
    assert server.counters.sent["blob"] == len(source.layers[0].data)


def test_only_a_registry_s_images_can_be_lazy(store: LocalStore) -> None:
    with pytest.raises(InvalidArgument, match="lazily"):
        pull("oci:/nowhere", store, lazy=True)


def test_an_image_of_unknown_origin_that_lost_a_layer_says_who_is_needed(store: LocalStore, tmp_path: object) -> None:
    source = image(FILES)
    root = source.write_layout(f"{tmp_path}/layout", "v1")
    pull(f"oci:{root}", store).close()
    store.delete(source.layers[0].descriptor.digest)
    with pytest.raises(NeedsRemoteProvider, match=source.layers[0].descriptor.digest):
        open_image("v1", store)


def test_a_document_that_rotted_in_the_store_is_never_believed(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    name = image(FILES).push(server, "team/app")
    with pull(name, store, lazy=True, registry=client) as pulled:
        digest = pulled.descriptor.digest
    path = store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    with pytest.raises(BlobteeError, match="damaged"):
        open_image(name, store)


def test_bytes_that_hash_to_something_else_name_both_digests(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image([{"f": b"1"}], compression=Compressed.NONE)
    name = source.push(server, "team/app")
    desc: Descriptor = source.layers[0].descriptor
    server.add_blob("team/app", b"\1" * desc.size, desc.digest)
    with pytest.raises(DigestMismatch, match=desc.digest):
        pull(name, store, registry=client)


def test_an_image_of_a_store_that_can_only_be_read_is_read(server: MemoryRegistry, client: Registry) -> None:
    name = image([{"a": b"1"}, {"b": b"2"}]).push(server, "team/app")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        with LocalStore(root) as store:
            pull(name, store, registry=client).close()
        for path in (*root.rglob("*"), root):
            path.chmod(0o555 if path.is_dir() else 0o444)
        Path(folder).chmod(0o755)
        before = os.geteuid()
        os.seteuid(65534 if before == 0 else before)
        try:
            with LocalStore(root) as store, open_image(name, store, registry=client) as found:
                assert store.read_only
                with found.open("/a") as file:
                    assert file.read() == b"1"
            with LocalStore(root) as store, pytest.raises(PermissionDenied):
                pull(name, store, registry=client, name="other")
        finally:
            os.seteuid(before)
            for path in (root, *root.rglob("*")):
                path.chmod(0o755)
