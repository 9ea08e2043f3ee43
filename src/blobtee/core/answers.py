"""Answers that a gRPC server gives again without a handler, and what says whether they are still right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from blobtee.core.native import ffi, lib
from blobtee.errors import InvalidArgument, ResourceExhausted

MESSAGE: int = lib.BT_ANSWER_MESSAGE
FILE: int = lib.BT_ANSWER_FILE
MAX_ANSWER: int = lib.BT_ANSWERS_MESSAGE_MAX_NBYTES
"""Bytes of the longest message that is kept."""

_OK = lib.BT_OK
Look: TypeAlias = Any
"""What metadata and a file were like; for `Answers.keep_message` and `Answers.keep_file` alone."""


class Watch:
    """Says whether a SQLite database has changed, by whichever process, without a statement. Thread-safe.

    The process must have the database open, and have read from it, from before the watch begins until after `end`.
    """

    def __init__(self, path: Path) -> None:
        """Watch the database at `path`. `InvalidArgument`: it cannot be, being none in WAL mode with its index in
        shared memory, or not open here."""
        address = _mapped(Path(os.path.realpath(path)))
        self._watch = ffi.gc(lib.bt_wal_watch(address), lib.bt_wal_free) if address else ffi.NULL
        if self._watch == ffi.NULL:
            raise InvalidArgument(f"{path} cannot be watched: no database in WAL mode that is open here")

    def state(self) -> bytes | None:
        """What it is like now: when that has not changed, nothing was committed. None: a commit is just under way, or
        the watch has ended."""
        state = ffi.new("uint8_t[]", lib.BT_WAL_STATE_NBYTES)
        return bytes(state) if lib.bt_wal_state(self._watch, state) == _OK else None

    def end(self) -> None:
        """Know nothing any more."""
        lib.bt_wal_end(self._watch)


class Counts(NamedTuple):
    """RPCs that were answered in one place, by how they ended. `within` are those that took at most as long as each
    bound, and longer than the one before; the last are longer than all. `opened` files were read from, `sent` bytes."""

    ok: int
    cancelled: int
    within: tuple[int, ...]
    seconds: float
    opened: int
    sent: int


class Answers:
    """What handlers have answered to who asked for a blob, by the place that was asked and the blob's digest.

    An answer has to follow from the metadata and from the blob's file alone. It is given for as long as neither has
    changed since before the handler looked at them; `look` says what they are like. Thread-safe.
    """

    def __init__(
        self, watch: Watch, *, messages_nbytes: int, files: int, fresh_ns: int, bounds: Sequence[float]
    ) -> None:
        """Keep at most so many bytes of messages, and so many files open: those that were asked for last. A file whose
        access time is `fresh_ns` old or older is for a handler, which writes down that it is used. `bounds` are
        seconds, in order, see `Counts`."""
        self._watch = watch
        self._bounds = len(bounds)
        numbers = [int(bound * 1e9) for bound in bounds]
        made = lib.bt_answers_new(watch._watch, messages_nbytes, files, fresh_ns, numbers, len(numbers))
        if made == ffi.NULL:
            raise ResourceExhausted("no memory for answers")
        self._answers = ffi.gc(made, lib.bt_answers_free)

    def look(self, path: str) -> Look | None:
        """What the metadata and the file at `path` are like, before a handler looks at either. None: nothing can be
        kept of it now."""
        look = ffi.new("bt_look *")
        return look if lib.bt_answers_look(self._answers, os.fsencode(path), look) == _OK else None

    def keep_message(self, place: int, digest: str, path: str, look: Look, message: bytes) -> bool:
        """Answer who asks for the blob's info in that place by `message`; whether that is kept."""
        return self._keep(MESSAGE, place, digest, path, look, message, -1)

    def keep_file(self, place: int, digest: str, path: str, look: Look, fd: int) -> bool:
        """Let read, who asks for the blob in that place, the file open at `fd`, of which this has its own descriptor;
        whether that is kept."""
        return self._keep(FILE, place, digest, path, look, b"", fd)

    def forget(self, place: int, digest: str) -> None:
        """Keep nothing open of the blob in that place, but for who is being answered."""
        encoded = digest.encode()
        lib.bt_answers_forget(self._answers, place, encoded, len(encoded))

    def clear(self) -> None:
        """Keep nothing."""
        lib.bt_answers_clear(self._answers)

    def counts(self, kind: int, place: int) -> Counts:
        """What has been answered in that place so far, of `MESSAGE` or `FILE`."""
        found = ffi.new("bt_answers_counts *")
        lib.bt_answers_tally(self._answers, kind, place, found)
        within = tuple(found.within[i] for i in range(self._bounds + 1))
        return Counts(found.ok, found.cancelled, within, found.sum_ns / 1e9, found.opened, found.sent_nbytes)

    def _keep(self, kind: int, place: int, digest: str, path: str, look: Look, message: bytes, fd: int) -> bool:
        encoded, length = digest.encode(), len(message)
        name = os.fsencode(path)
        result = lib.bt_answers_keep(self._answers, kind, place, encoded, len(encoded), name, look, message, length, fd)
        return bool(result == _OK)


def _mapped(path: Path) -> int:
    """Where SQLite has the WAL index of the database at `path` in memory (proc_pid_maps(5)); 0 for nowhere."""
    wanted = os.fsencode(f"{path}-shm").replace(b"\n", rb"\012")
    with open("/proc/self/maps", "rb") as lines:
        for line in lines:
            fields = line.rstrip(b"\n").split(None, 5)
            # Address, rights, offset, device, inode, path.
            if len(fields) == 6 and fields[5] == wanted and int(fields[2], 16) == 0 and fields[1].endswith(b"s"):
                return int(fields[0].partition(b"-")[0], 16)
    return 0
