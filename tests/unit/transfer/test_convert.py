"""Converting images on their way: what is fetched, what is kept, and what comes out."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blobtee.cache import CacheManager
from blobtee.cache.labels import TOC_DIGEST
from blobtee.compression import Compression, Type
from blobtee.content import LocalStore
from blobtee.errors import BlobteeError, DigestMismatch, InvalidArgument, NotFound, UnsupportedMediaType
from blobtee.oci import Compressed, Index, Manifest, Platform, mediatypes, parse_document
from blobtee.oci.documents import parse_config
from blobtee.registry import Registry
from blobtee.testing import Answer, ImageSource, Layer, MemoryRegistry, image, index, layer, tar
from blobtee.testing.images import Files
from blobtee.transfer import Report, convert, copy, open_image, places, pull, push

FILES: list[Files] = [{"a": b"a" * 5000}, {"b": b"b" * 5000}]
ZSTD = mediatypes.OCI_LAYER + "+zstd"
FOOTER = 51
"""Bytes at the end of a gzip layer that tell whether it is eStargz."""


def mixed() -> ImageSource:
    """A layer of each kind: gzip, zstd, plain."""
    kinds = (Compressed.GZIP, Compressed.ZSTD, Compressed.NONE)
    return image([layer({f"f{number}": b"x" * 3000}, compression=kind) for number, kind in enumerate(kinds)])


def result(server: MemoryRegistry, repository: str, tag: str = "latest") -> Manifest:
    document = parse_document(server.document(repository, tag).raw)
    assert isinstance(document, Manifest)
    return document


def fetched(server: MemoryRegistry, source: ImageSource) -> set[str]:
    """The layers that were asked for, each of them once: the few bytes of its end, which tell eStargz, come extra."""
    nbytes: Counter[str] = Counter()
    for entry in server.entries("GET", "blob"):
        nbytes[entry.identifier] += entry.sent
    sizes = {str(layer.descriptor.digest): layer.descriptor.size for layer in source.layers}
    found = nbytes.keys() & sizes.keys()
    assert all(sizes[digest] <= nbytes[digest] <= sizes[digest] + FOOTER for digest in found)
    return found


@pytest.mark.parametrize("kind", list(Type))
def test_layers_are_converted_and_the_image_reads_as_before(
    server: MemoryRegistry, client: Registry, store: LocalStore, kind: Type
) -> None:
    source = mixed()
    name = source.push(server, "team/app")
    report = convert(name, f"{server.host}/team/out:1", kind, store=store, registry=client)
    manifest = result(server, "team/out", "1")
    assert (report.name, report.descriptor.digest) == (f"{server.host}/team/out:1", manifest.digest)
    assert {desc.media_type for desc in manifest.layers} == {kind.media_type}
    assert all((TOC_DIGEST in desc.annotations) == (kind is Type.ESTARGZ) for desc in manifest.layers)
    with pull(report.name, store, registry=client) as pulled:
        for number, old in enumerate(source.layers):
            with pulled.open(f"f{number}") as file:
                assert file.read() == b"x" * 3000
            same = pulled.config.diff_ids[number] == old.diff_id
            assert same == (kind is not Type.ESTARGZ), "only eStargz puts something into the tar"


def test_only_what_is_packed_otherwise_is_fetched_and_once(server: MemoryRegistry, client: Registry) -> None:
    source = mixed()
    name = source.push(server, "team/app")
    server.reset()
    report = convert(name, f"{server.host}/team/out:1", "zstd", registry=client)
    gzip, zstd, plain = (each.descriptor.digest for each in source.layers)
    assert fetched(server, source) == {gzip, plain}
    how = {blob.descriptor.digest: blob.how for blob in report.blobs}
    assert how[zstd] == "mounted"
    assert sorted(how.values()) == ["mounted", "mounted", "uploaded", "uploaded"], "the config is as it was"


def test_an_image_that_needs_nothing_keeps_its_digest_and_moves_nothing(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES, docker=True)
    name = source.push(server, "team/app")
    server.reset()
    report = convert(name, f"{server.host}/team/out:1", "gzip", store=store, registry=client)
    assert report.descriptor.digest == source.descriptor.digest
    assert server.document("team/out", "1").raw == source.manifest
    assert report.count("mounted") == 3
    assert list(store.walk()) == []


def test_the_same_input_gives_the_same_digest_wherever_it_lies(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = mixed()
    name = source.push(server, "team/app")
    layout = source.write_layout(tmp_path / "layout")
    pull(name, store, registry=client).close()
    digests = {
        convert(start, f"oci:{tmp_path}/out{number}:x", "estargz", store=kept, registry=client).descriptor.digest
        for number, (start, kept) in enumerate([(name, None), (name, store), (f"oci:{layout}", None)])
    }
    assert len(digests) == 1


def test_force_packs_anew_what_is_of_the_type_already(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image([layer({"a": bytes(range(256)) * 400}, level=1)])
    name = source.push(server, "team/app")
    best = convert(name, f"{server.host}/best", Compression("gzip", force=True, level=9), store=store, registry=client)
    assert best.descriptor.digest != source.descriptor.digest
    assert result(server, "best").layers[0].size < len(source.layers[0].data)
    plain = convert(name, f"{server.host}/plain", Compression("gzip", level=9), store=store, registry=client)
    assert plain.descriptor.digest == source.descriptor.digest


def test_a_second_conversion_finds_the_layers_of_the_first(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = mixed()
    name = source.push(server, "team/app")
    first = convert(name, f"{server.host}/one", "zstd", store=store, registry=client)
    server.reset()
    second = convert(name, f"{server.host}/two", "zstd", store=store, registry=client)
    assert second.descriptor == first.descriptor
    assert fetched(server, source) == set()
    server.reset()
    convert(name, f"{server.host}/three", Compression("zstd", level=9), store=store, registry=client)
    assert len(fetched(server, source)) == 2, "another level is another conversion"


def test_what_the_store_has_is_converted_without_the_network(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    pull(name, store, registry=client).close()
    server.reset()
    convert(name, f"{server.host}/out", "zstd", store=store, registry=client)
    assert fetched(server, source) == set()


def test_a_lease_holds_what_is_made_until_it_is_pushed_and_no_longer(
    server: MemoryRegistry, client: Registry, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    leases = CacheManager(store).leases
    held: list[set[str]] = []

    def run(*arguments: Any) -> Report:
        held.append({digest for lease in leases.all() for _, digest in leases.resources(lease.id)})
        return places.run(*arguments)

    monkeypatch.setattr("blobtee.transfer.converting.run", run)
    convert(name, f"{server.host}/out", "zstd", store=store, registry=client)
    assert held == [{info.digest for info in store.walk()}]
    assert len(held[0]) == 2
    assert leases.all() == []


def indexed() -> ImageSource:
    names = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    return index({name: image([FILES[0], {"arch": name.encode()}], platform=Platform.parse(name)) for name in names})


def test_an_index_is_converted_with_all_its_images_and_shared_layers_once(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = indexed()
    name = source.push(server, "team/app")
    server.reset()
    report = convert(name, f"{server.host}/out:1", "zstd", store=store, registry=client)
    assert len(fetched(server, source)) == 4, "the one that all have, and one of each"
    document = parse_document(server.document("out", "1").raw)
    assert isinstance(document, Index)
    old = parse_document(source.manifest)
    assert isinstance(old, Index)
    assert [member.platform for member in document.manifests] == [member.platform for member in old.manifests]
    for member in document.manifests:
        manifest = result(server, "out", member.digest)
        assert member.size == len(manifest.raw)
        assert {desc.media_type for desc in manifest.layers} == {ZSTD}
    assert report.count("uploaded") >= 4
    alone = convert(name, f"{server.host}/one:1", "zstd", platform="linux/arm64", store=store, registry=client)
    assert alone.descriptor.digest == document.manifests[1].digest


def test_an_epoch_clamps_layers_and_config_and_the_same_again(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    new = layer(tar({"f": b"x"}, mtime=2_000_000_000))
    old = layer(tar({"g": b"x"}, mtime=1_000))
    source = image([old, new], config={"created": "2033-05-18T03:33:20Z"})
    name = source.push(server, "team/app")
    reports = [
        convert(name, f"{server.host}/out:{number}", "gzip", epoch=1_000_000_000, store=kept, registry=client)
        for number, kept in enumerate([store, None])
    ]
    assert reports[0].descriptor == reports[1].descriptor
    manifest = result(server, "out", "0")
    assert manifest.layers[0] == source.layers[0].descriptor, "all its times are early enough"
    with pull(reports[0].name, store, registry=client) as pulled:
        assert pulled.lookup("f").entry.mtime_ns == 1_000_000_000 * 10**9
        assert pulled.config.json["created"] == "2001-09-09T01:46:40Z"
        assert pulled.config.diff_ids[0] == old.diff_id
        assert pulled.config.diff_ids[1] != new.diff_id


def test_foreign_layers_and_what_is_no_layer_stay(server: MemoryRegistry, client: Registry) -> None:
    source = image([FILES[0], FILES[1]], docker=True)
    raw = json.loads(source.manifest)
    raw["layers"][0]["mediaType"] = mediatypes.DOCKER_LAYER_FOREIGN + ".gzip"
    raw["layers"][0]["urls"] = ["https://example.com/layer"]
    for digest, data in source.blobs.items():
        if digest != source.layers[0].descriptor.digest:
            server.add_blob("app", data)
    server.add_document("app", json.dumps(raw).encode(), mediatypes.DOCKER_MANIFEST, "latest")
    report = convert(f"{server.host}/app", f"{server.host}/out", "zstd", registry=client)
    first, second = result(server, "out").layers
    assert first.digest == source.layers[0].descriptor.digest
    assert (first.media_type, first.urls) == (
        mediatypes.OCI_LAYER_NONDISTRIBUTABLE + "+gzip",
        ("https://example.com/layer",),
    )
    assert second.media_type == ZSTD
    assert report.count("skipped") == 1


def test_an_artifact_alone_is_refused_before_anything_moves(server: MemoryRegistry, client: Registry) -> None:
    source = image(FILES)
    raw = json.loads(source.manifest)
    raw["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    server.add_document("app", json.dumps(raw).encode(), mediatypes.OCI_MANIFEST, "latest")
    with pytest.raises(UnsupportedMediaType, match="helm"):
        convert(f"{server.host}/app", f"{server.host}/out", "zstd", registry=client)
    assert server.entries("POST") == []


def test_an_attestation_that_vouched_for_the_old_image_is_dropped_and_reported(
    server: MemoryRegistry, client: Registry
) -> None:
    source = image(FILES)
    source.push(server, "app")
    statement = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": json.loads(source.manifest)["config"],
        "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": server.add_blob("app", b"{}"), "size": 2}],
    }
    raw = json.dumps(statement).encode()
    attestation = parse_document(raw)
    server.add_document("app", raw, mediatypes.OCI_MANIFEST)
    members = [
        {**source.descriptor.to_json(), "platform": Platform.current().to_json()},
        {
            **attestation.descriptor.to_json(),
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {
                "vnd.docker.reference.digest": source.descriptor.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            },
        },
    ]
    server.add_document(
        "app",
        json.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": members}).encode(),
        mediatypes.OCI_INDEX,
        "all",
    )
    same = convert(f"{server.host}/app:all", f"{server.host}/same:1", "gzip", registry=client)
    assert same.dropped == ()
    assert server.document("same", "1").raw == server.document("app", "all").raw
    report = convert(f"{server.host}/app:all", f"{server.host}/out:1", "zstd", registry=client)
    assert [desc.digest for desc in report.dropped] == [attestation.digest]
    document = parse_document(server.document("out", "1").raw)
    assert isinstance(document, Index)
    assert len(document.manifests) == 1


def wrong_diff_id() -> ImageSource:
    good = layer(FILES[0])
    return image([Layer(good.data, good.descriptor, layer(FILES[1]).diff_id), layer(FILES[1])])


def test_a_layer_that_lies_leaves_nothing_at_the_destination(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    name = wrong_diff_id().push(server, "team/app")
    for goal in (f"{server.host}/out:1", f"oci:{tmp_path}/out:1", f"oci-archive:{tmp_path}/out.tar"):
        with pytest.raises(DigestMismatch):
            convert(name, goal, "zstd", store=store, registry=client)
    with pytest.raises(NotFound):
        pull(f"{server.host}/out:1", store, registry=client)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("*.tar")) == list(tmp_path.glob(".*")) == []
    assert store.statuses() == []
    assert CacheManager(store).leases.all() == []


def test_a_failed_upload_leaves_no_name_and_the_next_attempt_converts_nothing(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    failing = [True]
    server.fault(lambda request: Answer(403) if failing and request.method == "PUT" else None)
    with pytest.raises(BlobteeError):
        convert(name, f"{server.host}/out:1", "zstd", store=store, registry=client)
    assert server.tags("out") == []
    failing.clear()
    server.reset()
    convert(name, f"{server.host}/out:1", "zstd", store=store, registry=client)
    assert fetched(server, source) == set()


def test_a_docker_archive_takes_only_what_it_can_hold(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    with pytest.raises(InvalidArgument, match="uncompressed"):
        convert(name, f"docker-archive:{tmp_path}/a.tar", "zstd", registry=client)
    with pull(name, store, registry=client) as pulled, pytest.raises(InvalidArgument, match="uncompressed"):
        push(pulled, f"docker-archive:{tmp_path}/a.tar", store, compression=Compression("gzip"))
    assert not (tmp_path / "a.tar").exists()
    convert(name, f"docker-archive:{tmp_path}/a.tar", "uncompressed", registry=client)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert "manifest.json" in archive.getnames()


@pytest.mark.parametrize("epoch", [-1, 2**60, 1.5, True])
def test_an_epoch_that_is_none_is_refused(epoch: int) -> None:
    with pytest.raises(InvalidArgument, match="epoch"):
        convert("a/b:c", "oci:x", "zstd", epoch=epoch)


def test_a_store_that_is_only_read_is_read_and_left_alone(
    server: MemoryRegistry, client: Registry, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    pull(name, store, registry=client).close()
    before = {info.digest for info in store.walk()}
    monkeypatch.setattr(store, "read_only", True)
    server.reset()
    convert(name, f"{server.host}/out", "zstd", store=store, registry=client)
    assert fetched(server, source) == set()
    assert {info.digest for info in store.walk()} == before


def test_copy_with_a_compression_converts(server: MemoryRegistry, client: Registry) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    report = copy(name, f"{server.host}/out", compression=Compression("zstd"), registry=client)
    assert {desc.media_type for desc in result(server, "out").layers} == {ZSTD}
    assert report.count("uploaded") == 2


def test_push_with_a_compression_makes_variants_and_uses_them_again(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = mixed()
    with pull(source.push(server, "team/app"), store, lazy=True, registry=client) as pulled:
        server.reset()
        first = push(pulled, f"{server.host}/one:1", store, registry=client, compression=Compression("zstd"))
        assert len(fetched(server, source)) == 2
        assert first.count("mounted") == 2, "the config, and the zstd layer, which stays lazy"
        server.reset()
        second = push(pulled, f"{server.host}/two:1", store, registry=client, compression=Compression("zstd"))
        assert fetched(server, source) == set()
        assert first.descriptor == second.descriptor
        same = push(pulled, f"{server.host}/same:1", store, registry=client)
        assert same.descriptor.digest == source.descriptor.digest
        with pytest.raises(InvalidArgument, match="get_remote"):
            push(pulled.get_remote(), f"{server.host}/x", store, compression=Compression("zstd"))
    assert {desc.media_type for desc in result(server, "one", "1").layers} == {ZSTD}


def test_push_with_a_compression_converts_the_whole_index(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = indexed()
    name = source.push(server, "team/app")
    for platform in ("linux/amd64", "linux/arm64", "linux/arm/v7"):
        pull(name, store, lazy=True, platform=platform, registry=client).close()
    with open_image(name, store, platform="linux/arm64", registry=client) as opened:
        report = push(opened, f"{server.host}/out:1", store, registry=client, compression=Compression("zstd"))
    document = parse_document(server.document("out", "1").raw)
    assert isinstance(document, Index)
    assert report.descriptor.digest == document.digest
    for member in document.manifests:
        assert {desc.media_type for desc in result(server, "out", member.digest).layers} == {ZSTD}


def test_pull_with_a_compression_names_the_converted_image(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = mixed()
    name = source.push(server, "team/app", "1")
    with pull(name, store, lazy=True, compression=Compression("zstd"), registry=client) as pulled:
        assert {desc.media_type for desc in pulled.manifest.layers} == {ZSTD}
        assert pulled.ref is not None
        assert [each.is_lazy() for each in pulled.ref.layer_chain()] == [False, True, False]
        assert pulled.config.diff_ids == tuple(each.diff_id for each in source.layers)
        digest = pulled.manifest.digest
    with open_image(name, store, registry=client) as opened:
        assert opened.manifest.digest == digest
        with opened.open("f1") as file:
            assert file.read() == b"x" * 3000
    with pull(name, store, compression=Compression("zstd"), registry=client) as again:
        assert again.manifest.digest == digest
        assert again.ref is not None
        assert not any(each.is_lazy() for each in again.ref.layer_chain())
    with pull(name, store, registry=client) as plain:
        assert plain.manifest.raw == source.manifest


def test_pull_with_a_compression_that_changes_nothing_keeps_the_image(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = indexed()
    name = source.push(server, "team/app", "1")
    with pull(name, store, compression=Compression("gzip"), registry=client) as pulled:
        assert store.layout.names()[name].digest == source.descriptor.digest
        assert parse_config(pulled.config.raw).diff_ids == pulled.config.diff_ids


def test_pulling_a_layout_with_a_compression_converts_too(store: LocalStore, tmp_path: Path) -> None:
    source = mixed()
    source.write_layout(tmp_path / "layout", "v1")
    with pull(f"oci:{tmp_path}/layout", store, compression=Compression("estargz")) as pulled:
        assert all(TOC_DIGEST in desc.annotations for desc in pulled.manifest.layers)
        with pulled.open("f2") as file:
            assert file.read() == b"x" * 3000


def test_a_name_with_a_digest_does_not_stand_for_other_bytes(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = mixed()
    source.push(server, "team/app", "1")
    name = f"{server.host}/team/app@{source.descriptor.digest}"
    with pytest.raises(InvalidArgument, match="give it a name"):
        pull(name, store, compression=Compression("zstd"), registry=client)
    with pull(name, store, name="mine", compression=Compression("zstd"), registry=client):
        assert list(store.layout.names()) == ["mine"]


@pytest.mark.parametrize("start", ["oci", "oci-archive", "docker-archive"])
def test_images_on_this_machine_are_converted_in_place(tmp_path: Path, start: str) -> None:
    mixed().write_layout(tmp_path / "layout", "v1")
    path = f"{start}:{tmp_path}/place"
    copy(f"oci:{tmp_path}/layout:v1", path)
    kind = "uncompressed" if start == "docker-archive" else "zstd"
    first = convert(path, path, kind, epoch=0)
    second = convert(path, f"oci:{tmp_path}/out", kind)
    assert second.descriptor.digest == first.descriptor.digest or start == "docker-archive"
    with LocalStore(tmp_path / "store") as store, pull(path, store) as pulled, pulled.open("f0") as file:
        assert file.read() == b"x" * 3000
