"""What `doctor` says of a socket, by what connecting to it gives."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blobtee.cli.doctor import answer
from blobtee.content import LocalStore
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.sockets import refusal


@contextmanager
def listening(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM, backlog: int = 5) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        if kind is socket.SOCK_STREAM:
            listener.listen(backlog)
        yield


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_one_that_is_served(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with LocalStore(tmp_path / "root") as store, Server(store, [Listen("one", path)]):
        assert answer(path) == "serving"


@pytest.mark.parametrize("name", ["socket", "no folder/socket", "file/socket"])
def test_one_that_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    said = answer(tmp_path / name)
    assert said.startswith("missing: ")
    assert f"blobtee serve --socket {tmp_path / name}" in said


def test_one_whose_server_has_ended(tmp_path: Path) -> None:
    with listening(tmp_path / "socket"):
        pass
    assert answer(tmp_path / "socket").startswith("stale: ")


@pytest.mark.parametrize("is_folder", [False, True])
def test_one_that_is_no_socket(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "socket"
    if is_folder:
        path.mkdir()
    else:
        path.write_text("")
    assert answer(path).startswith("no socket: ")


def test_one_that_may_not_be_used(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(path):
        path.chmod(0)
        with nobody():
            assert refusal(path) == errno.EACCES
            assert answer(path).startswith("forbidden: ")


def test_one_of_another_kind(tmp_path: Path) -> None:
    with listening(tmp_path / "socket", socket.SOCK_DGRAM):
        assert answer(tmp_path / "socket").startswith("no server of ours: ")


def test_one_with_a_full_backlog(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.connect(str(path))
        assert refusal(path) == errno.EAGAIN
        assert answer(path).startswith("hanging: ")


def test_one_that_takes_connections_and_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(path):
        assert answer(path).startswith("hanging: ")


def test_a_path_that_is_none() -> None:
    assert answer(Path("/" + "x" * 200)).startswith("not to be reached: ")
