"""Who fetches which chunks, between processes (`spec/tee.md` section 1, rule 3).

A claim is a range of bytes of the file `lock`, a byte a chunk, taken as an open-file-description lock: the kernel lets
go of it with its process. Far behind them a few bytes stand for the whole blob.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blobtee import tasks
from blobtee.errors import from_os_error

_FAR = 1 << 48
LIFE, USE, CHECKPOINT, FILL = range(_FAR, _FAR + 4)
"""Places of their own: making and removing the blob's files; having them open (shared); writing the map's header;
hashing and promoting."""

_REQUEST = "hhqqi"
_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


class Claims:
    """The locks of one blob as one process has them. What the threads of the process do among themselves is theirs."""

    def __init__(self, path: Path) -> None:
        """Opens (creates) the file; raises the plain OSError when that is refused."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @property
    def inode(self) -> int:
        return os.fstat(self._fd).st_ino

    def take(self, first: int, last: int, *, shared: bool = False) -> bool:
        """Take the places [first, last) if no other process has any of them."""
        return self._ask(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, first, last)

    def give(self, first: int, last: int) -> None:
        """Give places back; those that this process does not have are left alone."""
        self._ask(fcntl.F_UNLCK, first, last)

    def free(self, first: int, last: int) -> int:
        """Where the first place in [first, last) is that another process has; `last` if there is none."""
        asked = struct.pack(_REQUEST, fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)
        try:
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked)
        except OSError as error:
            raise from_os_error(error, "look at the locks of a partial blob") from error
        kind, _, start, _, _ = struct.unpack(_REQUEST, answer)
        return last if kind == fcntl.F_UNLCK else max(first, start)

    @contextmanager
    def holding(self, place: int) -> Iterator[None]:
        """Hold a place of the whole blob, waiting for other processes; the wait can be cancelled."""
        pause = _PAUSE
        while not self.take(place, place + 1):
            tasks.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            yield
        finally:
            self.give(place, place + 1)

    def close(self) -> None:
        """Give everything back. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ask(self, kind: int, first: int, last: int) -> bool:
        if first >= last:
            return True  # a length of nothing would be one without end
        request = struct.pack(_REQUEST, kind, os.SEEK_SET, first, last - first, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise from_os_error(error, "lock a partial blob") from error
        return True
