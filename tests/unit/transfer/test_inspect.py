"""What is told of an image without bringing its layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.compression import Compression, Type
from blobtee.content import LocalStore
from blobtee.errors import NotFound
from blobtee.oci import Compressed, Platform, chain_ids
from blobtee.registry import Registry
from blobtee.testing import ImageSource, MemoryRegistry, image, index, layer
from blobtee.transfer import convert, inspect, pull, push, raw_document


def source_of(platform: Platform | None = None) -> ImageSource:
    kinds = (Compressed.GZIP, Compressed.ZSTD, Compressed.NONE)
    layers = [layer({f"f{number}": b"x" * 3000}, compression=kind) for number, kind in enumerate(kinds)]
    return image(layers, platform=platform)


def test_a_remote_image_is_known_by_its_documents(server: MemoryRegistry, client: Registry, store: LocalStore) -> None:
    source = source_of()
    name = source.push(server, "team/app")
    layers = {each.descriptor.digest for each in source.layers}
    for kept in (None, store):
        found = inspect(name, kept, registry=client)
        assert (found.name, found.manifest.raw, found.root) == (name, source.manifest, found.manifest)
        assert [each.compression for each in found.layers] == [Type.GZIP, Type.ZSTD, Type.UNCOMPRESSED]
        assert [each.diff_id for each in found.layers] == [each.diff_id for each in source.layers]
        assert [each.chain_id for each in found.layers] == list(chain_ids([each.diff_id for each in source.layers]))
        assert not any(each.present for each in found.layers)
    assert not [entry for entry in server.entries("GET", "blob") if entry.identifier in layers]
    assert list(store.walk()) == []


def test_a_stored_image_tells_what_is_here_and_its_variants(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = source_of()
    name = source.push(server, "team/app")
    with pull(name, store, lazy=True, registry=client) as pulled:
        push(pulled, f"{server.host}/out", store, registry=client, compression=Compression("zstd"))
    server.stop()
    found = inspect(name, store, registry=client)
    assert [each.present for each in found.layers] == [True, False, True]
    assert [[kind for _, kind in each.variants] for each in found.layers] == [[Type.ZSTD], [], [Type.ZSTD]]
    assert all(desc.size for each in found.layers for desc, _ in each.variants)


def test_estargz_is_told_by_annotations_and_by_bytes(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    name = source_of().push(server, "team/app")
    convert(name, f"{server.host}/es:1", "estargz", registry=client)
    convert(name, f"oci:{tmp_path}/es:1", "estargz", registry=client)
    for what in (f"{server.host}/es:1", f"oci:{tmp_path}/es:1"):
        assert {each.compression for each in inspect(what, store, registry=client).layers} == {Type.ESTARGZ}
    pull(f"{server.host}/es:1", store, registry=client).close()
    assert {each.compression for each in inspect(f"{server.host}/es:1", store).layers} == {Type.ESTARGZ}


def test_an_index_lists_its_platforms_and_one_is_chosen(server: MemoryRegistry, client: Registry) -> None:
    names = ("linux/amd64", "linux/arm64")
    source = index({name: source_of(Platform.parse(name)) for name in names})
    name = source.push(server, "team/app")
    found = inspect(name, platform="linux/arm64", registry=client)
    assert (found.root.digest, str(found.platform)) == (source.descriptor.digest, "linux/arm64")
    assert [str(platform) for platform in found.platforms] == list(names)
    assert raw_document(name, registry=client) == source.manifest
    assert raw_document(name, platform="linux/arm64", registry=client) == found.manifest.raw
    with pytest.raises(NotFound, match="linux/s390x"):
        inspect(name, platform="linux/s390x", registry=client)


def test_what_lies_on_this_machine_is_present(tmp_path: Path) -> None:
    source = source_of()
    source.write_layout(tmp_path / "layout", "v1")
    found = inspect(f"oci:{tmp_path}/layout")
    assert (found.name, found.platforms) == ("v1", ())
    assert all(each.present for each in found.layers)


def test_an_artifact_has_raw_bytes_and_no_layers_to_tell_of(server: MemoryRegistry, client: Registry) -> None:
    raw = b"""{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "config": {"mediaType": "text/x", "digest": "sha256:%s", "size": 2}, "layers": []}""" % (b"1" * 64)
    server.add_document("app", raw, "", "latest")
    assert raw_document(f"{server.host}/app", registry=client) == raw
    with pytest.raises(ValueError, match="artifact"):
        inspect(f"{server.host}/app", registry=client)
