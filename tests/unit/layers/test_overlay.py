"""The overlay differ, on upper directories made by hand and by the kernel."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from blobtee.errors import Cancelled, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from blobtee.layers import EntryType, source, write_overlay
from blobtee.tasks import scope
from tests.unit.layers.trees import at, clone, contents, descend, listed, needs_root, paths, put, tree

PREFIXES = [
    "user.overlay.",
    "user.fuseoverlayfs.",
    pytest.param("trusted.overlay.", marks=needs_root),
]


def layer(upper: str | os.PathLike[str], *, epoch: int | None = None) -> bytes:
    pieces: list[bytes] = []
    write_overlay(upper, lambda piece: pieces.append(bytes(piece)), epoch=epoch)
    return b"".join(pieces)


def delete(path: Path) -> None:
    """What overlayfs puts where something of a lower layer was deleted. Anybody may make these devices."""
    os.mknod(path, stat.S_IFCHR, 0)


# ---- by hand


def test_whiteouts_and_ordinary_files_come_in_order(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("d/b", "d/e/gone", "c"):
        delete(tmp_path / name)
    (tmp_path / "d/a").write_bytes(b"a")
    (tmp_path / "d-").touch()
    assert paths(layer(tmp_path)) == [".wh.c", "d", "d/a", "d/.wh.b", "d/e", "d/e/.wh.gone", "d-"]


def test_whiteouts_that_share_an_inode_are_no_hard_links(tmp_path: Path) -> None:
    delete(tmp_path / "a")
    os.link(tmp_path / "a", tmp_path / "b")
    assert [(entry.path, entry.type) for entry in listed(layer(tmp_path))] == [
        (".wh.a", EntryType.FILE),
        (".wh.b", EntryType.FILE),
    ]


@needs_root
def test_other_devices_stay_devices(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tmp_path / "zero", stat.S_IFBLK | 0o666, 0)
    assert [entry.type for entry in listed(layer(tmp_path))] == [EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_opaque_directory_is_marked_before_its_contents(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/!").touch()
    os.setxattr(tmp_path / "d", prefix + "opaque", b"y")
    os.setxattr(tmp_path / "d", prefix + "origin", b"\0\xfb")
    os.setxattr(tmp_path / "d", "user.kept", b"x")
    tar = layer(tmp_path)
    assert paths(tar) == ["d", "d/.wh..wh..opq", "d/!"]
    assert listed(tar)[0].xattrs == {"user.kept": b"x"}


@pytest.mark.parametrize("value", [b"x", b"n", b"", b"yes"])
def test_only_y_is_opaque(value: bytes, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", "user.overlay.opaque", value)
    assert paths(layer(tmp_path)) == ["d"]


def test_the_mark_means_nothing_on_the_root(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    os.setxattr(tmp_path, "user.overlay.opaque", b"y")
    assert paths(layer(tmp_path)) == ["f"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_whiteouts_that_are_attributes_are_honoured(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", prefix + "opaque", b"x")
    for name, content in (("gone", b""), ("file", b"with content"), ("kept", b"")):
        (tmp_path / "d" / name).write_bytes(content)
    for name in ("gone", "file"):
        os.setxattr(tmp_path / "d" / name, prefix + "whiteout", b"")
    assert list(contents(layer(tmp_path))) == [
        ("d", b""),
        ("d/file", b"with content"),
        ("d/.wh.gone", b""),
        ("d/kept", b""),
    ]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("mark", ["redirect", "metacopy", "nlink"])
def test_what_the_upper_directory_does_not_hold_is_refused(mark: str, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "d/x"
    path.parent.mkdir()
    path.mkdir() if mark == "redirect" else path.touch()
    os.setxattr(path, prefix + mark, b"U+1")
    with pytest.raises(Unimplemented, match="d/x"):
        layer(tmp_path)


def test_a_file_all_of_whose_names_are_here_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.setxattr(tmp_path / "a", "user.overlay.nlink", b"U-1")
    assert paths(layer(tmp_path)) == ["a"]


def test_hard_links_fifos_and_symbolic_links_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    os.link(tmp_path / "a", tmp_path / "b")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc")
    assert [(entry.path, entry.type.value, entry.linkname) for entry in listed(layer(tmp_path))] == [
        ("a", "file", ""),
        ("b", "hardlink", "a"),
        ("fifo", "fifo", ""),
        ("link", "symlink", "/etc"),
    ]


def test_a_socket_hides_what_may_be_below_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.fspath(tmp_path / "s"))
        assert paths(layer(tmp_path)) == [".wh.s"]


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq"])
def test_names_that_would_mean_something_else_are_refused(name: str, tmp_path: Path) -> None:
    for make in (Path.touch, Path.mkdir, delete):
        make(tmp_path / name)
        with pytest.raises(InvalidArgument, match=r"\.wh\."):
            layer(tmp_path)
        subprocess.run(["rm", "-r", tmp_path / name], check=True)


def test_times_are_clamped_and_whiteouts_have_none(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    (tmp_path / "old").touch()
    at(tmp_path / "old", 5, nanoseconds=5)
    delete(tmp_path / "gone")
    assert [entry.mtime_ns for entry in listed(layer(tmp_path, epoch=100))] == [0, 100 * 10**9, 5 * 10**9 + 5]


def test_deep_trees_are_no_trouble(tmp_path: Path) -> None:
    descend(tmp_path, "d", 1500)
    try:
        assert len(paths(layer(tmp_path))) == 1501
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_directory_moved_away_while_its_contents_are_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend(tmp_path, "d", 200)
    real = source.open_file

    def open_file(parent: int, name: bytes, path: bytes) -> source.OpenFile:
        # Another directory of the same name, with all that the way back up needs.
        (tmp_path / "d").rename(tmp_path / "moved")
        descend(tmp_path, "d", 200)
        return real(parent, name, path)

    monkeypatch.setattr(source, "open_file", open_file)
    with pytest.raises(FailedPrecondition, match="changed while"):
        layer(tmp_path)


def test_it_ends_in_our_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        layer(tmp_path / "no")
    for i in range(300):
        (tmp_path / f"{i}").touch()
    with scope() as cancellation:
        cancellation.cancel()
        with pytest.raises(Cancelled):
            layer(tmp_path)


# ---- by the kernel


USERNS = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNTS = [
    pytest.param((["unshare", "--mount"], ""), id="trusted", marks=needs_root),
    pytest.param((USERNS, ",userxattr"), id="userxattr"),
]


def mounted(how: tuple[list[str], str], tmp_path: Path, script: str, options: str = "") -> tuple[Path, Path, Path]:
    """Run `script` in an overlay mount: the lower directory, the upper one, and a copy of the tree that was to be
    seen. The mount is gone with the process that made it."""
    unshare, common = how
    lower, upper, seen = tmp_path / "lower", tmp_path / "upper", tmp_path / "seen"
    lower.mkdir(exist_ok=True)
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    mount = f"mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work,index=off{common}{options} merged"
    tried = subprocess.run([*unshare, "sh", "-c", mount], cwd=tmp_path, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"overlay mounts are not allowed here: {tried.stderr.strip()}")
    commands = f"set -e; {mount}; (cd merged; {script}); cp -a merged seen"
    subprocess.run([*unshare, "sh", "-c", commands], cwd=tmp_path, check=True)
    return lower, upper, seen


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    lower = tmp_path / "lower"
    (lower / "dir/sub").mkdir(parents=True)
    (lower / "other").mkdir()
    for name in ("dir/a", "dir/b", "dir/sub/c", "other/d", "file"):
        (lower / name).write_bytes(name.encode())
        at(lower / name, 1_000_000, nanoseconds=7)
    (lower / "link").symlink_to("file")
    return lower


@pytest.mark.parametrize("how", MOUNTS)
@pytest.mark.parametrize(
    "script",
    [
        "true",
        "echo new > dir/new; echo more >> file",
        "rm dir/a; rm -r dir/sub link",
        "rm -r dir; mkdir dir; echo x > dir/x",
        "rm -r dir/sub; mkdir dir/sub; rm other/d",
        "rm -r dir; echo file > dir; rm file; mkdir file; echo x > file/x",
        "mv dir moved; mv file dir2; ln -s x dir",
        "chmod 700 dir/sub; chmod 4755 file; touch -d @5.5 other",
        "ln file hard; ln file other/hard; echo y >> hard",
        "mkfifo fifo; mkdir -p n/e/w; rm -r other; mkdir other",
        "rm file; echo y > file; rm file",
        "rm -r dir; mkdir -p dir/sub; rm -r dir",
    ],
)
def test_the_layer_makes_what_was_to_be_seen(script: str, how: tuple[list[str], str], grown: Path) -> None:
    lower, upper, seen = mounted(how, grown.parent, script)
    clone(lower, grown.parent / "made")
    put(layer(upper), grown.parent / "made")
    # The mount itself does not always tell by the inode what is linked; the upper directory does.
    assert tree(grown.parent / "made", links=False) == tree(seen, links=False)


@pytest.mark.parametrize("how", MOUNTS)
def test_links_within_the_upper_directory_are_links_in_the_layer(how: tuple[list[str], str], grown: Path) -> None:
    lower, upper, _ = mounted(how, grown.parent, "ln file hard; ln file other/hard; echo y >> hard")
    put(layer(upper), lower)
    made = tree(lower)
    assert made[b"file"].links == (b"file", b"hard", b"other/hard")
    assert made[b"file"].content == b"filey\n"


@pytest.mark.parametrize("how", MOUNTS)
def test_deleted_directories_that_come_back_hide_what_they_had(how: tuple[list[str], str], grown: Path) -> None:
    _, upper, _ = mounted(how, grown.parent, "rm -r dir; mkdir dir; echo x > dir/x; rm file")
    assert paths(layer(upper)) == ["dir", "dir/.wh..wh..opq", "dir/x", ".wh.file"]
    prefix = "user.overlay." if how[1] else "trusted.overlay."
    assert os.getxattr(upper / "dir", f"{prefix}opaque") == b"y"


@needs_root
@pytest.mark.parametrize(
    ("options", "script"),
    [
        (",redirect_dir=on", "mv dir moved"),
        (",metacopy=on,redirect_dir=on", "chmod 600 file"),
    ],
)
def test_mounts_that_keep_part_of_the_truth_below_are_refused(options: str, script: str, grown: Path) -> None:
    _, upper, _ = mounted((["unshare", "--mount"], ""), grown.parent, script, options)
    with pytest.raises(Unimplemented, match=r"moved|file"):
        layer(upper)


@needs_root
@pytest.mark.parametrize("script", ["echo x >> a", "echo x >> a; rm b", "echo x >> a; touch b; mv c e"])
def test_links_known_to_an_index_are_refused_or_right(script: str, tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower/a").write_bytes(b"a")
    for name in ("b", "c"):
        os.link(tmp_path / "lower/a", tmp_path / "lower" / name)
    lower, upper, seen = mounted((["unshare", "--mount"], ""), tmp_path, script, ",index=on")
    assert (seen / ("c" if (seen / "c").exists() else "e")).read_bytes() == b"ax\n"
    try:
        tar = layer(upper)
    except Unimplemented:
        assert "mv" not in script
        return
    assert "mv" in script
    put(tar, lower)
    assert tree(lower) == tree(seen)


def test_an_upper_directory_of_an_overlay_over_an_overlay_keeps_to_itself(tmp_path: Path) -> None:
    # What a mount within a container leaves in the upper directory outside: its attributes, with one more level.
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", "user.overlay.overlay.opaque", b"y")
    tar = layer(tmp_path)
    assert paths(tar) == ["d"]
    assert listed(tar)[0].xattrs == {}
