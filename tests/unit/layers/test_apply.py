"""Layers put on top of directories: what ordinary ones make of them."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobtee.errors import Cancelled, CorruptData, NotFound, PermissionDenied, StorageFull, TooLarge
from blobtee.layers import Applied, apply
from blobtee.tasks import scope
from tests.unit.layers.tars import (
    NOBODY,
    as_nobody,
    details,
    directory,
    file,
    hardlink,
    member,
    remove,
    symlink,
    tar,
    tree,
)

CAPABILITY = "\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""`cap_net_raw`, permitted and effective, as version 2 is stored."""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "root"
    path.mkdir()
    yield path
    remove(path)


@pytest.fixture
def open_root(tmp_path: Path) -> Iterator[Path]:
    """A root that a user without rights owns, where that user can reach it."""
    path = tmp_path / "open"
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    above = [part for part in path.parents if not stat.S_IMODE(part.stat().st_mode) & 0o001]
    modes = {part: stat.S_IMODE(part.stat().st_mode) for part in above}
    for part in above:
        part.chmod(modes[part] | 0o011)
    yield path
    for part, mode in modes.items():
        part.chmod(mode)


def put(root: Path, *members: tuple[tarfile.TarInfo, bytes], as_root: bool | None = None) -> Applied:
    return apply(io.BytesIO(tar(*members)), root, as_root=as_root)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- kinds of entries


@root_only
def test_each_kind_of_entry_is_made_with_all_that_belongs_to_it(root: Path) -> None:
    applied = put(
        root,
        directory("d", 0o1711, uid=1, gid=2, mtime=5),
        file("d/f", b"content", mode=0o4755, uid=3, gid=4, mtime="7.123456789"),
        symlink("d/l", "../elsewhere", uid=5, gid=6, mtime=8),
        hardlink("d/h", "d/f"),
        member("d/p", tarfile.FIFOTYPE, mode=0o620, uid=7, mtime=9),
        member("d/c", tarfile.CHRTYPE, mode=0o666, device=(1, 3), gid=8),
        member("d/b", tarfile.BLKTYPE, mode=0o660, device=(7, 300)),
    )
    assert applied == Applied(7, 7)
    found = details(root)
    ns = 10**9
    assert found["d"][:5] == (stat.S_IFDIR | 0o1711, 1, 2, 0, 5 * ns)
    assert found["d/f"][:6] == (stat.S_IFREG | 0o4755, 3, 4, 7, 7_123456789, "d/f")
    assert found["d/h"] == found["d/f"]
    assert found["d/l"][1:5] == (5, 6, 12, 8 * ns)
    assert found["d/p"][:5] == (stat.S_IFIFO | 0o620, 7, 0, 0, 9 * ns)
    assert (found["d/c"][0], found["d/c"][2], found["d/c"][6]) == (stat.S_IFCHR | 0o666, 8, os.makedev(1, 3))
    assert (found["d/b"][0], found["d/b"][6]) == (stat.S_IFBLK | 0o660, os.makedev(7, 300))
    assert (root / "d/f").read_bytes() == b"content"
    assert os.readlink(root / "d/l") == "../elsewhere"


@root_only
def test_capabilities_survive_the_change_of_owner(root: Path) -> None:
    put(root, file("f", mode=0o755, uid=1, xattrs={"security.capability": CAPABILITY}))
    assert os.getxattr(root / "f", "security.capability") == CAPABILITY.encode()
    assert mode(root / "f") == 0o755


@root_only
def test_attributes_are_set_on_all_that_can_have_them(root: Path) -> None:
    own = {"user.a": "1", "trusted.b": "ü\0"}
    applied = put(
        root,
        directory("d", xattrs=own),
        file("f", mode=0o444, xattrs=own),
        symlink("l", "f", xattrs=own),
    )
    for name in ("d", "f"):
        assert os.getxattr(root / name, "user.a") == b"1"
        assert os.getxattr(root / name, "trusted.b") == "ü\0".encode()
    assert os.listxattr(root / "l", follow_symlinks=False) == ["trusted.b"]
    assert applied.left_out == 1


