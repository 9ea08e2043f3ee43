"""Folders that are made where several processes make and remove them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from blobtee.content.files import make_directory


def test_a_folder_that_another_process_makes_and_removes_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, refusals = os.mkdir, [FileExistsError(errno.EEXIST, "File exists")]

    def slower(path: Path, mode: int) -> None:
        if refusals:
            raise refusals.pop()
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", slower)
    make_directory(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_not_made_one(tmp_path: Path, kind: str) -> None:
    there = tmp_path / "there"
    there.touch() if kind == "file" else there.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        make_directory(there)
