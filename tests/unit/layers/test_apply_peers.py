"""What `apply` makes of layers, beside what GNU tar, umoci and the lazy view of an image make of the same ones."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings

from blobtee.errors import BlobteeError
from blobtee.layers import apply
from blobtee.oci import Compressed
from blobtee.testing import images
from tests.unit.image import support
from tests.unit.image.support import Broken, Put
from tests.unit.image.test_tree import stacks
from tests.unit.layers.tars import details, directory, file, hardlink, symlink, tar, tree

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="owners are compared")


@settings(max_examples=400, deadline=None)
@given(stacks)
def test_any_stack_is_unpacked_as_a_second_opinion_says_and_as_the_lazy_view_shows_it(recipes: list[list[Put]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        other, ours = Path(folder, "other"), Path(folder, "ours")
        other.mkdir()
        ours.mkdir()
        try:
            support.unpack(other, recipes)
        except Broken:
            assume(False)
        for recipe in recipes:
            apply(io.BytesIO(support.tar(recipe)), ours)
        assert support.on_disk(ours) == support.on_disk(other)
        assert support.on_disk(ours) == support.files(support.tree(*recipes, compression=Compressed.NONE))


@settings(max_examples=200, deadline=None)
@given(stacks)
def test_what_the_lazy_view_shows_of_any_stack_is_what_is_unpacked(recipes: list[list[Put]]) -> None:
    """Of broken stacks too: those that one refuses may be shown by the other, but not differently."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            shown = support.files(support.tree(*recipes, compression=Compressed.NONE))
            for recipe in recipes:
                apply(io.BytesIO(support.tar(recipe)), folder)
        except BlobteeError:
            assume(False)
        assert support.on_disk(Path(folder)) == shown


@root_only
@pytest.mark.parametrize("format_", ["gnu", "posix"])
def test_a_real_tree_comes_out_as_gnu_tar_unpacks_it(format_: str, tmp_path: Path) -> None:
    source = Path(sysconfig.get_path("stdlib"), "json").parent
    made, ours, theirs = tmp_path / "made.tar", tmp_path / "ours", tmp_path / "theirs"
    pack = ["tar", f"--format={format_}", "--xattrs", "-cf", str(made), "-C", str(source)]
    subprocess.run([*pack, "json", "email", "encodings", "concurrent", "os.py"], check=True)
    subprocess.run(["tar", f"--format={format_}", "-rf", str(made), "-C", "/usr", "share/zoneinfo"], check=True)
    for root in (ours, theirs):
        (root / "share").mkdir(parents=True)
        os.utime(root / "share", ns=(0, 0))
    subprocess.run(["tar", "--numeric-owner", "-xpf", str(made), "-C", str(theirs)], check=True)
    with made.open("rb") as opened:
        assert apply(opened, ours).entries > 300
    os.utime(theirs / "share", ns=(0, 0))
    assert details(ours) == details(theirs)
    subprocess.run(["diff", "-r", "--no-dereference", str(ours), str(theirs)], check=True)


@root_only
def test_umoci_unpacks_the_same(tmp_path: Path) -> None:
    base = tar(
        directory("etc", 0o750, uid=1, mtime=5),
        file("etc/a", b"a", mode=0o4711, uid=2, gid=3, mtime=6),
        file("etc/b", b"b"),
        directory("etc/sub", mtime=7),
        file("etc/sub/x", b"x"),
        directory("usr", mtime=1),
        directory("usr/lib", mtime=8),
        symlink("lib", "usr/lib", mtime=9),
        hardlink("etc/c", "etc/a"),
        file("cap", b"c", xattrs={"user.said": "by us"}, mtime="3.5"),
        directory("shut", 0o000, mtime=2),
        file("shut/in", b"in"),
    )
    change = tar(
        directory("etc", 0o755, mtime=15),
        file("etc/.wh.a", b""),
        directory("etc/sub", 0o700, mtime=17),
        file("etc/sub/.wh..wh..opq", b""),
        file("etc/sub/y", b"y"),
        file("lib/through", b"t", mtime=18),
        hardlink("etc/d", "etc/c"),
        file("shut/.wh.in", b""),
        directory("cap", mtime=19),
    )
    layout = images.image([images.layer(base), images.layer(change)]).write_layout(tmp_path / "layout")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    command = ["umoci", "raw", "unpack", "--image", f"{layout}:latest", str(theirs)]
    subprocess.run(command, check=True, capture_output=True)
    ours.mkdir()
    for layer in (base, change):
        apply(io.BytesIO(layer), ours)
    assert tree(ours) == tree(theirs)
    assert details(ours) == details(theirs)
    assert stat.S_IMODE((ours / "shut").lstat().st_mode) == 0