@root_only
def test_orders_to_overlayfs_and_labels_of_a_machine_are_not_set(root: Path) -> None:
    names = ["trusted.overlay.opaque", "user.overlay.redirect", "security.selinux"]
    put(root, directory("d", xattrs=dict.fromkeys(names, "y")))
    assert os.listxattr(root / "d") == []


def test_content_is_copied_whole_whatever_its_size(root: Path) -> None:
    sizes = [0, 1, 511, 512, 513, 1 << 20, (1 << 20) + 1, 3_000_000]
    put(root, *[file(str(size), os.urandom(1) * size) for size in sizes])
    assert [(root / str(size)).stat().st_size for size in sizes] == sizes


def test_holes_stay_holes(root: Path) -> None:
    stored = b"a" * 4096 + b"b" * 4096
    sparse = {
        "GNU.sparse.size": str(1 << 30),
        "GNU.sparse.numblocks": "2",
        "GNU.sparse.map": f"0,4096,{1 << 29},4096",
    }
    applied = put(root, member("f", data=stored, pax=sparse))
    status = (root / "f").stat()
    assert (status.st_size, applied.nbytes) == (1 << 30, 1 << 30)
    assert status.st_blocks * 512 < 1 << 20
    with (root / "f").open("rb") as opened:
        assert opened.read(4097) == b"a" * 4096 + b"\0"
        opened.seek(1 << 29)
        assert opened.read(4097) == b"b" * 4096 + b"\0"


@root_only
def test_an_entry_for_the_root_sets_the_roots(root: Path) -> None:
    put(root, directory("./", 0o700, uid=9, mtime=3), file("f"))
    status = root.stat()
    assert (mode(root), status.st_uid, status.st_mtime_ns) == (0o700, 9, 3 * 10**9)


def test_names_are_the_bytes_of_the_tar(root: Path) -> None:
    put(root, file("\udcff/\udcfe"), symlink("l", "\udcff"))
    assert os.listdir(os.fsencode(root) + b"/\xff") == [b"\xfe"]
    assert os.readlink(os.fsencode(root) + b"/l") == b"\xff"


# ---- on top of what is there


def test_a_directory_keeps_what_is_in_it_and_takes_the_entrys_mode_and_time(root: Path) -> None:
    (root / "d/sub").mkdir(parents=True)
    (root / "d/f").write_bytes(b"old")
    os.setxattr(root / "d", "user.old", b"1")
    put(root, directory("d", 0o700, mtime=4, xattrs={"user.new": "2"}), file("d/g", b"new"))
    assert tree(root) == {"d": "d", "d/sub": "d", "d/f": b"old", "d/g": b"new"}
    assert (mode(root / "d"), (root / "d").stat().st_mtime_ns) == (0o700, 4 * 10**9)
    assert os.listxattr(root / "d") == ["user.new"]


def test_everything_else_is_replaced(root: Path) -> None:
    (root / "dir/deep/er").mkdir(parents=True)
    (root / "dir/deep/f").touch()
    (root / "file").write_bytes(b"old")
    (root / "to_dir").symlink_to("kept")
    (root / "kept").mkdir()
    (root / "kept/f").write_bytes(b"kept")
    os.link(root / "file", root / "other")
    put(
        root,
        file("dir", b"a file now"),
        directory("to_dir"),
        file("to_dir/f", b"new"),
        symlink("file", "kept"),
    )
    assert tree(root) == {
        "dir": b"a file now",
        "file": "-> kept",
        "other": b"old",
        "kept": "d",
        "kept/f": b"kept",
        "to_dir": "d",
        "to_dir/f": b"new",
    }


def test_a_file_that_is_replaced_does_not_change_under_its_other_names(root: Path) -> None:
    (root / "a").write_bytes(b"old")
    os.link(root / "a", root / "b")
    put(root, file("a", b"new"))
    assert tree(root) == {"a": b"new", "b": b"old"}


