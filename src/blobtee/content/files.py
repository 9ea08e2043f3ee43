"""Small file work with the order of steps that survives a crash, and the reader of a file."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from blobtee.content.api import ReaderAt
from blobtee.errors import BlobteeError, Closed, DataLoss, InvalidArgument, InvalidDigest, from_os_error
from blobtee.oci import Digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WRITING = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link that somebody left in the root leads no write out of it, and nobody waits for the reader of a pipe."""

PIECE = 1 << 20
"""Bytes of one read or write of bulk data (`performance.md`, Files)."""

WRITEBACK = 16 << 20
"""Bytes after which the disk is set to work on what was written."""


class FileReader(ReaderAt):
    """Reads the file open at `fd`, which it owns, by position. Deleting or renaming the file does not disturb it.

    A file that turns out shorter than `size` raises `DataLoss`.
    """

    def __init__(self, fd: int, size: int, what: str) -> None:
        self.size = size
        self._what = what
        # A descriptor closed during somebody's read may be another file's by the time the kernel looks at it. So the
        # last one out closes: readers sign in before they look at `_open`. List operations are atomic; no lock.
        self._fd = fd
        self._owned = [fd]
        self._users: list[None] = []
        self._open = True

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        self._users.append(None)
        try:
            self._check(offset)
            n = os.preadv(self._fd, [buffer], offset)
            with memoryview(buffer) as view:
                wanted = min(view.nbytes, self.size - offset)
                if n < wanted:
                    with view.cast("B") as rest:
                        self._fill(offset, rest[:wanted], n)
            return wanted
        except OSError as error:
            raise self._error(error) from error
        finally:
            self._done()

    def read_at(self, offset: int, n: int) -> bytes:
        # As the base does it, with one copy less; and without calls, as small reads are what a reader mostly does.
        users = self._users
        users.append(None)
        try:
            size = self.size
            if not self._open or n < 0 or not 0 <= offset <= size:
                self._check(offset)
                raise InvalidArgument(f"cannot read {n} bytes")
            wanted = n if offset + n <= size else size - offset
            data = os.pread(self._fd, wanted, offset)
            if len(data) == wanted:
                return data
            whole = bytearray(wanted)
            whole[: len(data)] = data
            with memoryview(whole) as rest:
                self._fill(offset, rest, len(data))
            return bytes(whole)
        except OSError as error:
            raise self._error(error) from error
        finally:
            users.pop()
            if not self._open:
                self._close_if_unused()

    def _check(self, offset: int) -> None:
        if not self._open:
            raise Closed(f"the reader of {self._what} is closed")
        super()._check(offset)

    def _fill(self, offset: int, buffer: memoryview, filled: int) -> None:
        """Bring the rest of `buffer`, whose first bytes the kernel gave. It gives 2 GiB at once at most."""
        while filled < buffer.nbytes:
            n = os.preadv(self._fd, [buffer[filled:]], offset + filled)
            if n == 0:
                raise DataLoss(f"{self._what} has lost its end: {offset + filled} of {self.size} bytes left")
            filled += n

    def _error(self, error: OSError) -> BlobteeError:
        return error if isinstance(error, BlobteeError) else from_os_error(error, f"read {self._what}")

    def _done(self) -> None:
        self._users.pop()
        if not self._open:
            self._close_if_unused()

    def fileno(self) -> int:
        """The descriptor, for who closes the reader himself and reads before that."""
        if not self._open:
            raise Closed(f"the reader of {self._what} is closed")
        return self._fd

    def close(self) -> None:
        self._open = False
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._users and self._owned:
            try:
                fd = self._owned.pop()
            except IndexError:  # another thread was quicker
                return
            os.close(fd)

    def __del__(self) -> None:
        if self._owned:
            self.close()


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn the file system's errors of the block into ours; `doing` completes the sentence "cannot …"."""
    try:
        yield
    except BlobteeError:
        raise
    except OSError as error:
        raise from_os_error(error, doing) from error


def set_aside(root: Path, path: Path, name: str) -> Path:
    """Move the damaged `path` into `root`/broken, where nothing reads it any more, under `name` and the time."""
    broken = root / "broken"
    make_directory(broken)
    target = broken / f"{name[:150]}-{time.time_ns()}"
    os.rename(path, target)
    sync_directory(broken)
    return target


