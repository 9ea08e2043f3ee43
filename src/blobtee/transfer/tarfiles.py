"""Images in tars: reading members at random, and writing them in a row."""

from __future__ import annotations

import io
import os
import secrets
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from blobtee import tasks
from blobtee.compression import decompress, detect
from blobtee.content import ReaderAt
from blobtee.content.files import FileReader, os_errors, sync_directory
from blobtee.errors import CorruptData, InvalidArgument, NotFound, TooLarge
from blobtee.layers import Entry, EntryType, entries
from blobtee.layers.entry import normalise
from blobtee.oci import Compressed
from blobtee.transfer.layouts import open_file

MAX_MEMBERS = 100_000
_PIECE = 1 << 20
_MAX_LINKS = 8


class TarFiles:
    """The files in a tar, by path. Nothing is unpacked: paths are only names here, wherever they point.

    A compressed archive is decompressed into a temporary file that has no name. Links inside the archive are followed,
    as older `docker save` needs. Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        """`NotFound`; `CorruptData` for what is no tar; `TooLarge` with more than `MAX_MEMBERS` members."""
        self._path = path
        self._reader = open_file(path)
        try:
            if detect(self._reader.read_at(0, 512)) is not Compressed.NONE:
                self._reader = self._decompressed()
            self._members, self._links = self._index()
        except BaseException:
            self._reader.close()
            raise

    def open(self, path: str) -> ReaderAt:
        """The file at `path`; `NotFound`."""
        name = path
        for _ in range(_MAX_LINKS):
            if name in self._members:
                offset, size = self._members[name]
                return _Part(self._reader, offset, size)
            if name not in self._links:
                break
            name = self._links[name]
        raise NotFound(f"{self._path}: no file {path[:200]!r} in it")

    def size(self, path: str) -> int:
        with self.open(path) as reader:
            return reader.size

    def close(self) -> None:
        self._reader.close()

    def _decompressed(self) -> FileReader:
        packed = self._reader
        with os_errors("make a temporary file"), tempfile.TemporaryFile() as file:
            with packed, packed.open() as raw, decompress(raw) as stream, _damage_in(self._path):
                while piece := stream.read(_PIECE):
                    tasks.check()
                    file.write(piece)
            file.flush()
            fd = os.dup(file.fileno())
        return FileReader(fd, os.fstat(fd).st_size, f"{self._path}, decompressed")

    def _entries(self, stream: io.RawIOBase) -> Iterator[Entry]:
        with _damage_in(self._path):
            yield from entries(stream)

    def _index(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        with self._reader.open() as stream:
            for number, entry in enumerate(self._entries(stream)):
                tasks.check()
                if number == MAX_MEMBERS:
                    raise TooLarge(f"{self._path}: more than {MAX_MEMBERS} members")
                if entry.type is EntryType.FILE and entry.sparse is None:
                    if entry.offset + entry.size > self._reader.size:
                        raise CorruptData(f"{self._path}: ends in the middle of {entry.path[:200]!r}")
                    members[entry.path] = (entry.offset, entry.size)
                elif entry.type is EntryType.HARDLINK:
                    links[entry.path] = entry.linkname
                elif entry.type is EntryType.SYMLINK:
                    target = _inside(entry.path, entry.linkname)
                    if target is not None:
                        links[entry.path] = target
        return members, links


@contextmanager
def _damage_in(path: Path) -> Iterator[None]:
    """What is said of a stream in the block is said of the file."""
    try:
        yield
    except CorruptData as error:
        raise CorruptData(f"{path}: {error}") from error


def _inside(path: str, link: str) -> str | None:
    """Where a symbolic link points, as a path of the archive; None when that is outside."""
    joined = os.path.normpath(PurePosixPath(path).parent / link)
    if joined.startswith(("/", "..")):
        return None
    return normalise(joined, "a link")


class _Part(ReaderAt):
    """The bytes [start, start + size) of another reader, which stays open."""

    def __init__(self, reader: ReaderAt, start: int, size: int) -> None:
        self._reader = reader
        self._start = start
        self.size = size

    def readinto_at(self, offset: int, buffer: object) -> int:
        self._check(offset)
        with memoryview(buffer) as view, view.cast("B") as flat:  # type: ignore[arg-type]
            with flat[: self.size - offset] as wanted:
                return self._reader.readinto_at(self._start + offset, wanted)

    def close(self) -> None:
        pass


class TarWriter:
    """Writes a tar that appears under its name when `finish` is called, and not at all otherwise.

    Members are written one after another, the same input to the same bytes: no owners, no times.
    """

    def __init__(self, path: Path) -> None:
        """`InvalidArgument` for a path where something else than a file is: it would be replaced by one."""
        self._path = path
        self._file: IO[bytes] | None = None
        self._names: set[str] = set()
        with os_errors(f"write {path}"):
            if path.exists() and not path.is_file():
                raise InvalidArgument(f"{path} is not a file; an archive can only be written to one")
            # Where a link leads to is replaced, not the link.
            self._path = Path(os.path.realpath(path))
            self._unfinished = self._path.with_name(f".{self._path.name[:100]}-{secrets.token_hex(4)}")
            # Open until `finish` or `close`.
            self._file = open(self._unfinished, "xb")  # noqa: SIM115

    def has(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str, pieces: Iterator[bytes | memoryview], size: int | None = None) -> int:
        """Write a member and return its size. A `size` that is not known beforehand is filled in afterwards.

        What `pieces` raises leaves the archive without the member.
        """
        assert self._file is not None
        with os_errors(f"write {self._path}"):
            start = self._file.tell()
            try:
                self._file.write(_header(name, size or 0))
                written = 0
                for piece in pieces:
                    self._file.write(piece)
                    written += len(piece)
                self._file.write(bytes(-written % 512))
                if size is None:
                    end = self._file.tell()
                    self._file.seek(start)
                    self._file.write(_header(name, written))
                    self._file.seek(end)
            except BaseException:
                self._file.seek(start)
                self._file.truncate()
                raise
        self._names.add(name)
        return written

    def finish(self) -> None:
        assert self._file is not None
        with os_errors(f"write {self._path}"):
            self._file.write(bytes(1024))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            os.replace(self._unfinished, self._path)
            sync_directory(self._path.absolute().parent)

    def close(self) -> None:
        """Throw away what is not finished. A second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            os.unlink(self._unfinished)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    # GNU's form holds sizes above 8 GiB in one block, so a header can be written again in its place.
    return member.tobuf(tarfile.GNU_FORMAT)