@pytest.mark.parametrize("link", ["usr/lib", "/usr/lib", "../../usr/lib", "./usr//lib/.", "usr/x/../lib", "hop"])
def test_a_parent_that_is_a_link_leads_to_its_target_within_the_root(link: str, root: Path) -> None:
    (root / "usr/lib").mkdir(parents=True)
    (root / "hop").symlink_to("/usr/lib")
    (root / "lib").symlink_to(link)
    put(root, file("lib/x", b"1"), file("lib/sub/y", b"2"), hardlink("h", "lib/x"), file("usr/lib/z", b"3"))
    assert os.readlink(root / "lib") == link
    assert tree(root / "usr") == {"lib": "d", "lib/x": b"1", "lib/sub": "d", "lib/sub/y": b"2", "lib/z": b"3"}
    assert (root / "h").samefile(root / "usr/lib/x")


def test_a_link_to_what_is_not_there_yet_makes_it(root: Path) -> None:
    put(root, symlink("lib", "/usr/missing/../lib"), file("lib/x", b"1"))
    assert tree(root) == {"lib": "-> /usr/missing/../lib", "usr": "d", "usr/lib": "d", "usr/lib/x": b"1"}


def test_a_file_in_the_way_of_a_directory_gives_way(root: Path) -> None:
    (root / "a").write_bytes(b"old")
    put(root, file("a/b/c", b"new"), file("x"), file("x/y"))
    assert tree(root) == {"a": "d", "a/b": "d", "a/b/c": b"new", "x": "d", "x/y": b"data"}


@root_only
def test_directories_without_an_entry_are_alike_wherever_they_are_made(root: Path) -> None:
    os.chmod(root, 0o2777)
    os.chown(root, 0, 50)
    old_mask = os.umask(0o077)
    try:
        put(root, file("a/b/c"))
    finally:
        os.umask(old_mask)
    for name in ("a", "a/b"):
        status = (root / name).stat()
        assert (mode(root / name), status.st_uid, status.st_gid, status.st_mtime_ns) == (0o755, 0, 0, 0)


def test_times_of_directories_are_not_those_of_the_work_in_them(root: Path) -> None:
    for name in ("said", "quiet", "whited"):
        (root / name).mkdir()
        (root / name / "old").touch()
        os.utime(root / name, ns=(11, 11))
    os.utime(root, ns=(12, 12))
    put(root, directory("said", mtime=2), file("said/f"), file("quiet/f"), file("whited/.wh.old", b""))
    times = {name: (root / name).stat().st_mtime_ns for name in ("said", "quiet", "whited", ".")}
    assert times == {"said": 2 * 10**9, "quiet": 11, "whited": 11, ".": 12}


def test_a_hard_link_may_lead_to_a_lower_layer_and_stand_where_it_did_before(root: Path) -> None:
    (root / "low").write_bytes(b"low")
    put(root, hardlink("d/h", "low"), hardlink("d/h", "low"), hardlink("low", "low"), symlink("s", "low"))
    put(root, hardlink("hs", "s"))
    assert (root / "d/h").samefile(root / "low")
    assert os.readlink(root / "hs") == "low"


# ---- whiteouts


def lower(root: Path) -> None:
    (root / "d/sub/deep").mkdir(parents=True)
    for name in ("a", "d/a", "d/b", "d/sub/a", "d/sub/deep/a"):
        (root / name).write_bytes(b"low")


def test_whiteouts_take_away_what_lower_layers_have(root: Path) -> None:
    lower(root)
    put(root, file(".wh.a", b""), file("d/.wh.sub", b""), file("d/.wh.missing", b""), file("no/where/.wh.x", b""))
    assert tree(root) == {"d": "d", "d/a": b"low", "d/b": b"low"}


