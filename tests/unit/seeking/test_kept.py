"""Indexes that are kept: what comes back, and all that counts as nothing."""

from __future__ import annotations

import gzip
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobtee.content import Trust
from blobtee.core import crc32c, gzip_member
from blobtee.errors import BlobteeError, InvalidArgument, StorageError, StorageFull
from blobtee.layers import Entry
from blobtee.oci import Compressed, Descriptor, Digest, mediatypes
from blobtee.seeking import Contents, SpanTable, Unpacked, kept, whole
from blobtee.seeking.checkpoints import Checkpoints
from blobtee.seeking.kept import Shelf
from blobtee.seeking.pieces import Pieces
from blobtee.seeking.plain import Plain
from blobtee.seeking.streamed import Streamed
from tests.unit.core.test_gzindex import giant
from tests.unit.seeking import blobs
from tests.unit.seeking.blobs import GZIP, ZSTD
from tests.unit.seeking.support import CountingReader

TAR = blobs.tar()
SMALL_TAR = blobs.tar({"a/file": b"text " * 40_000, "another": b"x"})

LAYERS: dict[str, tuple[bytes, str, type[Unpacked]]] = {
    "any gzip": (gzip.compress(TAR), GZIP, Checkpoints),
    "a giant block": (giant(SMALL_TAR, dynamic=True), GZIP, Checkpoints),
    "gzip of ours": (blobs.ours("gzip", TAR).data, GZIP, Pieces),
    "members and a rest": (gzip_member(TAR[:500_000], sized=True) + gzip.compress(TAR[500_000:]), GZIP, Pieces),
    "zstd of ours": (blobs.ours("zstd", TAR).data, ZSTD, Pieces),
    "any zstd": (zstandard.ZstdCompressor().compress(TAR), ZSTD, Streamed),
    "plain": (TAR, mediatypes.OCI_LAYER, Plain),
}


def detached(entries: Iterator[Entry]) -> Iterator[Entry]:
    return (entry.detached() for entry in entries)


@cache
def layer(name: str) -> tuple[Descriptor, CountingReader, Contents]:
    data, media_type, kind = LAYERS[name]
    reader = CountingReader(data)
    contents = whole.contents(reader, media_type, detached)
    assert type(contents.stream) is kind
    return Descriptor(media_type, Digest.of(data), len(data)), reader, contents


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_kept_comes_back(name: str, tmp_path: Path) -> None:
    desc, reader, contents = layer(name)
    assert kept.load(tmp_path, desc) is None
    assert kept.keep(tmp_path, desc, contents)
    assert list(kept.kept(tmp_path)) == [desc.digest]
    found = kept.load(tmp_path, desc)
    assert found is not None
    assert found.entries == contents.entries
    assert type(found.stream) is type(contents.stream)
    assert found.stream.size == contents.stream.size
    assert (found.told, found.stream.proof) == (Trust.BLOB, contents.stream.proof)
    for entry in found.entries:
        if entry.type.value == "file":
            assert found.extents([entry]) == contents.extents([entry])
            with found.open(reader, entry) as one, contents.open(reader, entry) as other:
                assert one.readall() == other.readall()
    kept.forget(tmp_path, Digest(desc.digest))
    kept.forget(tmp_path, Digest(desc.digest))
    assert kept.load(tmp_path, desc) is None
    assert not list(kept.kept(tmp_path))


def test_what_is_damaged_or_of_something_else_counts_as_none(tmp_path: Path) -> None:
    desc, _, contents = layer("a giant block")
    kept.keep(tmp_path, desc, contents)
    path = kept.path_of(tmp_path, Digest(desc.digest))
    sound = path.read_bytes()
    assert kept.load(tmp_path, replace(desc, size=desc.size + 1)) is None
    other = replace(desc, digest=Digest.of(b"other"))
    kept.path_of(tmp_path, Digest(other.digest)).write_bytes(sound)
    assert kept.load(tmp_path, other) is None
    draw = random.Random(1)
    for _ in range(200):
        at = draw.randrange(len(sound))
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << draw.randrange(8)]) + sound[at + 1 :])
        assert kept.load(tmp_path, desc) is None
    for cut in [*range(60), *(draw.randrange(len(sound)) for _ in range(50)), len(sound) - 1]:
        path.write_bytes(sound[:cut])
        assert kept.load(tmp_path, desc) is None
    path.write_bytes(sound + b"x")
    assert kept.load(tmp_path, desc) is None
    small = replace(contents, entries=contents.entries[:3])
    kept.keep(tmp_path, desc, small)
    whole_file = path.read_bytes()
    assert len(whole_file) < 60_000
    for at in range(len(whole_file)):
        path.write_bytes(whole_file[:at] + bytes([whole_file[at] ^ 1 << at % 8]) + whole_file[at + 1 :])
        assert kept.load(tmp_path, desc) is None
    path.unlink()
    path.mkdir()
    assert kept.load(tmp_path, desc) is None
    path.rmdir()
    with open(path, "wb") as file:
        file.truncate(kept.MAX_NBYTES + 1)
    assert kept.load(tmp_path, desc) is None
    path.write_bytes(sound)
    assert kept.load(tmp_path, desc) is not None


