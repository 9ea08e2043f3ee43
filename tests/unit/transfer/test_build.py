"""Images made of refs, and layers made of directories."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.cache.labels import UNCOMPRESSED
from blobtee.compression import Compression, decompress
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import InvalidArgument, InvalidReference, NotFound
from blobtee.oci import Compressed, Digest, Platform, mediatypes
from blobtee.registry import Registry
from blobtee.testing import MemoryRegistry, image, layer
from blobtee.testing.images import Files
from blobtee.transfer import build, open_image, pull, push, write_layer

FILES: list[Files] = [{"etc/os": b"base\n", "gone": b"x"}, {"b": b"b" * 5000}]
GZIP, ZSTD = mediatypes.OCI_LAYER + "+gzip", mediatypes.OCI_LAYER + "+zstd"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    (root / "srv").mkdir(parents=True)
    (root / "srv" / "main.py").write_text("print('hello')\n")
    return root


def test_a_directory_on_a_lazy_base_is_an_image_and_the_base_stays_lazy(
    server: MemoryRegistry, client: Registry, store: LocalStore, app: Path
) -> None:
    source = image(FILES, docker=True, config={"config": {"Env": ["PATH=/bin"], "Cmd": ["old"]}})
    base = pull(source.push(server, "library/base"), store, lazy=True, registry=client)
    with base, CacheManager(store).add_directory(app, base.ref, overlay=True) as ref:
        server.reset()
        made = build(
            ref,
            store,
            f"{server.host}/team/app:1",
            base=base,
            entrypoint=["python", "/srv/main.py"],
            env={"A": "1"},
            labels={"who": "us"},
            workdir="/srv",
            user="1000",
            created_by="a test",
        )
    with made:
        settings = made.config.json["config"]
        assert settings == {
            "Env": ["PATH=/bin", "A=1"],
            "Entrypoint": ["python", "/srv/main.py"],
            "Labels": {"who": "us"},
            "WorkingDir": "/srv",
            "User": "1000",
        }
        assert made.config.diff_ids[:2] == base.config.diff_ids
        assert [entry["created_by"] for entry in made.config.json["history"]] == ["layer 0", "layer 1", "a test"]
        assert {desc.media_type for desc in made.manifest.layers} == {GZIP}
        assert server.counters.sent["blob"] == 0
        report = push(made, f"{server.host}/team/app:1", store, registry=client)
        assert (report.count("mounted"), report.count("uploaded")) == (2, 2)
        assert server.counters.sent["blob"] == 0
    with pull(f"{server.host}/team/app:1", store, registry=client) as back:
        for path, wanted in (("srv/main.py", b"print('hello')\n"), ("etc/os", b"base\n")):
            with back.open(path) as file:
                assert file.read() == wanted


def test_a_built_image_is_found_by_name_and_its_lazy_layers_where_the_base_is(
    server: MemoryRegistry, client: Registry, store: LocalStore, app: Path
) -> None:
    base = pull(image(FILES).push(server, "library/base"), store, lazy=True, registry=client)
    with base, CacheManager(store).add_directory(app, base.ref, overlay=True) as ref:
        build(ref, store, "app", base=base).close()
    assert "docker.io/library/app:latest" in store.layout.names()
    with open_image("app", store, registry=client) as opened:
        report = push(opened, f"{server.host}/other:1", store, registry=client)
        assert report.count("mounted") == 2
        with opened.open("etc/os") as file:
            assert file.read() == b"base\n"


def test_without_a_base_it_is_the_directory_for_this_machine_or_another(store: LocalStore, app: Path) -> None:
    with CacheManager(store).add_directory(app) as ref:
        with build(ref, store, "one", compression=Compression("zstd")) as made:
            assert made.manifest.layers[0].media_type == ZSTD
            assert (made.platform, len(made.config.diff_ids)) == (Platform.current(), 1)
        with build(ref, store, platform="linux/arm/v7") as other:
            assert other.platform == Platform("linux", "arm", "v7")
    assert list(store.layout.names()) == ["docker.io/library/one:latest"]


def test_with_an_epoch_the_same_directory_gives_the_same_image(tmp_path: Path, app: Path) -> None:
    digests = set()
    for number in range(2):
        with LocalStore(tmp_path / f"store{number}") as store, CacheManager(store).add_directory(app) as ref:
            (app / "srv" / "main.py").touch()
            with build(ref, store, "app", epoch=1_000_000_000) as made:
                digests.add(made.descriptor.digest)
                assert made.config.json["created"] == "2001-09-09T01:46:40Z"
                assert made.lookup("srv/main.py").entry.mtime_ns == 1_000_000_000 * 10**9
    assert len(digests) == 1


def test_a_forced_compression_converts_the_base_too(
    server: MemoryRegistry, client: Registry, store: LocalStore, app: Path
) -> None:
    base = pull(image(FILES).push(server, "base"), store, lazy=True, registry=client)
    with base, CacheManager(store).add_directory(app, base.ref, overlay=True) as ref:
        with build(ref, store, base=base, compression=Compression("zstd", force=True)) as made:
            assert {desc.media_type for desc in made.manifest.layers} == {ZSTD}
            assert made.config.diff_ids[:2] == base.config.diff_ids


def test_a_ref_that_is_not_built_on_the_base_is_refused(
    server: MemoryRegistry, client: Registry, store: LocalStore, app: Path
) -> None:
    base = pull(image(FILES).push(server, "base"), store, lazy=True, registry=client)
    with base, CacheManager(store).add_directory(app) as ref:
        with pytest.raises(InvalidArgument, match="not built on"):
            build(ref, store, "app", base=base)
    assert "docker.io/library/app:latest" not in store.layout.names()


def test_what_cannot_be_named_or_made_leaves_no_name(store: LocalStore, app: Path) -> None:
    with CacheManager(store).add_directory(app) as ref:
        with pytest.raises(InvalidReference):
            build(ref, store, "No Name")
        with pytest.raises(InvalidArgument, match="yet to be made"):
            build(ref, store, f"app@sha256:{'0' * 64}")
        with pytest.raises(InvalidArgument, match="epoch"):
            build(ref, store, "app", epoch=-1)
        with pytest.raises(InvalidArgument, match="environment"):
            build(ref, store, "app", env={"A=B": ""})
    with CacheManager(store).add_directory(app) as ref:
        shutil.rmtree(app)
        with pytest.raises(NotFound):
            build(ref, store, "other")
    assert "docker.io/library/other:latest" not in store.layout.names()
    with MemoryStore() as memory, CacheManager(memory).add_directory(store.root.parent / "store" / "blobs") as ref:
        with pytest.raises(InvalidArgument, match="keeps no names"):
            build(ref, memory, "app")


def test_the_images_of_a_store_are_held_by_their_names_alone(store: LocalStore, app: Path) -> None:
    manager = CacheManager(store)
    with manager.add_directory(app) as ref, build(ref, store, "app") as made:
        labels = store.info(made.manifest.digest).labels
        assert labels["containerd.io/gc.ref.content.config"] == made.manifest.config.digest
        assert labels["containerd.io/gc.ref.content.l.0"] == made.manifest.layers[0].digest
    assert [lease for lease in manager.leases.all() if lease.expires_at is not None] == []


@pytest.mark.parametrize("kind", ["uncompressed", "gzip", "estargz", "zstd"])
def test_a_layer_is_written_with_its_digests(app: Path, kind: str) -> None:
    out = io.BytesIO()
    desc = write_layer(app, out.write, Compression(kind), epoch=1_000)
    assert (desc.digest, desc.size) == (Digest.of(out.getvalue()), len(out.getvalue()))
    assert desc.media_type == Compression(kind).type.media_type
    with decompress(io.BytesIO(out.getvalue()), desc.media_type) as stream:
        tar = stream.read()
    assert desc.annotations[UNCOMPRESSED] == Digest.of(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = [member.name for member in archive if not member.name.startswith((".", "stargz"))]
    assert names == ["srv", "srv/main.py"]


def test_a_layer_of_two_directories_holds_what_changed(app: Path, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "old").write_text("")
    out = io.BytesIO()
    write_layer(app, out.write, Compression("uncompressed"), lower=lower)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert sorted(archive.getnames()) == [".wh.old", "srv", "srv/main.py"]
    with pytest.raises(InvalidArgument, match="overlay"):
        write_layer(app, out.write, Compression("gzip"), lower=lower, overlay=True)


def test_a_base_that_came_packed_otherwise_can_be_built_on(
    server: MemoryRegistry, client: Registry, store: LocalStore, app: Path
) -> None:
    source = image([layer(FILES[0], compression=Compressed.ZSTD), layer(FILES[1])])
    base = pull(source.push(server, "base"), store, compression=Compression("zstd"), lazy=True, registry=client)
    with base, CacheManager(store).add_directory(app, base.ref, overlay=True) as ref:
        with build(ref, store, "app", base=base, compression=Compression("zstd")) as made:
            assert {desc.media_type for desc in made.manifest.layers} == {ZSTD}
    assert json.loads(made.config.raw)["rootfs"]["diff_ids"][:2] == [each.diff_id for each in source.layers]
