"""Several calls of the kernel in one: what they leave, and what they refuse."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blobtee.core import SmallFile, Sync, begin_folder, files, settle_files
from blobtee.core.native import lib


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def begin(folder: Path, spare: Path | None = None, **files: SmallFile) -> int | None:
    return begin_folder(str(folder), str(spare) if spare is not None else None, files, "data")


def test_a_new_folder(tmp_path: Path) -> None:
    fd = begin(tmp_path / "new", a=SmallFile(b"1" * 5000), b=SmallFile(b""))
    assert fd is not None
    assert os.pwrite(fd, b"data", 0) == 4
    assert os.pread(fd, 10, 0) == b"data"
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert contents(tmp_path / "new") == {"a": b"1" * 5000, "b": b"", "data": b"data"}


def test_a_folder_of_another(tmp_path: Path) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    for name, data in (("short", b"1234"), ("long", b"1"), ("same", b"same"), ("gone", b"gone")):
        (spare / name).write_bytes(data)
    files = {"short": SmallFile(b"12", 4), "long": SmallFile(b"123", 1), "gone": SmallFile(None)}
    fd = begin(tmp_path / "new", spare, **files)
    assert fd is not None
    os.close(fd)
    assert contents(tmp_path / "new") == {"short": b"12", "long": b"123", "same": b"same", "data": b""}
    assert not spare.exists()


@pytest.mark.parametrize("there", ["folder", "file", "dead link"])
def test_what_is_there_stays_as_it_is(tmp_path: Path, there: str) -> None:
    new, spare = tmp_path / "new", tmp_path / "spare"
    spare.mkdir()
    if there == "folder":
        new.mkdir()
    elif there == "file":
        new.write_bytes(b"theirs")
    else:
        new.symlink_to("nowhere")
    before = os.lstat(new)
    assert begin(new, spare, a=SmallFile(b"1")) is None
    assert os.lstat(new).st_ino == before.st_ino
    assert not list(spare.iterdir())


@pytest.mark.parametrize("kind", ["missing", "link", "file"])
def test_a_spare_that_is_none_changes_nothing(tmp_path: Path, kind: str) -> None:
    spare, elsewhere = tmp_path / "spare", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        spare.symlink_to(elsewhere)
    elif kind == "file":
        spare.write_bytes(b"")
    with pytest.raises(OSError) as caught:
        begin(tmp_path / "new", spare, a=SmallFile(b"1"))
    assert caught.value.errno == (errno.ENOENT if kind == "missing" else errno.ENOTDIR)
    assert not (tmp_path / "new").exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["a", "data"])
def test_no_link_leads_out_of_it(tmp_path: Path, name: str) -> None:
    spare, secret = tmp_path / "spare", tmp_path / "secret"
    spare.mkdir()
    secret.write_bytes(b"secret")
    (spare / name).symlink_to(secret)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        begin(tmp_path / "new", spare, a=SmallFile(b"1"))
    assert secret.read_bytes() == b"secret"


def test_a_pipe_in_it_holds_nobody(tmp_path: Path) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    os.mkfifo(spare / "a")
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        begin(tmp_path / "new", spare, a=SmallFile(b"1"))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000])
def test_a_path_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        begin_folder(str(tmp_path / "new"), None, {name: SmallFile(b"1")}, "data")


def test_settled_files_have_their_rights_and_are_used_now(tmp_path: Path) -> None:
    old, recent = tmp_path / "old ü", tmp_path / "recent"
    now = time.time_ns()
    for path, age in ((old, 3600 * 10**9), (recent, 10**9)):
        path.write_bytes(b"data")
        os.utime(path, ns=(now - age, now - 10**12))
    settle_files([], 0o444, 60 * 10**9)
    settle_files([str(old), str(tmp_path / "missing"), str(recent)], 0o444, 60 * 10**9)
    for path in (old, recent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert path.stat().st_mtime_ns == now - 10**12
    assert old.stat().st_atime_ns >= now
    assert recent.stat().st_atime_ns == now - 10**9


def test_a_file_is_durable_when_its_sync_was_waited_for(tmp_path: Path) -> None:
    fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(100)]
    try:
        for fd in fds:
            os.write(fd, b"data")
        syncs = [Sync(fd) for fd in fds]
        for sync in syncs[1:]:  # who was not begun is waited for all the same
            sync.begin()
        for sync in syncs:
            for _ in range(2):
                sync.wait()
    finally:
        for fd in fds:
            os.close(fd)


def test_a_sync_that_fails_says_so_as_often_as_it_is_asked() -> None:
    reading, writing = os.pipe()  # neither can be synced (fsync(2))
    try:
        sync = Sync(writing)
        sync.begin()
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                sync.wait()
            assert caught.value.errno == errno.EINVAL
    finally:
        os.close(reading)
        os.close(writing)


class Interrupted:
    """The core, with an interrupt behind the wait for a sync."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def bt_sync_wait(self, sync: object) -> int:
        lib.bt_sync_wait(sync)
        raise KeyboardInterrupt


def test_an_interrupt_behind_the_wait_for_a_sync_does_not_make_it_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    try:
        sync = Sync(writing)
        sync.begin()
        with monkeypatch.context() as patch:
            patch.setattr(files, "lib", Interrupted())
            with pytest.raises(KeyboardInterrupt):
                sync.wait()
        with pytest.raises(OSError, match="Invalid argument"):
            sync.wait()
    finally:
        os.close(reading)
        os.close(writing)


def test_a_child_syncs_what_its_parent_began(tmp_path: Path) -> None:
    script = """
import os, sys
from blobtee.core import Sync
with open(sys.argv[1], "wb", 0) as file:
    file.write(b"data")
    begun = [Sync(file.fileno()) for _ in range(50)]
    for sync in begun:
        sync.begin()
    child = os.fork()
    for sync in begun:
        sync.wait()
    again = Sync(file.fileno())
    again.begin()
    again.wait()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "file"], timeout=60, check=True)
