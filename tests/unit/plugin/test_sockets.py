from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from blobtee.errors import AlreadyExists, InvalidArgument, PermissionDenied, StorageError
from blobtee.plugin.sockets import SocketFile


def bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_socket_appears_with_its_rights_and_goes_again(tmp_path: Path) -> None:
    file = SocketFile(tmp_path / "new" / "s", mode=0o620, group=os.getgid())
    with bind(file.temporary):
        assert not file.path.exists()
        file.publish()
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o620
        file.remove()
    assert list(file.path.parent.iterdir()) == []


def test_what_a_crash_left_is_replaced(tmp_path: Path) -> None:
    bind(tmp_path / "s").close()
    file = SocketFile(tmp_path / "s")
    with bind(file.temporary):
        file.publish()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    with bind(tmp_path / "s"), pytest.raises(AlreadyExists, match="another server"):
        SocketFile(tmp_path / "s")


def test_the_socket_of_a_later_server_is_not_removed(tmp_path: Path) -> None:
    first = SocketFile(tmp_path / "s")
    bind(first.temporary).close()
    first.publish()
    second = SocketFile(tmp_path / "s")
    with bind(second.temporary):
        second.publish()
        first.remove()
        assert (tmp_path / "s").exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InvalidArgument, match="no socket"):
        SocketFile(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 108, "nul\0"])
def test_paths_that_no_socket_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        SocketFile(tmp_path / name)


def test_no_two_sockets_of_a_folder_are_made_under_one_name(tmp_path: Path) -> None:
    made = {SocketFile(tmp_path / str(number)).temporary for number in range(2000)}
    assert len(made) == 2000


def test_a_folder_that_may_not_be_looked_into_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "lstat", forbidden)
    with pytest.raises(PermissionDenied, match="make the socket"):
        SocketFile(tmp_path / "s")


def test_a_socket_that_cannot_listen_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(listener: socket.socket, backlog: int) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    file = SocketFile(tmp_path / "s")
    monkeypatch.setattr(socket.socket, "listen", refuse)
    with pytest.raises(StorageError, match="make the socket"):
        file.listen()
    assert list(tmp_path.iterdir()) == []