@pytest.mark.parametrize("first", [True, False], ids=["mark first", "mark last"])
def test_a_whiteout_leaves_what_the_same_layer_brings(first: bool, root: Path) -> None:
    lower(root)
    marks = [file(".wh.a", b""), file(".wh.d", b"")]
    new = [file("a", b"new"), file("d/b", b"new"), file("d/sub/n", b"new")]
    put(root, *(marks + new if first else new + marks))
    assert tree(root) == {"a": b"new", "d": "d", "d/b": b"new", "d/sub": "d", "d/sub/n": b"new"}
    assert (mode(root / "d"), (root / "d").stat().st_mtime_ns) == (0o755, 0)


@pytest.mark.parametrize("first", [True, False], ids=["mark first", "mark last"])
def test_an_opaque_directory_has_only_what_this_layer_brings(first: bool, root: Path) -> None:
    lower(root)
    os.chmod(root / "d", 0o711)
    mark = [file("d/.wh..wh..opq", b"")]
    new = [file("d/b", b"new"), file("d/sub/deep/n", b"new"), directory("d/empty"), symlink("d/l", "b")]
    put(root, *(mark + new if first else new + mark))
    assert tree(root) == {
        "a": b"low",
        "d": "d",
        "d/b": b"new",
        "d/empty": "d",
        "d/l": "-> b",
        "d/sub": "d",
        "d/sub/deep": "d",
        "d/sub/deep/n": b"new",
    }
    assert mode(root / "d") == 0o711


def test_an_opaque_root_takes_all_of_the_lower_layers(root: Path) -> None:
    lower(root)
    put(root, file("d/new", b"new"), file(".wh..wh..opq", b""))
    assert tree(root) == {"d": "d", "d/new": b"new"}


def test_whiteouts_go_through_links_within_the_root_but_take_links_themselves(root: Path) -> None:
    lower(root)
    (root / "l").symlink_to("d")
    (root / "m").symlink_to("d")
    put(root, file("l/.wh.a", b""), file(".wh.m", b""), file("l/sub/.wh..wh..opq", b""))
    assert tree(root) == {"a": b"low", "d": "d", "d/b": b"low", "d/sub": "d", "l": "-> d"}


def test_a_whiteout_in_a_directory_that_is_not_there_does_not_lead_what_follows_astray(root: Path) -> None:
    put(root, directory("d/sub"), file("no/.wh.x", b""), file("d/sub/f"), file("no/.wh..wh..opq", b""), file("d/sub/g"))
    assert tree(root) == {"d": "d", "d/sub": "d", "d/sub/f": b"data", "d/sub/g": b"data"}


def test_a_directory_that_only_whiteouts_went_through_can_be_whited_out(root: Path) -> None:
    lower(root)
    put(root, file("d/sub/.wh.a", b""), file("d/.wh.sub", b""), file(".wh..wh.aufs", b""))
    assert tree(root) == {"a": b"low", "d": "d", "d/a": b"low", "d/b": b"low"}


def test_many_and_deep_directories_are_taken_away(root: Path) -> None:
    (root / "wide").mkdir()
    for number in range(2500):
        (root / f"wide/{number}/x").mkdir(parents=True)
    here = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (root / "wide/1/f").touch()
    put(root, file(".wh.deep", b""), file("wide/1/g"), file("wide/.wh..wh..opq", b""))
    assert tree(root) == {"wide": "d", "wide/1": "d", "wide/1/g": b"data"}


# ---- without rights


