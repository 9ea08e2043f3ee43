"""The walking differ: what it writes, and that applying it to the lower tree gives the upper one."""

from __future__ import annotations

import io
import os
import resource
import socket
import stat
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import (
    InvalidArgument,
    TooLarge,
)
from blobtee.layers import EntryType, write_changes
from blobtee.layers.blocks import PIECE
from tests.unit.layers.trees import at, changes, clone, contents, descend, listed, needs_root, paths, put, tree

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, as setcap writes it


def check(lower: Path, upper: Path) -> list[str]:
    """The paths of the layer between the trees; applying it to a copy of the lower one must give the upper one."""
    tar = changes(lower, upper)
    made = lower.parent / "made"
    subprocess.run(["rm", "-rf", made], check=True)
    clone(lower, made)
    put(tar, made)
    assert tree(made) == tree(upper)
    assert paths(changes(made, upper)) == []
    return paths(tar)


def test_a_whole_tree_comes_in_order_without_its_root(upper: Path) -> None:
    assert paths(changes(None, upper)) == [
        "a",
        "a/deep",
        "a/deep/er",
        "a/deep/er/file",
        "a/file",
        "a-b",
        "a-b/file",
        "b",
        "b/file",
        "file",
        "gone",
        "gone/file",
        "gone/sub",
        "gone/sub/file",
    ]


def test_names_are_ordered_by_their_bytes(tmp_path: Path) -> None:
    names = ["B", "a", "a b", "a.b", "ab", "é", "\ufffd", "\U0001f600", "\udcc0", "\udcff"]
    for name in names:
        (tmp_path / name).touch()
    assert [os.fsencode(path) for path in paths(changes(None, tmp_path))] == sorted(map(os.fsencode, names))


def test_equal_trees_differ_in_nothing(lower: Path, upper: Path) -> None:
    tar = changes(lower, upper)
    assert tar == bytes(1024)
    assert changes(lower, lower) == tar


def test_an_empty_directory_is_an_empty_tar(tmp_path: Path) -> None:
    assert changes(None, tmp_path) == bytes(1024)


def test_the_same_tree_gives_the_same_bytes(upper: Path) -> None:
    again = upper.parent / "again"
    # Other inodes, another order of creation.
    again.mkdir()
    for name in sorted(os.listdir(upper), reverse=True):
        clone(upper / name, again / name)
    assert changes(None, again) == changes(None, upper)
    os.link(upper / "file", upper / "z")
    os.link(again / "file", again / "z")
    assert changes(None, again) == changes(None, upper)


def test_what_was_added_comes_with_its_parents(lower: Path, upper: Path) -> None:
    (upper / "a/deep/er/new").write_bytes(b"new")
    at(upper / "a/deep/er", 1_000_000, nanoseconds=1)
    assert check(lower, upper) == ["a", "a/deep", "a/deep/er", "a/deep/er/new"]


def test_what_was_deleted_is_one_whiteout(lower: Path, upper: Path) -> None:
    subprocess.run(["rm", "-r", upper / "gone", upper / "file", upper / "a/deep/er/file"], check=True)
    found = check(lower, upper)
    assert found == ["a", "a/deep", "a/deep/er", "a/deep/er/.wh.file", ".wh.file", ".wh.gone"]
    whiteout = next(entry for entry in listed(changes(lower, upper)) if entry.path == ".wh.gone")
    assert whiteout.type is EntryType.FILE
    assert (whiteout.size, whiteout.mode, whiteout.uid, whiteout.gid, whiteout.mtime_ns) == (0, 0, 0, 0, 0)


def test_whiteouts_stand_where_the_name_would(lower: Path, upper: Path) -> None:
    os.remove(upper / "b/file")
    os.remove(upper / "a/file")
    (upper / "zz").touch()
    (upper / "aa").touch()
    assert check(lower, upper) == ["a", "a/.wh.file", "aa", "b", "b/.wh.file", "zz"]


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")
    at(path, 1_000_000, nanoseconds=1)


