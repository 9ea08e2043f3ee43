"""When a blob was last opened to be read: what making room goes by.

It is the access time of the blob's file, set here and not by the kernel: whether that does it depends on how the file
system was mounted (`noatime` never, `relatime` once a day), while a time that is set by name is kept everywhere. Who
opens a file knows its access time already, so that a use that is a minute old or younger costs nothing, and an older
one a call.
"""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RESOLUTION_NS = 60 * 1_000_000_000

_housekeeping: contextvars.ContextVar[bool] = contextvars.ContextVar("blobtee_housekeeping", default=False)


def open_file(path: str) -> int:
    """Open a blob's file for reading; the kernel leaves its access time alone, where the file is ours. Raises the plain
    OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def note(fd: int, found: os.stat_result) -> None:
    """The file open at `fd`, of which `found` was said, is used now. One that is not ours keeps the kernel's time."""
    if not _housekeeping.get():
        with suppress(OSError):
            _touch(fd, found)


def _touch(file: int, found: os.stat_result) -> None:
    now = time.time_ns()
    if not 0 <= now - found.st_atime_ns < RESOLUTION_NS:
        os.utime(file, ns=(now, found.st_mtime_ns))


@contextmanager
def unnoticed() -> Iterator[None]:
    """Reading in the block is no use of a blob: who checks them all must not make them all look wanted."""
    token = _housekeeping.set(True)
    try:
        yield
    finally:
        _housekeeping.reset(token)
