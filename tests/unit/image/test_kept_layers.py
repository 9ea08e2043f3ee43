"""Layers without a table of contents: read whole once, by parts from then on, also when the blob is gone."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, Trust
from blobtee.image import Image, Tree
from blobtee.oci import Compressed, Descriptor, Digest, mediatypes
from blobtee.registry import Registry
from blobtee.seeking import kept
from blobtee.seeking.kept import Shelf
from blobtee.tee import digests
from blobtee.testing import MemoryRegistry, image
from blobtee.transfer import open_image, pull
from tests.unit.core.test_gzindex import giant
from tests.unit.image.test_trust import BASE, TOP, Remote, read
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import GZIP, ZSTD, Blob

MAKERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, GZIP),
    "gzip of one block": (lambda data: giant(data, dynamic=True), GZIP),
    "gzip of members": (lambda data: gzip.compress(data[:700_000]) + gzip.compress(data[700_000:]), GZIP),
    "sized members": (lambda data: blobs.ours("gzip", data).data, GZIP),
    "zstd": (zstandard.ZstdCompressor().compress, ZSTD),
    "zstd frames": (lambda data: blobs.ours("zstd", data).data, ZSTD),
    "plain": (bytes, mediatypes.OCI_LAYER),
}


def made(kind: str, data: bytes) -> Blob:
    """A layer that tells nothing of itself in its annotations."""
    make, media_type = MAKERS[kind]
    blob = make(data)
    return Blob(blob, Descriptor(media_type, Digest.of(blob), len(blob)))


def tree(root: Path, *layers: Blob, trust: Trust = Trust.BLOB) -> tuple[Tree, Remote]:
    remote = Remote(*layers)
    return Tree([layer.desc for layer in layers], remote, trust, Shelf(root)), remote


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("trust", [Trust.BLOB, Trust.ATTESTED, Trust.RAW])
def test_the_second_time_neither_headers_nor_the_rest_are_read(kind: str, trust: Trust, tmp_path: Path) -> None:
    layers = made(kind, BASE), made(kind, TOP)
    first, remote = tree(tmp_path, *layers)
    assert read(first, "etc/conf") == (b"from the top", Trust.BLOB)
    assert read(first, "bin/tool")[0] == blobs.noise(900_000)
    assert remote.filled == {layer.desc.digest for layer in layers}
    again, remote = tree(tmp_path, *layers, trust=trust)
    assert read(again, "etc/conf") == (b"from the top", Trust.BLOB)
    assert [node.path for node in again.walk("etc")] == ["etc/conf"]
    assert remote.requests == 1
    if kind != "zstd":
        limit = 2_200_000 if kind == "gzip of one block" else 1_300_000
        assert remote.nbytes < limit, "the span that the file is in"
    if kind in ("gzip", "gzip of one block", "gzip of members"):
        assert not remote.filled, "digests of spans prove it"
    assert read(again, "bin/tool") == (blobs.noise(900_000), Trust.BLOB)


def test_an_index_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    layer = made("gzip", TOP)
    path = kept.path_of(tmp_path, layer.desc.digest)
    seen, _ = tree(tmp_path, layer)
    assert read(seen, "etc/conf")[0] == b"from the top"
    sound = path.read_bytes()
    for damaged in (b"", b"junk", sound[:-1], sound[:100] + b"?" + sound[101:]):
        path.write_bytes(damaged)
        seen, remote = tree(tmp_path, layer)
        assert read(seen, "etc/conf") == (b"from the top", Trust.BLOB)
        assert remote.filled
        assert path.read_bytes() == sound


def test_bytes_that_nobody_proved_make_no_index(tmp_path: Path) -> None:
    layer = made("plain", TOP)
    seen, _ = tree(tmp_path, layer, trust=Trust.RAW)
    assert read(seen, "etc/conf") == (b"from the top", Trust.RAW)
    assert not list(kept.kept(tmp_path))


# ---- with a registry and the tee


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as server:
        yield server


@pytest.fixture
def client() -> Iterator[Registry]:
    with Registry() as client:
        yield client


SIZE = 6 << 20
FILES = {"large": blobs.noise(SIZE), "small": b"a small file", "text": blobs.text(1 << 20)}


def content(opened: Image, path: str) -> bytes:
    with opened.open(path) as file:
        assert file.trust is Trust.BLOB
        return io.BufferedReader(file).read()


@pytest.mark.parametrize("digests_kept", [True, False])
@pytest.mark.parametrize("compression", [Compressed.GZIP, Compressed.NONE])
def test_after_eviction_a_file_brings_what_it_is_made_of(
    server: MemoryRegistry, client: Registry, tmp_path: Path, compression: Compressed, digests_kept: bool
) -> None:
    source = image([FILES], compression=compression)
    name = source.push(server, "team/app", "v1")
    layer = source.layers[0].descriptor
    with LocalStore(tmp_path) as store:
        with pull(name, store, lazy=True, registry=client) as pulled:
            assert content(pulled, "/small") == b"a small file"
        assert server.counters.sent["blob"] == layer.size
        store.delete(layer.digest)
        if not digests_kept:
            digests.forget(store.root, layer.digest)
    server.reset()
    with LocalStore(tmp_path) as store, open_image(name, store, registry=client) as opened:
        assert content(opened, "/small") == b"a small file"
        if digests_kept or compression is Compressed.GZIP:
            assert server.counters.sent["blob"] < 1_500_000
        assert content(opened, "/large") == FILES["large"]
        assert server.counters.sent["blob"] <= layer.size


def test_an_index_goes_with_the_last_of_the_blob(server: MemoryRegistry, client: Registry, tmp_path: Path) -> None:
    source = image([FILES], compression=Compressed.GZIP)
    name = source.push(server, "team/app", "v1")
    digest = source.layers[0].descriptor.digest
    with LocalStore(tmp_path) as store:
        manager = CacheManager(store)
        with pull(name, store, lazy=True, registry=client) as pulled:
            content(pulled, "/small")
        assert list(kept.kept(tmp_path)) == [digest]
        manager.collect(grace=0)
        assert list(kept.kept(tmp_path)) == [digest], "the image needs its layer"
        store.delete(digest)
        manager.collect(grace=0)
        assert list(kept.kept(tmp_path)) == [digest], "the image still may be read"
        store.layout.remove(name)
        manager.collect(grace=3600)
        manager.collect(grace=0, dry_run=True)
        assert list(kept.kept(tmp_path)) == [digest]
        manager.collect(grace=0)
        assert not list(kept.kept(tmp_path))