def test_without_root_everything_is_the_users_and_devices_are_left_out(open_root: Path) -> None:
    (open_root / "null").write_bytes(b"hidden by the device")
    os.chown(open_root / "null", NOBODY, NOBODY) if os.geteuid() == 0 else None
    with as_nobody():
        applied = put(
            open_root,
            directory("d", 0o500, uid=1000, mtime=2),
            file(
                "d/f", mode=0o4555, uid=5, xattrs={"user.a": "1", "trusted.b": "2", "security.capability": CAPABILITY}
            ),
            member("d/p", tarfile.FIFOTYPE, mode=0o600),
            member("null", tarfile.CHRTYPE, device=(1, 3)),
            directory("d/none", 0o000, mtime=3),
            file("d/none/f"),
        )
        assert applied == Applied(6, 8, left_out=3)
        os.chmod(open_root / "d/none", 0o700)
        assert tree(open_root) == {"d": "d", "d/f": b"data", "d/p": "p", "d/none": "d", "d/none/f": b"data"}
    found = details(open_root)
    assert found["d/f"][0] == stat.S_IFREG | 0o4555
    assert found["d"][0] == stat.S_IFDIR | 0o500
    assert (found["d"][4], found["d/none"][4]) == (2 * 10**9, 3 * 10**9)
    assert {status[1] for status in found.values()} == {open_root.stat().st_uid}
    assert os.listxattr(open_root / "d/f") == ["user.a"]


def test_without_root_directories_of_lower_layers_that_are_shut_are_worked_in_and_shut_again(open_root: Path) -> None:
    with as_nobody():
        put(
            open_root,
            directory("a", 0o555),
            file("a/x"),
            directory("a/b", 0o000),
            file("a/b/y"),
            directory("./", 0o555),
        )
        put(open_root, file("a/new"), file("a/b/.wh.y", b""), file("a/.wh.x", b""))
    assert tree(open_root) == {"a": "d", "a/b": "d", "a/new": b"data"}
    assert (mode(open_root), mode(open_root / "a"), mode(open_root / "a/b")) == (0o555, 0o555, 0)
    with as_nobody():
        put(open_root, file(".wh.a", b""))
    assert tree(open_root) == {}


@root_only
def test_what_belongs_to_others_is_refused_by_name(open_root: Path) -> None:
    (open_root / "theirs").mkdir()
    with as_nobody():
        with pytest.raises(PermissionDenied, match="theirs/f"):
            put(open_root, file("theirs/f"))
        with pytest.raises(PermissionDenied, match="'f'"):
            put(open_root, file("f", uid=1), as_root=True)


# ---- failures


def test_a_root_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for name in ("f", "missing"):
        with pytest.raises(NotFound, match=name):
            put(tmp_path / name, file("x"))


def test_a_full_disk_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFull, match="'a/b'"):
        put(root, file("a/b"))


def test_an_application_can_be_cancelled(root: Path) -> None:
    with scope() as cancellation:
        cancellation.cancel()
        with pytest.raises(Cancelled):
            put(root, file("a"))


def test_a_tar_that_breaks_off_is_corrupt(root: Path) -> None:
    with pytest.raises(CorruptData):
        apply(io.BytesIO(tar(file("a", b"x" * 2000))[:1000]), root)


def test_the_stream_is_read_to_its_end(root: Path) -> None:
    stream = io.BytesIO(tar(file("a")) + bytes(1 << 20))
    apply(stream, root)
    assert stream.read() == b""


def test_descriptors_are_few_and_all_closed(
    root: Path, monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    before = count_descriptors()
    most = 0
    real = os.mkdir

    def counting(*args: object, **kwargs: object) -> None:
        nonlocal most
        most = max(most, count_descriptors())
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "mkdir", counting)
    put(root, file("a/" * 600 + "f"), file("b/" * 600 + "f"), symlink("a/" * 300 + "up", "/"))
    put(root, file("a/" * 300 + "up/a/a/c/f"), file("a/" * 599 + ".wh.a", b""), file(".wh.b", b""))
    with pytest.raises(CorruptData):
        put(root, file("c/f"), hardlink("x", "c"))
    assert most - before < 120
    assert count_descriptors() == before


def test_too_many_directories_are_refused_before_memory_is_full(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.layers.brought.MAX_NBYTES", 10_000)
    with pytest.raises(TooLarge):
        put(root, file("a/" * 40 + "f"))
    (root / "d").mkdir()
    (root / "d/x").touch()
    with pytest.raises(TooLarge):
        put(root, *[file(f"d/{number}") for number in range(100)])
