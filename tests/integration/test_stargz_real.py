"""What blobtee and the stargz tools' own library make of each other's layers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blobtee.compression import Compression, decompress, is_estargz
from blobtee.content import LocalStore, Trust
from blobtee.conversion import convert
from blobtee.conversion.estargz import EstargzSummary, EstargzWriter, payload_nbytes
from blobtee.conversion.prefetch import NO_PREFETCH, PREFETCH, prioritise
from blobtee.layers import Entry, EntryType, entries
from blobtee.oci import Descriptor, Digest, mediatypes
from blobtee.seeking import tables
from tests.integration import origins
from tests.integration.servers import tool
from tests.unit.conversion.tables import Blob
from tests.unit.seeking.support import CountingReader

SOURCE = Path(__file__).parent / "stargz"
CHUNK = 256 << 10
TYPES = {
    EntryType.FILE: "reg",
    EntryType.DIRECTORY: "dir",
    EntryType.SYMLINK: "symlink",
    EntryType.CHARACTER_DEVICE: "char",
    EntryType.BLOCK_DEVICE: "block",
    EntryType.FIFO: "fifo",
}


class Stargz:
    """The program in `stargz/`."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def run(self, *arguments: str | Path) -> str:
        done = subprocess.run([self._program, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def verify(self, blob: Path, toc: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("verify", blob, toc))
        assert found["toc"] == toc
        return found


@pytest.fixture(scope="session")
def stargz(tmp_path_factory: pytest.TempPathFactory) -> Stargz:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.fail("Go is missing: install Go 1.25 or newer (https://go.dev/dl) and put it on PATH")
    program = tmp_path_factory.mktemp("stargz") / "stargz"
    done = subprocess.run(
        [go, "build", "-o", program, "."], cwd=SOURCE, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return Stargz(program)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return origins.tree(tmp_path_factory.mktemp("origins") / "tree")


@pytest.fixture(scope="module", params=origins.ORIGINS)
def tar(request: pytest.FixtureRequest, tree: Path) -> bytes:
    return origins.ORIGINS[request.param](tree)


def packed(tar: bytes, path: Path, *, chunk: int = CHUNK) -> EstargzSummary:
    with path.open("wb") as file, EstargzWriter(file.write, chunk_size=chunk) as writer:
        writer.write(tar)
        return writer.finish()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def described(tar: bytes) -> dict[str, dict[str, Any]]:
    """What the stargz library is to say of each path."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries(io.BytesIO(tar)):
        if entry.type is EntryType.HARDLINK:
            found[entry.path] = found[entry.linkname]
        else:
            found[entry.path] = _fields(entry)
    return found


def _fields(entry: Entry) -> dict[str, Any]:
    fields = {
        "name": entry.path,
        "type": TYPES[entry.type],
        "size": entry.size,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "uname": entry.uname,
        "gname": entry.gname,
        "mtime": (entry.mtime_ns + 500_000_000) // 1_000_000_000,
        "linkname": entry.linkname,
        "major": entry.devmajor,
        "minor": entry.devminor,
        "xattrs": {key: base64.b64encode(value).decode() for key, value in entry.xattrs.items()} or None,
    }
    if entry.type is EntryType.FILE:
        fields["content"] = fields["digest"] = sha256(entry.data().read())
    return fields


def assert_same_tree(found: dict[str, Any], expected: dict[str, dict[str, Any]]) -> None:
    assert set(found) == set(expected) | {""}
    for path, fields in expected.items():
        assert {key: found[path][key] for key in fields} == fields, path


def test_the_stargz_library_reads_and_verifies_the_tree_that_we_packed(
    stargz: Stargz, tar: bytes, tmp_path: Path
) -> None:
    summary = packed(tar, tmp_path / "layer")
    found = stargz.verify(tmp_path / "layer", summary.toc_digest)
    assert_same_tree(found["nodes"], described(tar))
    assert found["unpacked"] == sha256(tar), "what BuildKit decodes is to be the tar"
    assert found["nodes"]["noise"]["chunks"] == (3 << 20) // CHUNK
    assert found["nodes"]["the same text"]["name"] == found["nodes"]["text"]["name"]
    assert found["nodes"]["the same text"]["links"] == 2


def test_ordinary_tools_take_the_layer_for_what_it_also_is(tar: bytes, tmp_path: Path) -> None:
    packed(tar, tmp_path / "layer")
    data = (tmp_path / "layer").read_bytes()
    subprocess.run([tool("gzip"), "-t"], input=data, check=True)
    listing = [tool("tar"), "--quoting-style=literal", "-t"]
    ours = subprocess.run([*listing, "-z"], input=data, capture_output=True, check=True)
    theirs = subprocess.run(listing, input=tar, capture_output=True, check=True)
    # Behind a tar without an end-of-archive mark, the table is one more file.
    assert ours.stdout in (theirs.stdout, theirs.stdout + b"stargz.index.json\n")
    assert ours.stderr == theirs.stderr


def tar_of(*found: tuple[str, bytes, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, fields in found:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_the_stargz_library_reads_what_is_at_the_edges(stargz: Stargz, tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(3 * CHUNK)
    holes = {"GNU.sparse.map": f"{CHUNK - 1},6,{3 * CHUNK},4", "GNU.sparse.size": str(9 * CHUNK + 1)}
    holes["GNU.sparse.name"] = "holes/a"
    tar = tar_of(
        ("no/parents/at/all", b"x", {}),
        ("exactly one chunk", noise[:CHUNK], {}),
        ("one byte more", noise[: CHUNK + 1], {}),
        ("three chunks", noise, {}),
        ("empty", b"", {"mtime": 1}),
        ("GNUSparseFile.0/a", b"across" + b"four", {"pax_headers": holes}),
        ("GNUSparseFile.0/b", b"1", {"pax_headers": {**holes, "GNU.sparse.map": "0,1", "GNU.sparse.name": "holes/b"}}),
        ("chr", b"", {"type": tarfile.CHRTYPE, "devmajor": 300, "devminor": 70_000}),
        ("blk", b"", {"type": tarfile.BLKTYPE, "devmajor": 1, "devminor": 2}),
        (
            "attributes",
            b"y",
            {"pax_headers": {"SCHILY.xattr.security.capability": "\x01\x02", "SCHILY.xattr.user.e": ""}},
        ),
        *((f"dir/{number}", b"", {"type": tarfile.SYMTYPE, "linkname": "../é"}) for number in range(3000)),
        ("last", b"z" * 511, {"uid": 2**40, "gid": 70_000, "mtime": -5, "mode": 0o7777}),
    )
    summary = packed(tar, tmp_path / "layer")
    found = stargz.verify(tmp_path / "layer", summary.toc_digest)
    expected = described(tar)
    for implied in ("no", "no/parents", "no/parents/at", "holes", "dir"):
        assert found["nodes"].pop(implied)["type"] == "dir"
    assert_same_tree(found["nodes"], expected)
    assert found["unpacked"] == sha256(tar)
    assert [found["nodes"][name]["chunks"] for name in ("exactly one chunk", "one byte more", "holes/a")] == [1, 2, 10]


def test_the_stargz_library_reads_a_layer_without_entries(stargz: Stargz, tmp_path: Path) -> None:
    for tar in (b"", bytes(1024)):
        summary = packed(tar, tmp_path / "layer")
        found = stargz.verify(tmp_path / "layer", summary.toc_digest)
        assert found["unpacked"] == sha256(tar)
        assert list(found["nodes"]) == [""]


def test_the_landmark_comes_behind_what_was_named(stargz: Stargz, tree: Path, tmp_path: Path) -> None:
    tar = origins.gnu_tar(tree)
    for paths, landmark in ((["the same text", "etc/name"], PREFETCH), ([], NO_PREFETCH)):
        with (tmp_path / "layer").open("wb") as file, EstargzWriter(file.write) as writer:
            assert prioritise(io.BytesIO(tar), paths, writer.write) == []
            summary = writer.finish()
        nodes = stargz.verify(tmp_path / "layer", summary.toc_digest)["nodes"]
        assert nodes[landmark]["content"] == sha256(b"\x0f")
        before = {path for path, node in nodes.items() if 0 < node["offset"] < nodes[landmark]["offset"]}
        assert before == ({"text", "the same text", "etc/name"} if paths else set())
        del nodes[landmark]
        assert_same_tree(nodes, described(tar))


class Foreign:
    """A blob as a stored layer."""

    def __init__(self, store: LocalStore, path: Path) -> None:
        data = path.read_bytes()
        self.store = store
        self.desc = Descriptor(mediatypes.OCI_LAYER + "+gzip", Digest.of(data), len(data))
        with store.writer("foreign") as writer:
            writer.write(data)
            writer.commit()
        with store.reader_at(self.desc) as reader:
            assert is_estargz(reader)
            part = reader.read_at(0, payload_nbytes(reader))
        self.tar = decompress(io.BytesIO(part)).readall()

    def converted(self, kind: str) -> tuple[Descriptor, bytes]:
        desc = convert(self.store, self.desc, Compression(kind))
        with self.store.reader_at(desc) as reader:
            return desc, reader.read_at(0, reader.size)


def test_the_tar_comes_back_out_of_what_the_stargz_library_packed(
    stargz: Stargz, tree: Path, store: LocalStore, tmp_path: Path
) -> None:
    tar = origins.gnu_tar(tree)
    (tmp_path / "tar").write_bytes(tar)
    stargz.run("build", tmp_path / "tar", tmp_path / "theirs", "6")
    foreign = Foreign(store, tmp_path / "theirs")
    assert foreign.tar == tar
    for kind in ("uncompressed", "zstd"):
        _, data = foreign.converted(kind)
        assert decompress(io.BytesIO(data)).readall() == tar
    desc, data = foreign.converted("estargz")
    (tmp_path / "ours").write_bytes(data)
    toc = desc.annotations["containerd.io/snapshot/stargz/toc.digest"]
    assert stargz.verify(tmp_path / "ours", toc)["unpacked"] == sha256(tar)


def test_a_layer_that_the_stargz_library_wrote_anew_lacks_only_its_end_mark(
    stargz: Stargz, tree: Path, store: LocalStore, tmp_path: Path
) -> None:
    tar = origins.gnu_tar(tree)
    (tmp_path / "tar").write_bytes(tar)
    stargz.run("rebuild", tmp_path / "tar", tmp_path / "theirs", "etc/name")
    foreign = Foreign(store, tmp_path / "theirs")
    names = [entry.path for entry in entries(io.BytesIO(foreign.tar))]
    assert names[:4] == ["", "etc", "etc/name", PREFETCH]
    assert sorted(names) == sorted([PREFETCH, *(entry.path for entry in entries(io.BytesIO(tar)))])
    desc, data = foreign.converted("estargz")
    (tmp_path / "ours").write_bytes(data)
    found = stargz.verify(tmp_path / "ours", desc.annotations["containerd.io/snapshot/stargz/toc.digest"])
    assert found["unpacked"] == sha256(foreign.tar)
    del found["nodes"][PREFETCH]  # where no owner is named, readers take the name that the id had before
    assert_same_tree(found["nodes"], described(tar))


@pytest.mark.parametrize("how", ["build", "rebuild"])
def test_files_of_what_the_stargz_library_packed_are_read_one_by_one(
    stargz: Stargz, tree: Path, tmp_path: Path, how: str
) -> None:
    tar = origins.gnu_tar(tree)
    (tmp_path / "tar").write_bytes(tar)
    stargz.run(how, tmp_path / "tar", tmp_path / "theirs", "6" if how == "build" else "etc/name")
    data = (tmp_path / "theirs").read_bytes()
    toc = {"containerd.io/snapshot/stargz/toc.digest": sha256(Blob(data).json)}
    desc = Descriptor(mediatypes.OCI_LAYER + "+gzip", Digest.of(data), len(data), annotations=toc)
    reader = CountingReader(data, Trust.RAW)
    contents = tables.contents(desc, reader)
    found = {entry.path: entry for entry in contents.entries}
    for entry in entries(io.BytesIO(tar)):
        told = found[entry.path]
        assert (told.type, told.size, told.mode, told.linkname) == (entry.type, entry.size, entry.mode, entry.linkname)
        assert told.xattrs == entry.xattrs
        if entry.type is EntryType.FILE:
            with contents.open(reader, told) as file, entry.data() as expected:
                assert file.readall() == expected.readall(), entry.path
    assert contents.trust(reader.trust) is Trust.ATTESTED
