"""Files of lazy layers by trust: what is brought, what is said of it, and what is done when a table is no good."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from blobtee.content import ReaderAt, Trust
from blobtee.errors import CorruptData, DigestMismatch, InvalidArgument, NotFound
from blobtee.image import Prefetched, Tree
from blobtee.oci import Descriptor, Digest
from blobtee.oci.annotations import CHUNKED_DIGEST, INDEX_DIGEST, STARGZ_CHUNKED_DIGEST, TOC_DIGEST
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import Blob
from tests.unit.seeking.support import CountingReader

BASE = blobs.tar({"etc/conf": b"from the base", "bin/tool": blobs.noise(900_000), "etc/old": b"old"})
TOP = blobs.tar({"etc/conf": b"from the top", "etc/.wh.old": b"", "data/large": blobs.noise(2 << 20, 1)})

MAKERS: dict[str, Callable[[bytes], Blob]] = {
    "gzip of ours": lambda data: blobs.ours("gzip", data),
    "zstd of ours": lambda data: blobs.ours("zstd", data),
    "estargz": lambda data: blobs.ours("estargz", data),
    "zstd:chunked": blobs.chunked,
    "zstd:chunked of stargz": lambda data: blobs.chunked(data, "stargz"),
}


class Remote:
    """A `PartialProvider` that counts: who asks for `BLOB` has the whole blob brought."""

    def __init__(self, *layers: Blob) -> None:
        self._layers = {layer.desc.digest: layer.data for layer in layers}
        self.readers: list[CountingReader] = []
        self.filled: set[Digest] = set()

    def reader_at(self, desc: Descriptor, trust: Trust = Trust.BLOB) -> ReaderAt:
        if trust.satisfies(Trust.STREAMED):
            self.filled.add(desc.digest)
        reader = CountingReader(self._layers[desc.digest], trust)
        self.readers.append(reader)
        return reader

    @property
    def requests(self) -> int:
        return sum(len(reader.reads) for reader in self.readers)

    @property
    def nbytes(self) -> int:
        return sum(reader.nbytes for reader in self.readers)


@pytest.fixture(scope="module", params=MAKERS)
def layers(request: pytest.FixtureRequest) -> tuple[Blob, Blob]:
    make = MAKERS[request.param]
    return make(BASE), make(TOP)


def tree(*layers: Blob, trust: Trust) -> tuple[Tree, Remote]:
    remote = Remote(*layers)
    return Tree([layer.desc for layer in layers], remote, trust), remote


def read(seen: Tree, path: str) -> tuple[bytes, Trust]:
    with seen.open(path) as file:
        return file.readall(), file.trust


def test_attested_reads_bring_what_they_need(layers: tuple[Blob, Blob]) -> None:
    seen, remote = tree(*layers, trust=Trust.ATTESTED)
    assert read(seen, "/etc/conf") == (b"from the top", Trust.ATTESTED)
    assert remote.requests == 2, "the table, and the file"
    assert remote.nbytes < 1 << 20
    assert not remote.filled
    assert read(seen, "hard")[1] is Trust.ATTESTED
    assert read(seen, "bin/tool") == (blobs.noise(900_000), Trust.ATTESTED)
    assert [node.path for node in seen.walk("etc")] == ["etc/conf"], "whited out"
    with pytest.raises(NotFound):
        seen.open("etc/old")
    assert not remote.filled
    assert all(reader.closed for reader in remote.readers)


def test_the_default_fills_and_is_proven_by_the_blob(layers: tuple[Blob, Blob]) -> None:
    seen, remote = tree(*layers, trust=Trust.BLOB)
    assert read(seen, "etc/conf") == (b"from the top", Trust.BLOB)
    assert remote.filled == {layers[1].desc.digest}
    assert read(seen, "bin/tool") == (blobs.noise(900_000), Trust.BLOB)


def test_a_broken_table_counts_as_none(layers: tuple[Blob, Blob]) -> None:
    for key in (INDEX_DIGEST, TOC_DIGEST, CHUNKED_DIGEST, STARGZ_CHUNKED_DIGEST):
        if key in layers[1].desc.annotations:
            desc = layers[1].desc.annotated({key: blobs.sha256(b"?")})
            seen, remote = tree(layers[0], replace(layers[1], desc=desc), trust=Trust.ATTESTED)
            assert read(seen, "etc/conf") == (b"from the top", Trust.BLOB)
            assert remote.filled == {desc.digest}


def test_a_layer_without_a_table_is_filled_and_its_files_may_lie_below_attested_ones() -> None:
    base, top = blobs.ours("uncompressed", BASE), blobs.ours("zstd", TOP)
    seen, remote = tree(base, top, trust=Trust.ATTESTED)
    assert read(seen, "bin/tool") == (blobs.noise(900_000), Trust.ATTESTED), "the upper layer says it hides nothing"
    assert remote.filled == {base.desc.digest}
    seen, remote = tree(base, trust=Trust.ATTESTED)
    assert read(seen, "bin/tool")[1] is Trust.BLOB


def test_raw_walks_a_tar_that_is_not_packed() -> None:
    layer = blobs.ours("uncompressed", TOP)
    seen, remote = tree(layer, trust=Trust.RAW)
    assert read(seen, "etc/conf") == (b"from the top", Trust.RAW)
    assert not remote.filled
    assert remote.nbytes < 300 << 10
    seen, remote = tree(blobs.ours("zstd", BASE), trust=Trust.RAW)
    assert read(seen, "etc/conf") == (b"from the base", Trust.ATTESTED)


def test_wrong_bytes_are_given_to_nobody(layers: tuple[Blob, Blob]) -> None:
    seen, remote = tree(*layers, trust=Trust.ATTESTED)
    node = seen.lookup("data/large")
    data = bytearray(layers[1].data)
    place = data.find(blobs.noise(2 << 20, 1)[10_000:10_050])
    data[place if place >= 0 else len(data) // 3] ^= 1
    remote._layers[layers[1].desc.digest] = bytes(data)
    with seen.open_node(node) as file, pytest.raises((DigestMismatch, CorruptData)):
        io.BufferedReader(file).read()


def test_prefetch_brings_near_files_at_once(layers: tuple[Blob, Blob]) -> None:
    seen, remote = tree(*layers, trust=Trust.ATTESTED)
    list(seen.walk())
    before = remote.requests, remote.nbytes
    moved: list[int] = []
    prefetched = seen.prefetch(["etc", "/hard", "nothing/there", "bin/tool"], moved.append)
    assert 900_000 < prefetched.nbytes == sum(moved) == remote.nbytes - before[1]
    assert prefetched.missing == ("nothing/there",)
    assert remote.requests - before[0] <= 3
    assert all(reader.closed for reader in remote.readers)
    assert seen.prefetch(["null", "link"]).nbytes > 0, "a link's target"
    assert seen.prefetch([]) == Prefetched(0, ())
    assert not remote.filled


def test_many_readers_at_once_ask_for_the_table_once(layers: tuple[Blob, Blob]) -> None:
    seen, remote = tree(*layers, trust=Trust.ATTESTED)
    got: list[tuple[bytes, Trust]] = []
    threads = [threading.Thread(target=lambda: got.append(read(seen, "etc/conf"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [(b"from the top", Trust.ATTESTED)] * 16
    assert remote.requests == 17


def test_no_such_trust() -> None:
    with pytest.raises(InvalidArgument):
        Trust.parse("much")
