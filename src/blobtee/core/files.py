"""Calls of the kernel that go together, in one call of the core: each return from it has to wait for the interpreter,
and dozens of threads that make small files would mostly wait for that."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blobtee.core.native import ffi, lib, os_error


class SmallFile(NamedTuple):
    """What a file is to hold, where `before_nbytes` were until now; None: it goes."""

    data: bytes | None
    before_nbytes: int = 0


def begin_folder(folder: str, spare: str | None, files: Mapping[str, SmallFile], data: str) -> int | None:
    """Make `folder`, of the folder `spare` by a rename if there is one, with `files` in it, and open its file `data`:
    the descriptor, for reading and writing. None: something has that name already, and nothing has changed.

    Raises the plain OSError; the folder may be there then, without `data`.
    """
    made = ffi.new("bt_small_file[]", len(files))
    kept = []  # cffi's structures keep nothing alive
    for each, (name, file) in zip(made, files.items(), strict=True):
        kept.append(named := ffi.new("char[]", os.fsencode(name)))
        each.name = named
        if file.data is not None:
            kept.append(held := ffi.from_buffer(file.data))
            each.data = ffi.cast("const uint8_t *", held)
            each.nbytes = len(file.data)
            each.before_nbytes = file.before_nbytes
    spare_path = os.fsencode(spare) if spare is not None else ffi.NULL
    result: int = lib.bt_begin_folder(os.fsencode(folder), spare_path, made, len(files), os.fsencode(data))
    if result >= 0:
        return result
    if result == lib.BT_END:
        return None
    raise os_error(result, folder)


class Sync:
    """The sync of a file, which goes on in a thread of the core while its writer does something else."""

    def __init__(self, fd: int) -> None:
        """`fd` has to stay open until `wait` has returned."""
        self._sync = ffi.new("bt_sync *")
        self._sync.fd = fd

    def begin(self) -> None:
        """Once; when it cannot be, `wait` does it all."""
        lib.bt_sync_begin(self._sync)

    def wait(self) -> None:
        """Return when the file is durable, or raise the kernel's plain OSError, as often as it is asked: who is
        interrupted here asks again. For one thread at a time; the wait cannot be cancelled."""
        result = lib.bt_sync_wait(self._sync)
        if result != lib.BT_OK:
            raise os_error(result)


def settle_files(paths: Sequence[str], rights: int, stale_ns: int) -> None:
    """Give the files `rights`, and the present as the time of their last access where that is `stale_ns` past or more;
    as good as it goes."""
    if paths:
        joined = b"".join(os.fsencode(path) + b"\0" for path in paths)
        lib.bt_settle_files(joined, len(paths), rights, stale_ns)