@pytest.mark.parametrize(
    "change",
    [
        _grow,
        lambda path: os.chmod(path, 0o4755),
        lambda path: at(path, 1_000_001, nanoseconds=1),
        lambda path: at(path, 1_000_000, nanoseconds=2),
        lambda path: at(path, -5, nanoseconds=500),
        lambda path: os.setxattr(path, "user.a", b"x"),
        pytest.param(lambda path: os.chown(path, 1, -1), marks=needs_root),
        pytest.param(lambda path: os.chown(path, -1, 3_000_000_000), marks=needs_root),
        pytest.param(lambda path: os.setxattr(path, "security.capability", CAPABILITY), marks=needs_root),
        pytest.param(lambda path: os.setxattr(path, "trusted.a", b"x"), marks=needs_root),
    ],
    ids=["size", "mode", "seconds", "nanoseconds", "before 1970", "user", "uid", "gid", "capability", "trusted"],
)
def test_whatever_differs_is_a_change(change: Callable[[Path], None], lower: Path, upper: Path) -> None:
    change(upper / "b/file")
    assert check(lower, upper) == ["b", "b/file"]


def test_a_directory_is_written_for_itself_or_for_what_is_in_it(lower: Path, upper: Path) -> None:
    os.chmod(upper / "a/deep", 0o700)
    os.utime(upper / "b")
    os.setxattr(upper / "gone/sub", "user.a", b"x")
    assert check(lower, upper) == ["a", "a/deep", "b", "gone", "gone/sub"]


def test_times_without_nanoseconds_are_asked_for_the_contents(lower: Path, upper: Path) -> None:
    at(upper / "file", 1_000_000)
    at(upper / "b/file", 1_000_000)
    at(upper / "b", 1_000_000)
    (upper / "a/file").write_bytes(b"a/fILE")
    at(upper / "a/file", 1_000_000)
    assert paths(changes(lower, upper)) == ["a", "a/file"]
    # Equal contents, but a whole second apart.
    at(upper / "file", 1_000_001)
    assert paths(changes(lower, upper)) == ["a", "a/file", "file"]


def test_large_contents_are_compared_to_the_end(lower: Path, upper: Path) -> None:
    for root in (lower, upper):
        (root / "file").write_bytes(bytes(2 * PIECE + 10))
        at(root / "file", 5)
    assert paths(changes(lower, upper)) == []
    with (upper / "file").open("r+b") as file:
        file.seek(2 * PIECE + 9)
        file.write(b"x")
    at(upper / "file", 5)
    assert paths(changes(lower, upper)) == ["file"]


def test_symbolic_links_are_compared_by_their_text(lower: Path, upper: Path) -> None:
    for root in (lower, upper):
        for name in ("same", "other"):
            (root / name).symlink_to("target")
            at(root / name, 7, nanoseconds=7)
    os.remove(upper / "other")
    (upper / "other").symlink_to("taRget")
    at(upper / "other", 7, nanoseconds=7)
    assert check(lower, upper) == ["other"]


@pytest.mark.parametrize("first", ["file", "directory", "symlink", "fifo", "nothing"])
@pytest.mark.parametrize("then", ["file", "directory", "symlink", "fifo", "nothing"])
def test_anything_may_become_anything(first: str, then: str, lower: Path, upper: Path) -> None:
    for root, what in ((lower, first), (upper, then)):
        path = root / "x"
        if what == "file":
            path.write_bytes(b"x")
        elif what == "directory":
            path.mkdir()
            (path / "below").write_bytes(b"x")
            at(path / "below", 9, nanoseconds=9)
        elif what == "symlink":
            path.symlink_to("a")
        elif what == "fifo":
            os.mkfifo(path)
        if what != "nothing":
            at(path, 9, nanoseconds=9)
    expected = ["x", "x/below"] if then == "directory" else [".wh.x"] if then == "nothing" else ["x"]
    assert check(lower, upper) == (expected if first != then else [])


def test_a_socket_is_left_out_but_hides_what_it_replaced(lower: Path, upper: Path) -> None:
    os.remove(upper / "file")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind(os.fspath(upper / "file"))
        two.bind(os.fspath(upper / "b/socket"))
        assert paths(changes(lower, upper)) == ["b", ".wh.file"]
        assert paths(changes(None, upper / "b")) == ["file"]


@needs_root
def test_devices_are_kept_and_compared(lower: Path, upper: Path) -> None:
    os.mkdir(upper / "dev")
    os.mknod(upper / "dev/block", stat.S_IFBLK | 0o640, os.makedev(4095, 1_048_575))
    os.mknod(upper / "dev/char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert check(lower, upper) == ["dev", "dev/block", "dev/char"]
    for root, minor in ((lower, 1), (upper, 2)):
        os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, minor))
        at(root / "null", 3, nanoseconds=3)
    assert check(lower, upper) == ["dev", "dev/block", "dev/char", "null"]


