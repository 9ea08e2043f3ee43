"""Random stacks of layers: the tree is what unpacking them leaves, and a path leads where it does in a chroot.

`BLOBTEE_IMAGE_STACKS` says how many stacks (300).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import stat
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobtee import layers
from blobtee.content import MemoryStore, Trust
from blobtee.errors import BlobteeError, CorruptData, NotFound
from blobtee.image import Node, Tree
from blobtee.layers import EntryType
from tests.unit.seeking import blobs

STACKS = int(os.environ.get("BLOBTEE_IMAGE_STACKS", "300"))
SETTINGS = settings(max_examples=STACKS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
KINDS = ("uncompressed", "gzip", "zstd", "estargz", "containers", "stargz")
_WHEN = 1_600_000_000
"""What `blobs.described` says of every entry."""
_TYPES = {
    "f": tarfile.REGTYPE,
    "d": tarfile.DIRTYPE,
    "s": tarfile.SYMTYPE,
    "h": tarfile.LNKTYPE,
    "p": tarfile.FIFOTYPE,
}


@dataclass(frozen=True)
class Put:
    """An entry of a tar: f(ile), d(irectory), s(ymlink), h(ard link) or p(ipe), its name as written; `value` is content
    or target, `number` its mode and owners."""

    kind: str
    name: str
    value: str = ""
    number: int = 0


def tar(puts: list[Put]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for put in puts:
            member = tarfile.TarInfo(put.name)
            member.type, member.mtime = _TYPES[put.kind], _WHEN
            member.mode, member.uid, member.gid = 0o700 + put.number, put.number, 2 * put.number
            data = put.value.encode() if put.kind == "f" else b""
            member.size = len(data)
            member.linkname = put.value if put.kind in "sh" else ""
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def packed(data: bytes, kind: str) -> blobs.Blob:
    return blobs.chunked(data, kind) if kind in ("containers", "stargz") else blobs.ours(kind, data)


def tree(made: list[blobs.Blob], trust: Trust) -> Tree:
    store = MemoryStore()
    for number, blob in enumerate(made):
        with store.writer(str(number)) as writer, contextlib.suppress(BlobteeError):
            writer.write(blob.data)
            writer.commit(blob.desc.size, blob.desc.digest)
    return Tree([blob.desc for blob in made], store, trust)


def seen(found: Tree) -> dict[str, tuple[object, ...]]:
    """Path to all that is told of it."""
    result = {}
    for node in found.walk():
        content: object = node.linkname
        if node.type is EntryType.FILE:
            with found.open_node(node) as file:
                content = file.readall()
        result[node.path] = (*_told(node), content)
    return result


def _told(node: Node) -> tuple[object, ...]:
    entry = node.entry
    mode = 0o777 if node.type is EntryType.SYMLINK else node.mode
    return node.type.value, mode, entry.uid, entry.gid, entry.mtime_ns


def on_disk(root: Path) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for folder, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = Path(folder, name)
            status = path.lstat()
            content: object = ""
            if stat.S_ISREG(status.st_mode):
                kind, content = EntryType.FILE, path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                kind, content = EntryType.SYMLINK, os.readlink(path)
            else:
                kind = EntryType.DIRECTORY if stat.S_ISDIR(status.st_mode) else EntryType.FIFO
            result[str(path.relative_to(root))] = (
                kind.value, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content
            )  # fmt: skip
    return result


PARTS = st.sampled_from(["a", "b", "c"])
ODD = st.sampled_from([".", "", ".wh.a", ".wh.b", ".wh..wh.plnk", ".wh..wh..opq", ".wh..wh.", "..", "a "])
NAMES = st.tuples(
    st.sampled_from(["", "", "", "/", "./", "//"]), st.lists(PARTS | PARTS | PARTS | ODD, min_size=1, max_size=4)
).map(lambda name: name[0] + "/".join(name[1]))
CLEAN = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
TARGETS = st.tuples(
    st.sampled_from(["", "", "/"]), st.lists(PARTS | st.sampled_from(["..", "."]), min_size=1, max_size=4)
).map(lambda target: target[0] + "/".join(target[1]))
NUMBERS = st.integers(0, 7)
PUTS = st.one_of(
    st.builds(Put, st.just("f"), CLEAN, st.text("xyz", max_size=3), NUMBERS),
    st.builds(Put, st.just("d"), CLEAN, st.just(""), NUMBERS),
    st.builds(Put, st.just("s"), CLEAN, TARGETS, NUMBERS),
    st.builds(Put, st.just("h"), CLEAN, CLEAN, NUMBERS),
    st.builds(Put, st.sampled_from("fdp"), CLEAN | NAMES, st.just("odd"), NUMBERS),
    st.builds(Put, st.just("h"), NAMES, NAMES, NUMBERS),
    st.builds(Put, st.sampled_from("fd"), CLEAN.map(lambda path: f"{path}/.wh..wh..opq")),
    st.builds(Put, st.sampled_from("fd"), CLEAN.map(lambda path: "/.wh.".join(f"/{path}".rsplit("/", 1)))),
    st.builds(Put, st.just("d"), st.just("./"), st.just(""), NUMBERS),
)
STACK = st.lists(st.lists(PUTS, max_size=7), min_size=1, max_size=4)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="owners are set by root")
def test_a_stack_is_seen_as_unpacking_leaves_it_whoever_tells_of_its_layers() -> None:
    @SETTINGS
    @given(STACK, st.integers(0, 1 << 20))
    def trial(stack: list[list[Put]], draw: int) -> None:
        tars = [tar(puts) for puts in stack]
        kinds = [KINDS[draw // len(KINDS) ** number % len(KINDS)] for number in range(len(tars))]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            try:
                for data in tars:
                    layers.apply(io.BytesIO(data), root)
                wanted = on_disk(root)
            except BlobteeError:
                wanted = None
        for chosen, trust in ((["uncompressed"] * len(tars), Trust.BLOB), (kinds, Trust.ATTESTED)):
            try:
                made = [packed(data, kind) for data, kind in zip(tars, chosen, strict=True)]
                found = seen(tree(made, trust))
            except BlobteeError:
                assert wanted is None, "what can be unpacked is not seen"
            else:
                assert wanted is None or found == wanted

    trial()


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10


def kernel_path(root: int, path: str, *, follow: bool) -> str | int:
    """Where `path` leads if `root` is the root, or the number of the kernel's error."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = _How(os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), 0, _RESOLVE_IN_ROOT)
    fd = libc.syscall(_OPENAT2, root, path.encode(), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        return ctypes.get_errno()
    try:
        there = os.readlink(f"/proc/self/fd/{fd}")
        return os.path.relpath(there, os.readlink(f"/proc/self/fd/{root}")).removeprefix(".")
    finally:
        os.close(fd)


def our_path(found: Tree, path: str, *, follow: bool) -> str | int:
    try:
        return found.lookup(path, follow=follow).path
    except NotFound as error:
        return errno.ENOTDIR if "not a directory" in str(error) else errno.ENOENT
    except CorruptData:
        return errno.ELOOP


ASKED = st.tuples(
    st.sampled_from(["", "/"]),
    st.lists(PARTS | PARTS | st.sampled_from(["..", ".", ""]), min_size=1, max_size=5),
    st.sampled_from(["", "", "/", "/.", "/.."]),
).map(lambda path: path[0] + "/".join(path[1]) + path[2])
SOUND = st.one_of(
    st.builds(Put, st.just("f"), CLEAN, st.just("x")),
    st.builds(Put, st.just("d"), CLEAN),
    st.builds(Put, st.just("s"), CLEAN, TARGETS | TARGETS.map(lambda target: target + "/")),
)


@pytest.mark.slow
def test_a_path_leads_where_the_kernel_says_in_a_chroot() -> None:
    root = os.open("/", os.O_PATH)
    known = kernel_path(root, ".", follow=True)
    os.close(root)
    if known != "":
        pytest.skip("this kernel, or who confines us, has no openat2")

    @SETTINGS
    @given(st.lists(st.lists(SOUND, min_size=1, max_size=7), min_size=1, max_size=2), st.lists(ASKED, max_size=8))
    def trial(stack: list[list[Put]], asked: list[str]) -> None:
        tars = [tar(puts) for puts in stack]
        with tempfile.TemporaryDirectory() as folder:
            try:
                for data in tars:
                    layers.apply(io.BytesIO(data), folder)
            except BlobteeError:
                return
            root = os.open(folder, os.O_PATH)
            try:
                for path in asked:
                    found = tree([packed(data, "uncompressed") for data in tars], Trust.BLOB)
                    for follow in (True, False):
                        wanted = kernel_path(root, path or "/", follow=follow)
                        assert our_path(found, path, follow=follow) == wanted, (path, follow)
            finally:
                os.close(root)

    trial()
