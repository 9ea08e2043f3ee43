"""Directories for work under way: whatever is in them, they go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blobtee.cache.scratch import Scratch, remove
from blobtee.errors import BlobteeError, NotFound


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def test_a_directory_is_there_for_the_block_and_its_root_too(root: Path) -> None:
    with Scratch(root).directory() as one:
        (one / "file").write_text("x")
        with Scratch(root).directory() as other:
            assert other != one
        assert (one / "file").read_text() == "x"
    assert not root.exists()


def test_it_goes_after_a_failure(root: Path) -> None:
    def work() -> None:
        with Scratch(root).directory() as path:
            (path / "sub").mkdir()
            raise NotFound("anything")

    with pytest.raises(NotFound, match="anything"):
        work()
    assert not root.exists()


def test_without_a_root_it_is_among_the_temporary_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Scratch(None).directory() as path:
        assert path.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Scratch(None).drop_stale()


def test_trees_deeper_than_any_path_and_closed_to_us_are_removed(tmp_path: Path) -> None:
    holder = tmp_path / "holder"
    holder.mkdir()
    at = os.open(holder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("directory", dir_fd=at)
        below = os.open("directory", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    closed = holder / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (closed / "inner").chmod(0)
    closed.chmod(0o500)
    (holder / "link").symlink_to(tmp_path)
    remove(holder)
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    holder = tmp_path / "holder"
    (holder / "sub").mkdir(parents=True)
    (holder / "sub" / "link").symlink_to(outside, target_is_directory=True)
    remove(holder)
    assert (outside / "kept").read_text() == "x"


_CRASH = """
import os, sys
from pathlib import Path
from blobtee.cache.scratch import Scratch
with Scratch(Path(sys.argv[1])).directory() as path:
    (path / "left").mkdir()
    (path / "left" / "file").write_text("x")
    os._exit(0)
"""


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(root: Path) -> None:
    subprocess.run([sys.executable, "-c", _CRASH, str(root)], check=True)
    assert len(list(root.iterdir())) == 1
    with Scratch(root).directory() as mine:
        Scratch(root).drop_stale()
        assert [path.name for path in root.iterdir()] == [mine.parent.name]
        assert mine.is_dir()
    Scratch(root).drop_stale()
    assert not root.exists()


def test_a_root_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("a file is in the way")
    with pytest.raises(BlobteeError), Scratch(tmp_path / "scratch").directory():
        pass
    Scratch(tmp_path / "scratch").drop_stale()


def test_what_cannot_be_removed_is_said_in_the_log_and_hides_no_other_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: str) -> None:
        raise OSError(5, "Input/output error")

    def work() -> None:
        with Scratch(root).directory():
            raise NotFound("the error that matters")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        with pytest.raises(NotFound, match="matters"):
            work()
    assert "left behind" in caplog.text
    Scratch(root).drop_stale()
    assert not root.exists()
