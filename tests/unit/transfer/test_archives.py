"""Layouts and archives: there and back, and files that mean harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.errors import (
    BlobteeError,
    CorruptData,
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    NotFound,
    TooLarge,
)
from blobtee.oci import Compressed, Platform
from blobtee.registry import Registry
from blobtee.testing import ImageSource, MemoryRegistry, image, index
from blobtee.testing.images import Files
from blobtee.transfer import copy, open_image, pull, push

FILES: list[Files] = [{"a": b"a" * 700_000}, {"b": b"b" * 5000, "link": "a"}]


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None}


def written(path: Path, files: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def docker_archive(source: ImageSource, *tags: str) -> dict[str, bytes | tarfile.TarInfo]:
    """What `docker save` writes for an image of plain layers."""
    layers = {f"{n}/layer.tar": layer.data for n, layer in enumerate(source.layers)}
    listing = [{"Config": "config.json", "RepoTags": list(tags), "Layers": list(layers)}]
    return {**layers, "config.json": source.config, "manifest.json": json.dumps(listing).encode()}


@pytest.mark.parametrize("compression", list(Compressed))
@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_an_image_goes_there_and_back(
    server: MemoryRegistry,
    client: Registry,
    store: LocalStore,
    tmp_path: Path,
    form: str,
    compression: Compressed,
) -> None:
    source = image(FILES, compression=compression)
    name = source.push(server, "team/app", "v1")
    report = copy(name, f"{form}:{tmp_path}/there", registry=client)
    with pull(f"{form}:{tmp_path}/there", store, registry=client) as pulled:
        assert pulled.name == {"oci": "v1", "oci-archive": name, "docker-archive": name}[form]
        assert pulled.config.raw == source.config
        if form != "docker-archive":
            assert pulled.manifest.raw == source.manifest
        with pulled.open("link") as file:
            assert file.read() == b"a" * 700_000
    back = copy(report.name, f"{server.host}/back:1", registry=client)
    assert server.document("back", "1").digest == back.descriptor.digest


def test_an_index_goes_into_a_layout_whole_and_into_a_docker_archive_for_this_machine(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    platforms = (str(Platform.current()), "linux/s390x")
    source = index({name: image([{"p": name.encode()}], platform=Platform.parse(name)) for name in platforms})
    name = source.push(server, "team/app")
    copy(name, f"oci:{tmp_path}/layout:all", registry=client)
    report = copy(f"oci:{tmp_path}/layout:all", f"{server.host}/back:1", registry=client)
    assert report.descriptor.digest == source.descriptor.digest
    copy(name, f"docker-archive:{tmp_path}/d.tar", registry=client)
    with pull(f"docker-archive:{tmp_path}/d.tar", store) as pulled, pulled.open("p") as file:
        assert file.read().decode() == platforms[0]
    for platform in platforms:
        pull(name, store, platform=platform, registry=client).close()
    with open_image(name, store, platform="linux/s390x") as opened:
        push(opened, f"docker-archive:{tmp_path}/s.tar", store, all_platforms=False)
    listing = json.loads(members(tmp_path / "s.tar")["manifest.json"])
    assert listing[0]["RepoTags"] == [name]


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_an_archive_is_the_same_bytes_each_time_and_replaces_the_old_one_at_once(
    server: MemoryRegistry, client: Registry, tmp_path: Path, form: str
) -> None:
    name = image(FILES).push(server, "team/app")
    contents = []
    for _ in range(2):
        copy(name, f"{form}:{tmp_path}/a.tar", registry=client)
        contents.append((tmp_path / "a.tar").read_bytes())
    assert contents[0] == contents[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_layout_takes_several_images_side_by_side(server: MemoryRegistry, client: Registry, tmp_path: Path) -> None:
    for tag in ("one", "two"):
        name = image([FILES[0], {"tag": tag.encode()}]).push(server, "team/app", tag)
        copy(name, f"oci:{tmp_path}/layout", registry=client)
    report = copy(f"oci:{tmp_path}/layout:one", f"{server.host}/back:1", registry=client)
    assert report.descriptor.digest == server.document("team/app", "one").digest
    with pytest.raises(NotFound, match="several images, so name one: one, two"):
        copy(f"oci:{tmp_path}/layout", f"{server.host}/back:2", registry=client)
    with pytest.raises(NotFound, match="no image 'three'; there is: one, two"):
        copy(f"oci:{tmp_path}/layout:three", f"{server.host}/back:2", registry=client)


def test_what_is_complete_in_a_layout_is_not_written_again(
    server: MemoryRegistry, client: Registry, tmp_path: Path
) -> None:
    name = image(FILES).push(server, "team/app")
    copy(name, f"oci:{tmp_path}/layout", registry=client)
    report = copy(name, f"oci:{tmp_path}/layout", registry=client)
    assert (report.count("exists"), report.nbytes) == (3, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_an_older_docker_save_with_links_between_layers_is_read(
    store: LocalStore, tmp_path: Path, packed: bool
) -> None:
    source = image([FILES[0], FILES[1], FILES[0]], compression=Compressed.NONE)
    files = docker_archive(source, "team/app:v1")
    files["2/layer.tar"] = link("2/layer.tar", "../0/layer.tar")
    path = written(tmp_path / "a.tar", files)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pull(f"docker-archive:{path}", store) as pulled:
        assert pulled.name == "docker.io/team/app:v1"
        assert [layer.digest for layer in pulled.manifest.layers] == [layer.diff_id for layer in source.layers]


def test_an_image_with_several_names_is_called_as_it_was_asked_for(store: LocalStore, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", docker_archive(image(FILES, compression=Compressed.NONE), "app:v1", "app:v2"))
    for wanted, name in (("", "app:v1"), (":app:v1", "app:v1"), (":app:v2", "app:v2")):
        pull(f"docker-archive:{path}{wanted}", store).close()
        assert list(store.layout.names()) == [f"docker.io/library/{name}"]
        store.layout.remove(f"docker.io/library/{name}")


def test_one_of_several_images_in_a_docker_archive_is_named(store: LocalStore, tmp_path: Path) -> None:
    files: dict[str, bytes | tarfile.TarInfo] = {}
    listing = []
    for n, tag in enumerate(("a:1", "b:1")):
        part = docker_archive(image([{"f": tag.encode()}], compression=Compressed.NONE), tag)
        files |= {f"{n}/{name}": data for name, data in part.items()}
        listing.append({"Config": f"{n}/config.json", "RepoTags": [tag], "Layers": [f"{n}/0/layer.tar"]})
    files["manifest.json"] = json.dumps(listing).encode()
    path = written(tmp_path / "a.tar", files)
    with pull(f"docker-archive:{path}:docker.io/library/b:1", store) as pulled, pulled.open("f") as file:
        assert file.read() == b"b:1"
    with pytest.raises(NotFound, match="a:1, b:1"):
        pull(f"docker-archive:{path}", store)
    with pytest.raises(NotFound, match="no image 'c:1'"):
        pull(f"docker-archive:{path}:c:1", store)


Change = Callable[[dict[str, "bytes | tarfile.TarInfo"]], None]


def _set(name: str, value: bytes | tarfile.TarInfo) -> Change:
    def change(files: dict[str, bytes | tarfile.TarInfo]) -> None:
        files[name] = value

    return change


HOSTILE: dict[str, tuple[Change, type[BlobteeError]]] = {
    "a path that climbs out": (_set("../../etc/evil", b"x"), CorruptData),
    "an absolute link for a layer": (_set("0/layer.tar", link("0/layer.tar", "/etc/passwd")), NotFound),
    "a climbing link for a layer": (_set("0/layer.tar", link("0/layer.tar", "../../../etc/passwd")), NotFound),
    "links in a circle": (_set("0/layer.tar", link("0/layer.tar", "../0/layer.tar")), NotFound),
    "a hard link to nothing": (_set("0/layer.tar", link("0/layer.tar", "gone", tarfile.LNKTYPE)), NotFound),
    "other bytes in a layer": (_set("0/layer.tar", b"\0" * 10240), DigestMismatch),
    "no list of images": (_set("manifest.json", b"{}"), InvalidDocument),
    "a list that is no JSON": (_set("manifest.json", b"[" * 100_000), InvalidDocument),
    "an image without a config": (_set("manifest.json", b'[{"Layers": []}]'), InvalidDocument),
    "layers that are no paths": (_set("manifest.json", b'[{"Config": "config.json", "Layers": [1]}]'), InvalidDocument),
    "too few layers": (_set("manifest.json", b'[{"Config": "config.json", "Layers": []}]'), InvalidDocument),
    "a huge list": (_set("manifest.json", b" " * (9 << 20)), TooLarge),
    "a config that is no object": (_set("config.json", b"[]"), InvalidDocument),
    "a missing config": (_set("manifest.json", b'[{"Config": "/etc/passwd", "Layers": []}]'), NotFound),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_docker_archive_ends_in_an_error_of_ours(store: LocalStore, tmp_path: Path, what: str) -> None:
    change, error = HOSTILE[what]
    files = docker_archive(image(FILES, compression=Compressed.NONE), "team/app:v1")
    change(files)
    path = written(tmp_path / "a.tar", files)
    with pytest.raises(error):
        pull(f"docker-archive:{path}", store)
    assert store.layout.names() == {}
    # Not rglob: a fetch that was given up may still be taking its ingest away.
    assert not any("evil" in name for _, folders, names in os.walk(tmp_path) for name in (*folders, *names))


@pytest.mark.parametrize("cut", [0, 100, 512, 5000, 600_000])
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_an_archive_that_breaks_off_is_refused(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path, form: str, cut: int
) -> None:
    path = tmp_path / "a.tar"
    copy(image(FILES, compression=Compressed.NONE).push(server, "a"), f"{form}:{path}", registry=client)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises((CorruptData, NotFound), match=re.escape(str(path))):
        pull(f"{form}:{path}", store)


def test_an_oci_archive_whose_blobs_lie_is_refused(
    server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = image(FILES)
    copy(source.push(server, "a"), f"oci-archive:{tmp_path}/a.tar", registry=client)
    files = members(tmp_path / "a.tar")
    for digest, error in (
        (source.descriptor.digest, BlobteeError),
        (source.layers[0].descriptor.digest, DigestMismatch),
    ):
        name = f"blobs/sha256/{digest.hex}"
        changed = {**files, name: files[name][:-1] + b"?"}
        written(tmp_path / "b.tar", changed)
        with pytest.raises(error):
            pull(f"oci-archive:{tmp_path}/b.tar", store)
    assert store.layout.names() == {}


@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive"])
def test_what_is_no_file_is_neither_waited_for_nor_replaced(store: LocalStore, tmp_path: Path, scheme: str) -> None:
    source = image(FILES).write_layout(tmp_path / "good")
    pipe = tmp_path / ("layout/index.json" if scheme == "oci" else "pipe")
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(InvalidArgument, match="not a file"):
        pull(f"{scheme}:{pipe.parent if scheme == 'oci' else pipe}", store)
    if scheme != "oci":
        with pytest.raises(InvalidArgument, match="not a file"):
            copy(f"oci:{source}", f"{scheme}:{pipe}")
        assert pipe.is_fifo()


def test_an_archive_is_written_where_a_link_leads(tmp_path: Path) -> None:
    source = image(FILES).write_layout(tmp_path / "good")
    target, name = tmp_path / "there" / "image.tar", tmp_path / "link.tar"
    target.parent.mkdir()
    name.symlink_to(target)
    copy(f"oci:{source}", f"oci-archive:{name}")
    assert name.is_symlink()
    assert "index.json" in members(target)
    assert list(target.parent.iterdir()) == [target]


def test_what_is_not_there_or_is_something_else_is_said_so(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive at all, and longer than one block of a tar " * 20)
    (tmp_path / "layout").mkdir()
    for address in (f"oci:{tmp_path}/none", f"oci-archive:{tmp_path}/none", f"oci:{tmp_path}/layout"):
        with pytest.raises(NotFound):
            pull(address, store)
    for form in ("oci-archive", "docker-archive"):
        with pytest.raises(CorruptData):
            pull(f"{form}:{tmp_path}/text", store)
    for index_json in ("7", "[]", "not json", '{"manifests": [{"digest": "../../x", "size": 1}]}'):
        (tmp_path / "layout" / "index.json").write_text(index_json)
        with pytest.raises(BlobteeError):
            pull(f"oci:{tmp_path}/layout", store)
