"""Files that take another's place in one step: by several at once, on a disk that fails, and what a kill leaves."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.content.files import remove_temporaries, replace_file
from blobtee.oci import Digest


def test_those_who_replace_a_file_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([number]) * (100_000 + number) for number in range(20)]
    with tasks.Group() as group:
        for data in contents * 3:
            group.spawn(replace_file, path, data)
        while group_is_busy(path):
            assert path.read_bytes() in contents
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def group_is_busy(path: Path) -> bool:
    return path.exists() and len(os.listdir(path.parent)) > 1


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_overwritten_or_removed(tmp_path: Path) -> None:
    left = tmp_path / ".file.new"
    left.write_bytes(b"x" * 1000)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    left.write_bytes(b"x" * 1000)
    (tmp_path / "another.new").write_bytes(b"not ours")
    (tmp_path / ".folder.new").mkdir()
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "missing")
    assert sorted(os.listdir(tmp_path)) == [".folder.new", "another.new", "file"]


def test_what_is_being_written_is_not_removed(tmp_path: Path) -> None:
    with open(tmp_path / ".file.new", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_temporaries(tmp_path)
        assert os.listdir(tmp_path) == [".file.new"]
    remove_temporaries(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_store_is_tidied(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "root") as store:
        before = set(os.listdir(store.root))
        data = tmp_path / "data"
        data.write_bytes(b"blob")
        os.link(data, store.root / f".link-sha256-{Digest.of(b'blob').hex}")
        (store.root / ".index.json.new").write_bytes(b"{")
        store.tidy()
        assert set(os.listdir(store.root)) == before
        assert store.link(data, Digest.of(b"blob")).size == 4
        assert set(os.listdir(store.root)) == before