def sync_file(path: str | Path) -> None:
    """Make the bytes of a file durable."""
    _sync(path, os.O_NONBLOCK)


def sync_directory(path: str | Path) -> None:
    """Make the names in `path` durable."""
    _sync(path, os.O_DIRECTORY)


def _sync(path: str | Path, flag: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it, durably. One that is there is left as it is."""
    while not path.is_dir():
        make_directory(path.parent)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            with suppress(FileNotFoundError):  # of somebody who has removed it again
                if not stat.S_ISDIR(os.lstat(path).st_mode) and not path.is_dir():
                    raise
        else:
            sync_directory(path.parent)
            return


class Writeback:
    """Sets the disk to work on what is written in order, so that the sync at the end finds little to do."""

    def __init__(self, offset: int) -> None:
        """Writing begins at `offset`."""
        self._begun = offset

    def written(self, fd: int, offset: int) -> None:
        """Written up to `offset`.

        What `sync_file_range` is for. This advice starts the same and drops only pages that are on disk already,
        which those of the last `WRITEBACK` bytes hardly are: they stay cached for whoever reads them next.
        """
        n = offset - self._begun
        if n >= WRITEBACK:
            with suppress(OSError):
                os.posix_fadvise(fd, self._begun, n, os.POSIX_FADV_DONTNEED)
            self._begun = offset


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write the bytes of `data`, a view of single bytes, at `offset`."""
    done = 0
    while done < data.nbytes:
        done += os.pwrite(fd, data[done:], offset + done)


def replace_file(path: Path, data: bytes) -> None:
    """Put a file with `data` at `path` in one step, durably: a reader sees the old file or the new, never less.

    Those who do the same at once take turns. After an error the old file is there, and nothing else; or the new one,
    when what failed is the sync of its name."""
    temporary = path.with_name(f".{path.name}.new")
    fd = _locked(temporary)
    try:
        os.ftruncate(fd, 0)
        write_all(fd, memoryview(data), 0)
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    sync_directory(path.parent)


def _locked(temporary: Path) -> int:
    """The file, made when missing, for nobody else to write or remove."""
    while True:
        fd = os.open(temporary, WRITING, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_named(fd, temporary):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # of somebody who has given it its name meanwhile


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_temporaries(directory: Path) -> None:
    """Remove what those left in `directory` who were killed in `replace_file`. Files that are being written stay."""
    with os_errors(f"tidy {directory}"), suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(directory):
            if entry.name.startswith(".") and entry.name.endswith(".new") and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    _remove_abandoned(Path(entry.path))


def _remove_abandoned(temporary: Path) -> None:
    fd = os.open(temporary, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(fd, temporary):
                os.unlink(temporary)
    finally:
        os.close(fd)


def write_small(path: str, data: bytes) -> None:
    """Put a small file of an ingest at `path`. Not durable: a crash may leave the ingest to be started anew."""
    fd = os.open(path, WRITING | os.O_TRUNC, 0o644)
    try:
        write_all(fd, memoryview(data), 0)
    finally:
        os.close(fd)


def read_small(path: str | Path, limit: int) -> bytes:
    """The first `limit` bytes of the file at `path`; `OSError` for what is none, which may have no end, or no start."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.ENXIO, "it is no file")  # what opening a pipe for writing, or a socket, says
        pieces = []
        while limit and (piece := os.read(fd, limit)):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def digest_names(directory: Path) -> Iterator[tuple[Digest, Path]]:
    """The files or directories `directory`/<algorithm>/<hex>, in no order. Other names, and what vanishes meanwhile,
    are left out; no directory means none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for algorithm in os.scandir(directory):
            with suppress(FileNotFoundError, NotADirectoryError):
                for entry in os.scandir(algorithm.path):
                    with suppress(InvalidDigest):
                        yield Digest(f"{algorithm.name}:{entry.name}"), Path(entry.path)


_TIME = re.compile(
    rb"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z",
)


def format_time(ns: int) -> bytes:
    """RFC 3339 with nanoseconds, as containerd writes the times of its ingests."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09}Z".encode()


def parse_time(text: bytes) -> int | None:
    """Nanoseconds since the epoch of an RFC 3339 time; None when it is not one."""
    match = _TIME.match(text.strip())
    if match is None:
        return None
    date, clock, fraction, zone = (group.decode() if group else "" for group in match.groups())
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        return None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)
