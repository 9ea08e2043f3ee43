"""Files inside lazy layers, from a real registry, and out of what other tools write."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.compression import Compression
from blobtee.content import LocalStore, Trust
from blobtee.layers import EntryType, entries
from blobtee.oci import Descriptor
from blobtee.registry import Registry
from blobtee.seeking import tables
from blobtee.testing import MemoryRegistry, images
from blobtee.transfer import build, copy, pull, push
from tests.integration import origins
from tests.integration.images import large_tree
from tests.integration.servers import DockerRegistry, tool
from tests.unit.seeking.support import CountingReader

LARGE = int(os.environ.get("BLOBTEE_TEST_LARGE", 48 << 20))
"""Bytes of either large file; set it to half a gibibyte to see what the target says."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_tree(tmp_path_factory.mktemp("large") / "tree", LARGE)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "estargz"])
def test_one_small_file_out_of_a_large_layer_takes_three_requests_and_a_mebibyte(
    kind: str, tree: Path, server: DockerRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    name = f"{server.host}/files/{kind}:1"
    cache = CacheManager(store)
    with cache.add_directory(str(tree)) as ref, build(ref, store, name, compression=Compression(kind)) as made:
        push(made, name, store, registry=client)
    with LocalStore(tmp_path / "elsewhere") as other, pull(name, other, lazy=True, registry=client) as image:
        before = server.requests()
        with image.open("/usr/small", trust="attested") as file:
            assert file.readall() == b"found"
            assert file.trust is Trust.ATTESTED
        requests = server.requests()[len(before) :]
        assert len(requests) <= 3
        assert sum(nbytes for *_, nbytes in requests) <= 1 << 20
        with image.open("/etc/2999.conf", trust="attested") as file:
            assert file.readall() == b"number = 2999\n" * 49


def chunked_by_skopeo(tar: bytes, folder: Path) -> tuple[Descriptor, bytes]:
    with MemoryRegistry() as registry:
        images.image([images.layer(tar)]).push(registry, "tar", "1")
        copy(f"{registry.host}/tar:1", f"oci:{folder}/in:1")
    command = [tool("skopeo"), "copy", "--insecure-policy", "--quiet", "--dest-compress-format", "zstd:chunked"]
    subprocess.run([*command, f"oci:{folder}/in:1", f"oci:{folder}/out:1"], check=True, capture_output=True, timeout=60)
    desc = origins.top_layer(folder / "out")
    return desc, (folder / "out/blobs/sha256" / desc.digest.hex).read_bytes()


# skopeo 1.9 hangs over umoci's tar when it is to make zstd:chunked of it.
@pytest.mark.parametrize("source", [source for source in origins.ORIGINS if "umoci" not in source])
def test_what_skopeo_writes_as_zstd_chunked_is_read_file_by_file(source: str, tmp_path: Path) -> None:
    made = origins.tree(tmp_path / "origin" / "tree")
    tar = origins.ORIGINS[source](made)
    desc, data = chunked_by_skopeo(tar, tmp_path)
    assert tables.is_told(desc)
    reader = CountingReader(data, Trust.RAW)
    contents = tables.contents(desc, reader)
    found = {entry.path: entry for entry in contents.entries}
    for entry in entries(io.BytesIO(tar)):
        told = found[entry.path]
        assert (told.type, told.size, told.mode, told.uid) == (entry.type, entry.size, entry.mode, entry.uid), entry
        assert told.linkname == entry.linkname
        if entry.type is EntryType.FILE:
            with contents.open(reader, told) as file, entry.data() as expected:
                assert file.readall() == expected.readall(), entry.path
