"""Open-file-description locks on ranges of places in a file (fcntl(2)).

The kernel lets go of them when the last process that has the descriptor ends, however it ends. A place is a byte that
need not exist.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import struct

from blobtee.errors import from_os_error

SHARED, ALONE, FREE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK

_FLOCK = "hhqqi"


def ask(fd: int, kind: int, first: int, last: int, what: str, *, wait: bool = False) -> bool:
    """Have the places [first, last) locked as `kind` says; False when others have one of them, and not `wait`.

    Locks of the same descriptor do not stand against each other. The wait cannot be cancelled. Errors of the disk say
    that it was about to `what`.
    """
    if first >= last:
        return True  # a length of nothing would be one without end
    request = struct.pack(_FLOCK, kind, os.SEEK_SET, first, last - first, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise from_os_error(error, what) from error
    return True


def first_held(fd: int, first: int, last: int, what: str) -> int:
    """The first place in [first, last) that another descriptor has locked; `last` if there is none."""
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
    except OSError as error:
        raise from_os_error(error, what) from error
    kind, _, start, _, _ = struct.unpack(_FLOCK, answer)
    return last if kind == fcntl.F_UNLCK else max(first, start)


@functools.lru_cache(1024)  # who takes a lock gives it back
def place_of(name: str) -> int:
    """The place that stands for `name`: two names that meet would only wait for each other, once in a few billion."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") >> 2