def test_attributes_are_kept_less_those_of_the_host_and_of_overlays(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    file = tmp_path / "dir/file"
    file.touch()
    for path in (file, tmp_path / "dir"):
        for name in ("user.kept", "user.overlay.opaque", "user.fuseoverlayfs.origin"):
            os.setxattr(path, name, b"y\0=\n")
    for entry in listed(changes(None, tmp_path)):
        assert entry.xattrs == {"user.kept": b"y\0=\n"}


@needs_root
def test_attributes_of_root_are_kept_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    link = tmp_path / "link"
    link.symlink_to("file")
    os.setxattr(file, "trusted.overlay.origin", b"x")
    os.setxattr(file, "security.capability", CAPABILITY)
    os.setxattr(file, "security.other", b"x")
    os.setxattr(link, "trusted.kept", b"x", follow_symlinks=False)
    assert [dict(entry.xattrs) for entry in listed(changes(None, tmp_path))] == [
        {"security.capability": CAPABILITY},
        {"trusted.kept": b"x"},
    ]


def test_an_attribute_that_no_tar_can_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.setxattr(tmp_path / "file", "user.a=b", b"x")
    with pytest.raises(InvalidArgument, match=r"file.*user\.a=b"):
        changes(None, tmp_path)


def test_hard_links_are_links_to_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/b").write_bytes(b"content")
    os.link(tmp_path / "d/b", tmp_path / "a")
    os.link(tmp_path / "d/b", tmp_path / "z")
    (tmp_path / "s").symlink_to("x")
    os.link(tmp_path / "s", tmp_path / "t", follow_symlinks=False)
    tar = changes(None, tmp_path)
    assert [(entry.path, entry.type.value, entry.linkname) for entry in listed(tar)] == [
        ("a", "file", ""),
        ("d", "directory", ""),
        ("d/b", "hardlink", "a"),
        ("s", "symlink", "x"),
        ("t", "hardlink", "s"),
        ("z", "hardlink", "a"),
    ]
    put(tar, tmp_path / "made")
    made = tree(tmp_path / "made")
    assert made[b"a"].links == (b"a", b"d/b", b"z")


def test_a_link_out_of_the_tree_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"content")
    (tmp_path / "in").mkdir()
    os.link(tmp_path / "out", tmp_path / "in/file")
    assert list(contents(changes(None, tmp_path / "in"))) == [("file", b"content")]


