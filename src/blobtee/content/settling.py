"""Whether a blob is there to stay, as the rights of its file tell.

A file that comes has the blob's name before the name is on the disk, and everybody sees it from then on. Until it is on
the disk, the file may be written by its rights; what nothing can undo any more, nobody may write. So whoever is to rely
on a blob has it from the look that he takes anyway whether that is just coming, or is left from somebody who was killed
in between, or was put there by another program, of whose syncs nobody knows. The last two are made durable by who sees
them first (`Settling.settle`). Who lists blobs, or reads one, relies on nothing.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from blobtee.content.files import sync_directory

WRITABLE = 0o222
"""Rights of which a file has one while it is not known to be durable."""

SETTLED = 0o444
"""The rights of a file that came here, when it is."""

_MOST = 10_000
"""Files that are remembered, where rights tell nothing."""


class Settling:
    """Makes files durable under the names that they have, and remembers those on which that does not show: the file
    system has no rights, or the file is somebody else's too. Thread-safe: operations on sets are."""

    def __init__(self) -> None:
        self._known: set[tuple[int, ...]] = set()

    def knows(self, found: os.stat_result) -> bool:
        """Whether the file is durable, as its rights or this object knows."""
        return not found.st_mode & WRITABLE or _state(found) in self._known

    def settle(self, path: str) -> os.stat_result:
        """Make the file and its name durable, and have it show. The caller keeps others from renaming it. Raises the
        plain OSError."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError:  # a link, or a file that only others may read: the name is all that is ours
            sync_directory(os.path.dirname(path))
        else:
            try:
                os.fsync(fd)
                sync_directory(os.path.dirname(path))
                _show(fd)
            finally:
                os.close(fd)
        found = os.stat(path)
        if found.st_mode & WRITABLE:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known.add(_state(found))
        return found


def _show(fd: int) -> None:
    found = os.fstat(fd)
    if found.st_nlink == 1:  # of other names nobody here knows what they are for
        with suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(found.st_mode) & ~WRITABLE)


def _state(found: os.stat_result) -> tuple[int, ...]:
    """Another one for each change of the file or its name."""
    return found.st_dev, found.st_ino, found.st_ctime_ns
