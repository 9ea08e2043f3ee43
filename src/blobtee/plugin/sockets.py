"""Unix sockets that appear whole: with their rights from the first moment, in place of nothing that is in use."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from blobtee.content.files import make_directory, os_errors
from blobtee.errors import AlreadyExists, InvalidArgument

MAX_PATH = 107
"""Bytes of a socket's path (Linux, unix(7))."""

_BACKLOG = 4096  # what the kernel allows, at most
_count = itertools.count()


class SocketFile:
    """The place of one socket. A server listens at `temporary`, then `publish` gives it its name."""

    def __init__(self, path: str | os.PathLike[str], *, mode: int = 0o600, group: int | None = None) -> None:
        """`mode` and `group` (a number) are what the socket gets. Its folder is made when missing.

        `InvalidArgument`: no path for a socket, or something else is there. `AlreadyExists`: somebody listens there.
        """
        self.path = Path(os.path.abspath(path))
        self._mode = mode
        self._group = group
        self.temporary = self.path.with_name(f".{os.getpid():x}-{next(_count):x}")
        for each in (self.path, self.temporary):
            if "\0" in str(each) or len(os.fsencode(each)) > MAX_PATH:
                raise InvalidArgument(f"the path of a socket has at most {MAX_PATH} bytes: {str(each)!r:.300}")
        with os_errors(f"make a folder for the socket {self.path}"):
            make_directory(self.path.parent)
        with os_errors(f"make the socket {self.path}"), suppress(FileNotFoundError):
            self._check_free()
            os.unlink(self.temporary)
        self._identity: tuple[int, int] | None = None

    def listen(self) -> socket.socket:
        """A socket that listens at `temporary`, for nobody but its owner yet. Errors of the file system."""
        with os_errors(f"make the socket {self.path}"):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(str(self.temporary))
                os.chmod(self.temporary, 0o600)  # before anybody can connect
                listener.listen(_BACKLOG)
            except BaseException:
                listener.close()
                with suppress(OSError):
                    os.unlink(self.temporary)
                raise
        return listener

    def publish(self) -> None:
        """Give the socket its rights and its name, in place of one that nobody listens on. Errors as above."""
        with os_errors(f"make the socket {self.path}"):
            os.chmod(self.temporary, self._mode)
            if self._group is not None:
                os.chown(self.temporary, -1, self._group)
            self._check_free()
            found = os.stat(self.temporary)
            os.rename(self.temporary, self.path)
            self._identity = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove the socket, unless another server has put its own there."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        with suppress(OSError):
            os.unlink(self.temporary)

    def _check_free(self) -> None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise InvalidArgument(f"{self.path} is there and is no socket; it is left alone")
        if listens(self.path):
            raise AlreadyExists(f"another server listens on {self.path}; stop it first, or choose another path")


def listens(path: Path) -> bool:
    """Whether a server accepts connections on the socket."""
    # A full backlog, or a socket of another kind: somebody is there.
    return refusal(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def refusal(path: Path) -> int:
    """The errno of connecting to the socket (connect(2), unix(7)); 0 when a server accepts it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(os.fsencode(path))
        except OSError as error:
            # Python itself refuses a path that is too long, without an errno.
            return error.errno or errno.ENAMETOOLONG
        except ValueError:  # a NUL within the path
            return errno.EINVAL
        return 0