@needs_root
def test_links_carry_what_setting_their_owner_would_take_away(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.setxattr(tmp_path / "a", "security.capability", CAPABILITY)
    os.link(tmp_path / "a", tmp_path / "b")
    assert all(entry.xattrs == {"security.capability": CAPABILITY} for entry in listed(changes(None, tmp_path)))
    put(changes(None, tmp_path), tmp_path / "made")
    assert os.getxattr(tmp_path / "made/a", "security.capability") == CAPABILITY


def test_a_new_link_to_an_unchanged_file_brings_the_content_and_the_link(lower: Path, upper: Path) -> None:
    os.link(upper / "b/file", upper / "a/later")
    at(upper / "a", 1_000_000, nanoseconds=1)
    assert check(lower, upper) == ["a", "a/later", "b", "b/file"]
    assert dict(contents(changes(lower, upper)))["a/later"] == b"b/file"


def test_an_unchanged_name_met_before_its_changed_one_is_linked_after_it(lower: Path, upper: Path) -> None:
    os.link(upper / "a/deep/er/file", upper / "b/later")
    at(upper / "b", 1_000_000, nanoseconds=1)
    assert check(lower, upper) == ["b", "b/later", "a", "a/deep", "a/deep/er", "a/deep/er/file"]
    linked = listed(changes(lower, upper))[-1]
    assert (linked.type, linked.linkname) == (EntryType.HARDLINK, "b/later")


def test_a_changed_file_changes_under_all_its_names(lower: Path, upper: Path) -> None:
    for root in (lower, upper):
        for name in ("b/link", "zz"):
            os.link(root / "file", root / name)
        at(root / "b", 1_000_000, nanoseconds=1)
    assert check(lower, upper) == []
    _grow(upper / "file")
    assert check(lower, upper) == ["b", "b/link", "file", "zz"]


def test_one_name_taken_out_of_a_link_leaves_the_others_alone(lower: Path, upper: Path) -> None:
    for root in (lower, upper):
        os.link(root / "file", root / "zz")
    os.remove(upper / "zz")
    (upper / "zz").write_bytes(b"other")
    tar = changes(lower, upper)
    assert list(contents(tar)) == [("zz", b"other")]
    put(tar, lower)
    assert (lower / "file").read_bytes() == b"file"


def test_links_to_a_symbolic_link_are_found_late_too(lower: Path, upper: Path) -> None:
    for root in (lower, upper):
        (root / "b/s").symlink_to("x")
        at(root / "b/s", 5, nanoseconds=5)
        at(root / "b", 1_000_000, nanoseconds=1)
    os.link(upper / "b/s", upper / "t", follow_symlinks=False)
    assert check(lower, upper) == ["t", "b", "b/s"]


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_names_that_would_mean_something_else_are_refused(name: str, kind: str, lower: Path, upper: Path) -> None:
    path = upper / "a/deep" / name
    path.touch() if kind == "file" else path.mkdir()
    for below in (None, lower):
        with pytest.raises(InvalidArgument, match=r"a/deep/\.wh"):
            changes(below, upper)
    with pytest.raises(InvalidArgument, match=r"a/deep/\.wh"):
        changes(upper, lower)


def test_times_after_the_epoch_become_the_epoch(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, seconds, nanoseconds in (("d/new", 2000, 1), ("d/old", 999, 5), ("d/same", 1000, 0), ("d/just", 1000, 1)):
        (tmp_path / name).touch()
        at(tmp_path / name, seconds, nanoseconds=nanoseconds)
    os.utime(tmp_path / "d")
    times = {entry.path: entry.mtime_ns for entry in listed(changes(None, tmp_path, epoch=1000))}
    assert times == {
        "d": 1000 * 10**9,
        "d/just": 1000 * 10**9,
        "d/new": 1000 * 10**9,
        "d/old": 999 * 10**9 + 5,
        "d/same": 1000 * 10**9,
    }


def test_files_of_every_size_are_whole(tmp_path: Path) -> None:
    expected = {}
    for size in (0, 1, 511, 512, 513, 256 << 10, (256 << 10) + 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77):
        expected[f"{size:09}"] = os.urandom(size)
        (tmp_path / f"{size:09}").write_bytes(expected[f"{size:09}"])
    tar = changes(None, tmp_path)
    assert dict(contents(tar)) == expected
    with tarfile.open(fileobj=io.BytesIO(tar)) as python:
        assert {member.name: member.size for member in python} == {name: int(name) for name in expected}


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (5 * PIECE, []),
        (5 * PIECE, [0]),
        (5 * PIECE, [2 * PIECE + 4096]),
        (5 * PIECE + 3, [4096, 3 * PIECE, 5 * PIECE]),
        (300_000, [200_000]),
        (4096, []),
    ],
)
def test_holes_read_as_zeros(size: int, data: list[int], tmp_path: Path) -> None:
    expected = bytearray(size)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
        for position in data:
            file.seek(position)
            expected[position : position + 3] = b"abc"
            file.write(b"abc")
    assert list(contents(changes(None, tmp_path))) == [("sparse", bytes(expected))]


def test_holes_cost_no_memory_and_little_time(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(9 << 30)
    total = 0

    def count(piece: object) -> None:
        nonlocal total
        total += memoryview(piece).nbytes  # type: ignore[arg-type]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_changes(None, tmp_path, count)
    assert total >= 9 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_long_and_strange_names_survive(tmp_path: Path) -> None:
    root = tmp_path / "upper"
    root.mkdir()
    for name in (
        b"n" * 255,
        b"\xff" * 255,
        b"new\nline",
        b" blank ",
        "ü".encode() * 127,
        b"\\",
        b"a=b",
        b"-x",
        b".whx",
    ):
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(name)
    (root / ("d" * 200)).mkdir()
    (root / ("d" * 200) / ("e" * 200)).symlink_to("t" * 4000)
    put(changes(None, root), tmp_path / "made")
    assert tree(tmp_path / "made") == tree(root)


def test_trees_may_be_deeper_than_paths_are_long(tmp_path: Path, count_descriptors: Callable[[], int]) -> None:
    descend(tmp_path, "d", 5000)
    try:
        before = count_descriptors()
        tar = changes(None, tmp_path)
        assert count_descriptors() == before
        assert changes(tmp_path, tmp_path) == bytes(1024)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
    found = paths(tar)
    assert len(found) == 5001
    assert found[-1] == "d/" * 5000 + "file"


def test_paths_that_no_reader_takes_are_refused(tmp_path: Path) -> None:
    descend(tmp_path, "d" * 200, 170)
    try:
        with pytest.raises(TooLarge):
            changes(None, tmp_path)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / ("d" * 200)], check=True)


