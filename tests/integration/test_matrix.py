"""Every compression into every other, on layers by Go, GNU tar, bsdtar and blobtee, judged by other tools."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blobtee.cache import RefConfig
from blobtee.cache.labels import TOC_DIGEST, UNCOMPRESSED
from blobtee.compression import Compression, Type, decompress, is_estargz
from blobtee.content import LocalStore
from blobtee.conversion import Packer, convert
from blobtee.oci import Compressed, Config, Descriptor, Digest, parse_document
from blobtee.oci.annotations import INDEX_DIGEST, INDEX_POSITION
from blobtee.oci.documents import parse_config
from blobtee.oci.mediatypes import OCI_CONFIG
from blobtee.registry import Registry
from blobtee.testing import Layer, image
from blobtee.testing import layer as packed_by_us
from blobtee.transfer import pull, push
from tests.integration import origins
from tests.integration.servers import DockerRegistry, tool

TYPES = list(Type)


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        [tool("skopeo"), "--insecure-policy", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return origins.tree(tmp_path_factory.mktemp("origins") / "tree")


@pytest.fixture(scope="module", params=origins.ORIGINS)
def tar(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    written = origins.ORIGINS[request.param](tree)
    assert isinstance(written, bytes)
    return written


@pytest.fixture(scope="module")
def sources(tar: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[Type, tuple[bytes, Descriptor]]:
    """The tar as a blob of each type: gzip and zstd by skopeo, which is Go's; eStargz by us."""
    folder = tmp_path_factory.mktemp("packed")
    plain = packed_by_us(tar, compression=Compressed.NONE)
    image([plain]).write_layout(folder / "plain", "v1")
    found = {Type.UNCOMPRESSED: (tar, plain.descriptor)}
    for kind in (Type.GZIP, Type.ZSTD):
        target = folder / kind.value
        skopeo("copy", "--dest-compress-format", kind.value, f"oci:{folder}/plain:v1", f"oci:{target}:v1")
        desc = origins.top_layer(target)
        assert desc.media_type == kind.media_type
        found[kind] = ((target / "blobs" / "sha256" / desc.digest.hex).read_bytes(), desc)
    blob = io.BytesIO()
    with Packer(Compression("estargz"), blob.write) as packer:
        packer.write(tar)
        packed = packer.finish()
    data = blob.getvalue()
    desc = Descriptor(Type.ESTARGZ.media_type, Digest.of(data), len(data), annotations=packed.annotations)
    found[Type.ESTARGZ] = (data, desc)
    return found


@pytest.fixture
def converted(
    sources: dict[Type, tuple[bytes, Descriptor]], store: LocalStore
) -> Callable[[Type, Type], tuple[bytes, Descriptor]]:
    def one(source: Type, target: Type) -> tuple[bytes, Descriptor]:
        data, desc = sources[source]
        with store.writer("source", expected=desc.digest) as writer:
            writer.write(data)
            writer.commit(desc.size)
        result = convert(store, desc, Compression(target))
        with store.reader_at(result) as reader:
            return reader.read_at(0, reader.size), result

    return one


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
@pytest.mark.parametrize("source", TYPES, ids=lambda kind: f"from {kind.value}")
def test_conversion_keeps_the_tar_and_other_tools_read_the_result(
    tar: bytes, converted: Callable[[Type, Type], tuple[bytes, Descriptor]], source: Type, target: Type, tmp_path: Path
) -> None:
    data, desc = converted(source, target)
    assert (desc.digest, desc.size, desc.media_type) == (Digest.of(data), len(data), target.media_type)
    assert desc.urls == ()
    unpacked = decompress(io.BytesIO(data), desc.media_type).readall()
    assert desc.annotations[UNCOMPRESSED] == Digest.of(unpacked)
    if target is Type.ESTARGZ:
        assert unpacked.startswith(tar)
        with tarfile.open(fileobj=io.BytesIO(unpacked), ignore_zeros=True) as archive:
            assert "stargz.index.json" in archive.getnames()
        assert TOC_DIGEST in desc.annotations
    else:
        assert unpacked == tar
        # What we pack carries an index of its files, unless it is not packed at all.
        indexed = set() if target is Type.UNCOMPRESSED else {INDEX_DIGEST, INDEX_POSITION}
        assert set(desc.annotations) == {UNCOMPRESSED} | indexed
    path = tmp_path / "layer"
    path.write_bytes(data)
    assert hashlib.sha256(independently_unpacked(path, target)).hexdigest() == desc.annotations[UNCOMPRESSED][7:]


def independently_unpacked(path: Path, target: Type) -> bytes:
    """What `gzip` or `zstd` make of the file, after their own test of it."""
    if target is Type.UNCOMPRESSED:
        return path.read_bytes()
    name = "zstd" if target is Type.ZSTD else "gzip"
    with path.open("rb") as file:
        subprocess.run([tool(name), "-t"], stdin=file, check=True, capture_output=True)
        file.seek(0)
        return subprocess.run([tool(name), "-dc"], stdin=file, check=True, capture_output=True).stdout