def sealed(body: bytes, magic: bytes = b"btindex\x01") -> bytes:
    return struct.pack("<8sI", magic, crc32c(body)) + body


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["a pipe", "a link to what has no end", "a folder"])
def test_what_is_no_file_counts_as_none(tmp_path: Path, what: str) -> None:
    desc, _, contents = layer("any gzip")
    path = kept.path_of(tmp_path, Digest(desc.digest))
    path.parent.mkdir(parents=True)
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert kept.load(tmp_path, desc) is None
    if what != "a folder":
        assert kept.keep(tmp_path, desc, contents), "it gives way to a file"
        assert kept.load(tmp_path, desc) is not None


def test_another_version_counts_as_none(tmp_path: Path) -> None:
    desc, _, contents = layer("plain")
    kept.keep(tmp_path, desc, contents)
    path = kept.path_of(tmp_path, Digest(desc.digest))
    body = path.read_bytes()[12:]
    for data, sound in (
        (sealed(body), True),
        (sealed(body, b"btindex\x02"), False),
        (sealed(b"\x09" + body[1:]), False),
        (sealed(body + b"\0"), False),
        (sealed(b""), False),
    ):
        path.write_bytes(data)
        assert (kept.load(tmp_path, desc) is not None) is sound


EDITS = st.tuples(st.integers(0, 1 << 30), st.binary(max_size=9), st.integers(0, 9))


@cache
def body_of(name: str) -> bytes:
    """The file of a layer, without its seal."""
    desc, _, contents = layer(name)
    with tempfile.TemporaryDirectory() as root:
        kept.keep(Path(root), desc, contents)
        return kept.path_of(Path(root), Digest(desc.digest)).read_bytes()[12:]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["any gzip", "a giant block", "members and a rest", "zstd of ours", "plain", "any zstd"]),
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 30), st.binary(max_size=9), st.integers(0, 9)), min_size=1, max_size=4
    ),
    early=st.booleans(),
)
def test_a_file_made_by_somebody_else_ends_in_nothing_or_an_error(
    name: str, edits: list[tuple[int, bytes, int]], early: bool, tmp_path: Path
) -> None:
    desc, reader, _ = layer(name)
    body = bytearray(body_of(name))
    for at, put, drop in edits:
        at %= min(len(body), 400) if early else len(body)
        body[at : at + drop] = put
    path = kept.path_of(tmp_path, Digest(desc.digest))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed(bytes(body)))
    found = kept.load(tmp_path, desc)
    if found is None:
        return
    try:
        for entry in list(found.entries)[:20]:
            if entry.type.value == "file":
                with found.open(reader, entry) as file:
                    while file.read(1 << 20):
                        pass
        found.stream.read_at(reader, found.stream.size - min(9, found.stream.size), 9)
    except BlobteeError:
        pass


def test_only_what_the_whole_blob_proves_is_kept(tmp_path: Path) -> None:
    desc, _, contents = layer("plain")
    for trust in (Trust.RAW, Trust.ATTESTED):
        with pytest.raises(InvalidArgument):
            kept.keep(tmp_path, desc, replace(contents, told=trust))
    entry = replace(contents.entries[0], uname="a\0b")
    assert not kept.keep(tmp_path, desc, replace(contents, entries=[entry]))
    told = Pieces(SpanTable(10, [(1, 0, 10)]), Compressed.ZSTD, digests=bytes(32))
    assert not kept.keep(tmp_path, desc, replace(contents, stream=told))
    assert not list(kept.kept(tmp_path))


def test_a_disk_that_fails_takes_nothing_from_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desc, _, contents = layer("plain")
    shelf = Shelf(tmp_path)
    shelf.keep(desc, contents)
    before = kept.path_of(tmp_path, Digest(desc.digest)).read_bytes()
    for code in (5, 28):

        def failing(fd: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing)
            shelf.keep(desc, contents)
            with pytest.raises((StorageError, StorageFull)):
                kept.keep(tmp_path, desc, contents)
        assert kept.path_of(tmp_path, Digest(desc.digest)).read_bytes() == before
    assert caplog.text.count("is not kept") == 2
    assert shelf.load(desc) is not None


def test_an_index_is_small(tmp_path: Path) -> None:
    desc, _, contents = layer("any gzip")
    kept.keep(tmp_path, desc, contents)
    assert kept.path_of(tmp_path, Digest(desc.digest)).stat().st_size < 0.015 * desc.size