@needs_root
@pytest.mark.parametrize(
    "command",
    [
        ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-", "-C"],
        ["bsdtar", "-xpf", "-", "--xattrs", "--numeric-owner", "-C"],
    ],
    ids=["GNU tar", "bsdtar"],
)
def test_other_tars_unpack_the_same_tree(command: list[str], tmp_path: Path) -> None:
    root = tmp_path / "upper"
    (root / "dir" / ("n" * 255)).mkdir(parents=True)
    (root / "file").write_bytes(os.urandom(100_000))
    os.setxattr(root / "file", "user.a", b"\0\n\xff=")
    os.chown(root / "file", 3_000_000, 1_000_000_000)
    os.setxattr(root / "file", "security.capability", CAPABILITY)
    os.link(root / "file", root / "dir/link")
    (root / ("x" * 150)).write_bytes(b"x")
    (root / "ä").touch()
    with open(os.fsencode(root) + b"/\xff\xfe" + b"\xfd" * 150, "wb"):
        pass
    (root / "symlink").symlink_to("y" * 300)
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    with (root / "sparse").open("wb") as file:
        file.truncate(3_000_000)
    os.chmod(root / "dir", 0o2750)
    # bsdtar adds the fraction of a time before 1970 instead of taking it away.
    at(root / "null", -1_000_000, nanoseconds=500 if command[0] == "tar" else 0)
    at(root / "ä", -1)
    made = tmp_path / "made"
    made.mkdir()
    subprocess.run([*command, made], input=changes(None, root), check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert tree(made) == tree(root)


NAMES = st.sampled_from(["a", "a.b", "b", "é", "\udcff", "n" * 120])
TIMES = st.sampled_from([0, 1, 10**9, 10**9 + 1, 5 * 10**9, -(10**9), -1])
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.sampled_from([b"", b"x", b"y", b"x" * 600]), TIMES),
    st.tuples(st.just("symlink"), st.sampled_from([b"a", b"b"]), TIMES),
    st.tuples(st.just("fifo"), st.just(b""), TIMES),
    st.tuples(st.just("attribute"), st.sampled_from([b"1", b"2"]), TIMES),
    st.tuples(st.just("link"), st.just(b""), TIMES),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(LEAVES, st.tuples(st.just("directory"), below, TIMES)), max_size=5),
    max_leaves=12,
)


def _grow_tree(root: Path, given: dict[str, Any], files: list[Path]) -> None:
    root.mkdir()
    for name, (kind, content, time) in given.items():
        path = root / name
        if kind == "directory":
            _grow_tree(path, content, files)
        elif kind == "symlink":
            os.symlink(content, path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link" and files:
            os.link(files[-1], path)
        else:
            path.write_bytes(content if kind == "file" else b"")
            if kind == "attribute":
                os.setxattr(path, "user.a", content)
            files.append(path)
        os.utime(path, ns=(time, time), follow_symlinks=False)


@settings(deadline=None)
@given(TREES, TREES)
def test_the_changes_on_top_of_the_lower_tree_are_the_upper_tree(first: dict[str, Any], then: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        lower, upper = Path(directory, "lower"), Path(directory, "upper")
        _grow_tree(lower, first, [])
        _grow_tree(upper, then, [])
        expected = tree(upper, links=False)
        put(changes(None, upper), Path(directory, "whole"))
        assert tree(Path(directory, "whole")) == tree(upper)
        put(changes(lower, upper), lower)
        found = tree(lower, links=False)
        # A time that may have lost its nanoseconds counts as equal when the rest is.
        for path, node in expected.items():
            if node.mtime_ns != found[path].mtime_ns and not (node.mtime_ns % 10**9 and found[path].mtime_ns % 10**9):
                expected[path] = node._replace(mtime_ns=found[path].mtime_ns)
                assert node.mtime_ns // 10**9 == found[path].mtime_ns // 10**9
        assert found == expected