class _Stack:
    """An image of three layers in a real registry, the middle one by Go."""

    def __init__(self, tree: Path, folder: Path, kind: Compressed) -> None:
        above = origins.tree(folder / "above")
        (above / "text").write_text("changed above")
        tars = [origins.gnu_tar(tree), origins.go_by_umoci(above), origins.bsdtar(tree)]
        self.layers: list[Layer] = [packed_by_us(tar, compression=kind) for tar in tars]
        self.source = image(self.layers)
        self.folder = folder

    def push_to(self, server: DockerRegistry) -> str:
        root = self.source.write_layout(self.folder / "source", "v1")
        name = f"{server.host}/team/app:v1"
        skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{root}:v1", f"docker://{name}")
        return name


@pytest.fixture(params=[Compressed.GZIP, Compressed.NONE, Compressed.ZSTD], ids=lambda kind: f"of {kind.value}")
def stacked(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> _Stack:
    tool("umoci")
    return _Stack(tree, tmp_path, request.param)


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
def test_lazy_layers_of_a_real_registry_are_converted_and_umoci_unpacks_the_same_tree(
    server: DockerRegistry, client: Registry, store: LocalStore, stacked: _Stack, target: Type, tmp_path: Path
) -> None:
    name = stacked.push_to(server)
    config = RefConfig(Compression(target, force=True))
    with pull(name, store, lazy=True, registry=client) as lazy:
        before = len(server.requests())
        remote = lazy.get_remote(create_if_needed=True, config=config)
        fetched = [path for method, path, *_ in server.requests()[before:] if method == "GET" and "/blobs/" in path]
        assert sorted(set(fetched)) == sorted(fetched), "a layer was fetched twice"
        needed = {
            layer.descriptor.digest for layer in stacked.layers if layer.descriptor.media_type != target.media_type
        }
        if target is Type.ESTARGZ:
            needed = {layer.descriptor.digest for layer in stacked.layers}
        assert {path.rpartition("/")[2] for path in fetched} == needed
        assert [desc.media_type for desc in remote.descriptors] == [target.media_type] * 3
        diff_ids = [str(desc.annotations[UNCOMPRESSED]) for desc in remote.descriptors]
        if target is not Type.ESTARGZ:
            assert diff_ids == [layer.diff_id for layer in stacked.layers]
        settings = json.loads(lazy.config.raw)
        settings["rootfs"]["diff_ids"] = diff_ids
        rewritten = _config(settings)
        report = push(remote, f"{server.host}/team/converted:v1", store, registry=client, config=rewritten)
        if target is Type.ESTARGZ:
            for desc in remote.descriptors:
                with remote.provider.reader_at(desc) as reader:
                    assert is_estargz(reader)
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{report.name}"))
    assert inspected["Layers"] == [desc.digest for desc in remote.descriptors]
    assert _unpacked(server, report.name, tmp_path / "ours") == _unpacked(server, name, tmp_path / "theirs")


def _config(settings: dict[str, object]) -> Config:
    return parse_config(json.dumps(settings).encode(), OCI_CONFIG)


def _unpacked(server: DockerRegistry, name: str, folder: Path) -> dict[str, tuple[object, ...]]:
    """The image's tree as umoci unpacks it: it knows no zstd, so skopeo packs such layers anew for it."""
    skopeo(
        "copy",
        "--src-tls-verify=false",
        "--dest-compress-format",
        "gzip",
        f"docker://{name}",
        f"oci:{folder}-layout:v1",
    )
    manifest = parse_document(_root(Path(f"{folder}-layout")))
    if "zstd" in str(manifest.json):
        skopeo("copy", f"oci:{folder}-layout:v1", f"dir:{folder}-dir", "--dest-decompress")
        skopeo("copy", f"dir:{folder}-dir", f"oci:{folder}-plain:v1")
        layout = f"{folder}-plain"
    else:
        layout = f"{folder}-layout"
    subprocess.run(
        [tool("umoci"), "unpack", "--image", f"{layout}:v1", str(folder)], check=True, capture_output=True, timeout=120
    )
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted((folder / "rootfs").rglob("*")):
        said = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        links = said.st_nlink if not path.is_dir() else 0
        target = str(path.readlink()) if path.is_symlink() else ""
        key = str(path.relative_to(folder / "rootfs"))
        if key != "stargz.index.json":
            found[key] = (
                said.st_mode,
                said.st_uid,
                said.st_size * path.is_file(),
                said.st_mtime_ns,
                links,
                target,
                content,
            )
    return found


def _root(layout: Path) -> bytes:
    (root,) = json.loads((layout / "index.json").read_text())["manifests"]
    raw: bytes = (layout / "blobs" / "sha256" / root["digest"].partition(":")[2]).read_bytes()
    return raw
