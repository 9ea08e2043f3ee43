"""The files of unfinished blobs: `<root>/ingest/<SHA-256 of the ref>/`, as containerd's own store lays them out.

`data` holds the bytes, `ref` the name, `startedat` and `updatedat` the times, `total` the announced size. One file is
ours: `offset`, there only while space for `data` is allocated ahead, so that its length says nothing. All of it is
changed only by the holder of the ingest's lock, and `data` is made last: an ingest without it never began.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from blobtee.content.api import Status
from blobtee.content.files import format_time, parse_time, read_small, set_aside, write_small
from blobtee.content.locks import Locks
from blobtee.content.spares import Spares, lock_of
from blobtee.core import SmallFile, begin_folder
from blobtee.errors import BlobteeError, DataLoss, InvalidArgument, NotFound, TooLarge, from_os_error
from blobtee.oci import Digest

MAX_REF = 64 << 10
"""Bytes of a ref; containerd's clients stay far below."""

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"[0-9a-f]{64}\Z")
_FILES = frozenset({"data", "ref", "startedat", "updatedat", "total", "offset"})


def encode_ref(ref: str) -> bytes:
    """The bytes of a ref. Bytes that are no UTF-8 travel as surrogates, as in file names."""
    if not ref:
        raise InvalidArgument("an ingest needs a ref")
    try:
        encoded = ref.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument("a ref must be text that UTF-8 can say") from None
    if len(encoded) > MAX_REF:
        raise TooLarge(f"a ref of {len(encoded)} bytes; the limit is {MAX_REF}")
    return encoded


