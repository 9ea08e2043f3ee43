"""Pushing and copying: what is mounted, what moves, and in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.cache import RefConfig
from blobtee.compression import Compression
from blobtee.content import LocalStore
from blobtee.errors import BlobteeError, DigestMismatch, InvalidArgument, NotFound
from blobtee.oci import Platform
from blobtee.registry import Registry
from blobtee.testing import Answer, ImageSource, MemoryRegistry, image, index
from blobtee.testing.images import Files
from blobtee.transfer import copy, open_image, pull, push

FILES: list[Files] = [{"a": b"a" * 5000}, {"b": b"b" * 5000}]
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


@pytest.fixture
def other() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


def many(names: tuple[str, ...] = PLATFORMS) -> ImageSource:
    return index({name: image([FILES[0], {"arch": name.encode()}], platform=Platform.parse(name)) for name in names})


def test_lazy_layers_are_mounted_and_none_is_pulled(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    with pull(source.push(server, "team/app"), store, lazy=True, registry=client) as pulled:
        server.reset()
        report = push(pulled, f"{server.host}/team/deep/copy:2", store, registry=client)
        assert (report.name, report.count("mounted"), report.nbytes) == (f"{server.host}/team/deep/copy:2", 3, 0)
        assert {blob.source for blob in report.blobs} == {"team/app"}
        assert server.counters.sent["blob"] == server.counters.received["upload"] == 0
        assert server.entries()[-1].method == "PUT"
        assert pulled.ref is not None
        assert all(layer.is_lazy() for layer in pulled.ref.layer_chain())
    assert server.document("team/deep/copy", "2").raw == source.manifest


def test_lazy_layers_are_pulled_and_uploaded_where_mounting_is_refused(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    with pull(source.push(server, "team/app"), store, lazy=True, registry=client) as pulled:
        server.mounts = False
        report = push(pulled, f"{server.host}/team/copy", store, registry=client)
    assert report.count("uploaded") == 3
    assert server.blobs("team/copy") == set(source.blobs)


def test_a_second_push_moves_nothing(server: MemoryRegistry, client: Registry, store: LocalStore) -> None:
    with pull(image(FILES).push(server, "team/app"), store, registry=client) as pulled:
        push(pulled, f"{server.host}/copy", store, registry=client)
        report = push(pulled, f"{server.host}/copy", store, registry=client)
    assert (report.count("exists"), report.nbytes) == (3, 0)


def test_an_index_goes_with_all_its_images_once_all_are_here(
    server: MemoryRegistry, other: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = many()
    name = source.push(server, "team/app")
    pull(name, store, platform="linux/arm64", registry=client).close()
    with open_image(name, store, registry=client) as one:
        report = push(one, f"{other.host}/one:1", store, registry=client)
        assert report.descriptor.digest == one.manifest.digest
    for platform in PLATFORMS:
        pull(name, store, lazy=True, platform=platform, registry=client).close()
    with open_image(name, store, platform="linux/amd64", registry=client) as opened:
        report = push(opened, f"{other.host}/all:1", store, registry=client)
        assert report.descriptor.digest == source.descriptor.digest
        report = push(opened, f"{other.host}/single:1", store, registry=client, all_platforms=False)
        assert report.descriptor.digest == opened.manifest.digest
    assert other.blobs("all") == set(source.blobs)
    assert other.document("all", "1").raw == source.manifest
    puts = [entry.identifier for entry in other.entries("PUT", "manifest") if entry.repository == "all"]
    assert puts[-1] == "1"


def test_a_remote_is_pushed_with_the_config_that_fits_it(
    server: MemoryRegistry, other: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    with pull(image(FILES).push(server, "team/app"), store, lazy=True, registry=client) as pulled:
        remote = pulled.get_remote(config=RefConfig(compression=Compression("gzip")))
        report = push(remote, f"{other.host}/with:1", store, registry=client, config=pulled.config)
        assert other.blob(pulled.manifest.config.digest).read() == pulled.config.raw
        bare = push(remote, f"{other.host}/bare:1", store, registry=client)
        with pytest.raises(InvalidArgument, match="diff ids"):
            push(type(remote)(remote.descriptors[:1], remote.provider), f"{other.host}/x", store, config=pulled.config)
    assert report.count("uploaded") == 3
    with pull(f"{other.host}/bare@{bare.descriptor.digest}", store, registry=client) as back, back.open("b") as file:
        assert file.read() == b"b" * 5000


def test_a_digest_in_the_destination_must_be_the_image_s(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    with pull(source.push(server, "team/app"), store, registry=client) as pulled:
        with pytest.raises(InvalidArgument, match="leave the digest away"):
            push(pulled, f"{server.host}/copy@sha256:{'0' * 64}", store, registry=client)
        report = push(pulled, f"{server.host}/copy@{source.descriptor.digest}", store, registry=client)
    assert report.name.endswith(f"/copy@{source.descriptor.digest}")


def test_foreign_layers_stay_where_they_are(server: MemoryRegistry, client: Registry) -> None:
    source = image(FILES, docker=True)
    manifest = json.loads(source.manifest)
    manifest["layers"][0] |= {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "urls": ["https://elsewhere.example/layer"],
    }
    source.push(server, "team/app")
    server.add_document("team/app", json.dumps(manifest).encode(), source.descriptor.media_type, "foreign")
    server.remove_blob(manifest["layers"][0]["digest"])
    report = copy(f"{server.host}/team/app:foreign", f"{server.host}/copy:1", registry=client)
    assert (report.count("skipped"), report.count("mounted")) == (1, 2)


def test_within_a_registry_a_copy_moves_documents_alone(server: MemoryRegistry, client: Registry) -> None:
    source = many()
    report = copy(source.push(server, "team/app"), f"{server.host}/team/copy:1", registry=client)
    assert report.count("mounted") == len(source.blobs)
    assert server.counters.sent["blob"] == server.counters.received["upload"] == server.counters.sent["config"] == 0
    assert server.document("team/copy", "1").digest == source.descriptor.digest


def test_between_registries_a_copy_streams_and_takes_what_the_store_has_from_there(
    server: MemoryRegistry, other: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    pull(name, store, lazy=True, registry=client).close()
    with open_image(name, store, registry=client) as opened, opened.open("b") as file:
        file.read()
    server.reset()
    report = copy(name, f"{other.host}/copy:1", store=store, registry=client)
    assert report.count("uploaded") == 3
    assert server.counters.sent["blob"] == len(source.layers[0].data)
    assert other.blobs("copy") == set(source.blobs)


def test_one_platform_of_an_index_is_copied_alone(server: MemoryRegistry, client: Registry) -> None:
    report = copy(many().push(server, "team/app"), f"{server.host}/one:1", platform="linux/arm64", registry=client)
    assert server.document("one", "1").digest == report.descriptor.digest
    assert len(report.blobs) == 3
    with pytest.raises(NotFound, match="linux/s390x"):
        copy(f"{server.host}/team/app", f"{server.host}/x", platform="linux/s390x", registry=client)


@pytest.mark.parametrize("compression", [None, Compression("zstd")])
def test_an_image_that_stands_alone_is_not_copied_as_one_for_another_platform(
    server: MemoryRegistry, client: Registry, compression: Compression | None
) -> None:
    source = image(FILES, platform=Platform.parse("linux/arm64"))
    name, goal = source.push(server, "one"), f"{server.host}/two:1"
    with pytest.raises(NotFound, match="no image for linux/s390x; there is: linux/arm64"):
        copy(name, goal, platform="linux/s390x", compression=compression, registry=client)
    assert server.tags("two") == []
    copy(name, goal, platform="linux/arm64", compression=compression, registry=client)
    assert server.tags("two") == ["1"]


def test_an_index_in_an_index_is_followed_but_not_for_ever(server: MemoryRegistry, client: Registry) -> None:
    source = many()
    for _ in range(3):
        source = index({"linux/amd64": source})
    report = copy(source.push(server, "deep"), f"{server.host}/copy:1", registry=client)
    assert report.count("mounted") == 7
    with pytest.raises(BlobteeError, match="deep"):
        copy(index({"linux/amd64": index({"linux/amd64": source})}).push(server, "deeper"), f"{server.host}/x")


def test_a_source_that_lies_leaves_no_name_at_the_destination(
    server: MemoryRegistry, other: MemoryRegistry, client: Registry, tmp_path: Path
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    server.fault(
        lambda request: (
            Answer(body=b"\0" * len(source.layers[0].data))
            if request.identifier == source.layers[0].descriptor.digest and request.method == "GET"
            else None
        )
    )
    for destination in (f"oci:{tmp_path}/layout", f"oci-archive:{tmp_path}/a.tar", f"docker-archive:{tmp_path}/d.tar"):
        with pytest.raises((DigestMismatch, BlobteeError)):
            copy(name, destination, registry=client)
    assert not (tmp_path / "layout" / "index.json").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name != "layout"] == []
    assert [path for path in (tmp_path / "layout").rglob("*") if path.is_file() and path.name.startswith(".")] == []
    with pytest.raises(BlobteeError):
        copy(name, f"{other.host}/copy:1", registry=client)
    assert other.tags("copy") == []
    assert source.layers[0].descriptor.digest not in other.blobs("copy")