class Ingest:
    """Where one ingest lives, and what its files say. Makes no promise that it exists."""

    def __init__(self, directory: Path, spares: Spares | None = None) -> None:
        self.directory = directory
        self.name = directory.name
        self.lock = f"ingest:{self.name}"
        """Name of the lock that its writer holds."""
        self._spares = spares
        self._files: Mapping[str, bytes] | None = None
        self._fd = -1  # of the data, until they are asked for
        # Plain text: a writer opens some of these for each blob, and paths of pathlib cost more than the system call.
        self._prefix = f"{directory}/"
        self.data = self._prefix + "data"
        self.offset_file = self._prefix + "offset"

    @property
    def is_new(self) -> bool:
        """Whether it was begun by this object, so that there are no data of before."""
        return self._files is not None

    def read(self) -> Status:
        """What the files say; `NotFound` when it never began or is gone, `DataLoss` when they make no sense."""
        try:
            if stat.S_ISLNK(os.lstat(self.directory).st_mode):
                raise DataLoss(f"ingest {self.name} is a link to somewhere else")
            return self._read()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no ingest {self.name}") from None
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
                raise DataLoss(f"ingest {self.name} holds what is no file") from error
            raise

    def _read(self) -> Status:
        found = os.stat(self.data, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise DataLoss(f"the data of ingest {self.name} is no file")
        ref = read_small(self._prefix + "ref", MAX_REF + 1)
        if hashlib.sha256(ref).hexdigest() != self.name:
            raise DataLoss(f"ingest {self.name} holds another ref than its name says")
        reserved = self._number("offset")
        started = self._time("startedat") or found.st_mtime_ns
        return Status(
            ref=ref.decode("utf-8", "surrogateescape"),
            offset=found.st_size if reserved is None else min(reserved, found.st_size),
            total=self._number("total") or 0,
            started_at=started,
            updated_at=self._time("updatedat") or max(started, found.st_mtime_ns),
        )

    def begin(self, ref: bytes, total: int, expected: Digest | None) -> Status | None:
        """Begin one that is not there, in one call of the core. None: something is, or that failed, perhaps half done.
        The caller holds the lock, and calls `close` when nobody has asked for the data."""
        now, files = _first_files(ref, total)
        spare = self._spares.take() if self._spares is not None else None
        before: Mapping[str, bytes] = spare.files if spare is not None else {}
        changes = {
            name: SmallFile(files.get(name), len(before.get(name, b"")))
            for name in files.keys() | before.keys()
            if files.get(name) != before.get(name)
        }
        try:
            fd = begin_folder(self._prefix[:-1], spare.folder if spare is not None else None, changes, "data")
        except OSError:
            fd = None
        if fd is None:
            if spare is not None and self._spares is not None:
                self._spares.put_back(spare)
            return None
        self._fd = fd
        self._files = files
        return Status(ref.decode("utf-8", "surrogateescape"), 0, total, expected, now, now)

    def create(self, ref: bytes, total: int, expected: Digest | None) -> Status:
        """Begin anew, whatever was there. The caller holds the lock and makes `data` next."""
        now, files = _first_files(ref, total)
        if os.path.lexists(self.directory):
            self.remove()
        os.makedirs(self.directory, 0o755)
        for name, data in files.items():
            write_small(self._prefix + name, data)
        self._files = files
        return Status(ref.decode("utf-8", "surrogateescape"), 0, total, expected, now, now)

    def open_data(self) -> int:
        """The data, made when missing, for reading and writing."""
        if self._fd < 0:
            return os.open(self.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Nobody asks for the data any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def write_total(self, total: int) -> None:
        write_small(self._prefix + "total", b"%d" % total)

    def write_updated(self, ns: int) -> None:
        write_small(self._prefix + "updatedat", format_time(ns))

    def retire(self) -> None:
        """As `remove`, for one whose `data` has gone: its folder may be another's."""
        if self._spares is None or self._files is None or not self._spares.keep(self.directory, self._files):
            self.remove()

    def remove(self) -> None:
        """Remove everything; the caller holds the lock. `data` goes first, so that half of it never looks alive."""
        if self.directory.is_symlink():
            # What it leads to is not ours.
            os.unlink(self.directory)
            return
        for name in ("data", *sorted(_FILES - {"data"})):
            try:
                os.unlink(self._prefix + name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except IsADirectoryError:
                break
        try:
            os.rmdir(self.directory)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            os.unlink(self.directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(self.directory)  # something of somebody else's is in there

    def _number(self, name: str) -> int | None:
        """The number in a file; None when it is missing or nothing was written yet, 0 when it holds something else."""
        try:
            text = read_small(self._prefix + name, 32)
        except FileNotFoundError:
            return None
        if not text:
            return None
        try:
            return max(0, int(text))
        except ValueError:
            return 0

    def _time(self, name: str) -> int | None:
        try:
            return parse_time(read_small(self._prefix + name, 64))
        except FileNotFoundError:
            return None


def _first_files(ref: bytes, total: int) -> tuple[int, Mapping[str, bytes]]:
    """What an ingest begins with, and when, which is now."""
    now = time.time_ns()
    files = {"ref": ref, "startedat": format_time(now), "updatedat": format_time(now)}
    if total:
        files["total"] = b"%d" % total
    return now, files


class Ingests:
    """All ingests of a root."""

    def __init__(self, root: Path, spares: Spares | None = None) -> None:
        self._root = root
        self._directory = root / "ingest"
        self._spares = spares

    def of(self, ref: str) -> Ingest:
        return Ingest(self._directory / hashlib.sha256(encode_ref(ref)).hexdigest(), self._spares)

    def clear_spares(self, *, but: int = 0) -> None:
        """Remove the folders that no ingest has begun in, `but` so many."""
        if self._spares is not None:
            self._spares.clear(lambda folder: Ingest(folder).remove(), but=but)

    def end(self) -> None:
        """As `clear_spares`, for who closes the store."""
        if self._spares is not None:
            self._spares.end(lambda folder: Ingest(folder).remove())

    def statuses(self) -> Iterator[Status]:
        """Every ingest that can be read; the others are left out. Raises when there is no listing them at all."""
        for name in self._names():
            try:
                yield Ingest(self._directory / name).read()
            except (NotFound, DataLoss, OSError):
                continue

    def recover(self, locks: Locks) -> list[str]:
        """Clear away what a crash left: ingests that never began go, damaged ones are set aside.

        Returns a sentence for each of the latter. Ingests that somebody writes are passed over, and so is what the
        file system refuses to move: a start never fails here.
        """
        problems = []
        try:
            names = self._names()
        except BlobteeError as error:
            _logger.warning("%s", error)
            return [str(error)]
        for name in names:
            ingest = Ingest(self._directory / name)
            if not locks.try_acquire(ingest.lock):
                continue
            try:
                problem = self._recover(ingest, locks)
            except OSError as error:
                problem = f"ingest {name} cannot be used: {error.strerror or error}"
            finally:
                locks.release(ingest.lock)
            if problem is not None:
                _logger.warning("%s", problem)
                problems.append(problem)
        return problems

    def _recover(self, ingest: Ingest, locks: Locks) -> str | None:
        try:
            if not _NAME.match(ingest.name):
                raise DataLoss(f"{ingest.name!r:.100} is no ingest")
            ingest.read()
            return None
        except NotFound:
            try:
                began = not set(os.listdir(ingest.directory)) <= _FILES
            except NotADirectoryError:
                began = True
            except FileNotFoundError:
                return None
            if not began:
                if locks.try_acquire(lock_of(ingest.name)):  # else it is a living process's to spare
                    try:
                        ingest.remove()
                    finally:
                        locks.release(lock_of(ingest.name))
                return None
            reason = f"ingest {ingest.name} is not in the form of one"
        except DataLoss as error:
            reason = str(error)
        aside = set_aside(self._root, ingest.directory, f"ingest-{ingest.name}")
        return f"{reason}; set aside as {aside}"

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise from_os_error(error, f"list {self._directory}") from error
