"""Entries as a tar stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from blobtee.errors import Closed, InvalidArgument, SizeMismatch
from blobtee.layers.blocks import PIECE, Blocks
from blobtee.layers.entry import Entry, EntryType
from blobtee.layers.header import KINDS, header

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_DEVICES = (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
_LINKS = (EntryType.SYMLINK, EntryType.HARDLINK)


class TarWriter:
    """Writes entries in the order they are given: ustar, with PAX headers only where ustar cannot say it.

    The same entries and data give the same bytes. `write` gets the tar in pieces of about a mebibyte, in order, in the
    caller's thread; a piece is good only during the call. Not thread-safe.
    """

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._blocks = Blocks(write)
        self._closed: str | None = None

    def add(self, entry: Entry, data: BinaryIO | None = None) -> None:
        """Append one entry with its content: `entry.size` bytes from `data`, holes and all.

        `entry.offset` and `entry.sparse` are about another tar and mean nothing here. What is not a file has no data:
        `data` and the entry's size are not looked at. Short reads are fine. Refused before anything is written:
        `InvalidArgument` for a path that leads out, a name with a NUL, a file without `data`, a number that no tar can
        hold; `TooLarge` for a path or link beyond `MAX_PATH`, more than a mebibyte of extended attributes.
        `SizeMismatch`: `data` ends too early or goes on. After that, and after an error of `data` or `write`, which
        passes through, the tar is broken off: further calls raise `Closed`.
        """
        is_file = entry.type is EntryType.FILE
        if is_file and entry.size and data is None:
            raise InvalidArgument(f"{entry.path[:100]}: a file without its data")
        if entry.type in _LINKS and not entry.linkname:
            raise InvalidArgument(f"{entry.path[:100]}: a link without its target")
        is_device = entry.type in _DEVICES
        block = header(
            _path(entry),
            KINDS[entry.type],
            entry.mode & 0o7777,
            entry.uid,
            entry.gid,
            entry.size if is_file else 0,
            entry.mtime_ns,
            _encoded(entry.linkname) if entry.type in _LINKS else b"",
            entry.devmajor if is_device else 0,
            entry.devminor if is_device else 0,
            {_encoded(key): value for key, value in entry.xattrs.items()},
            _encoded(entry.uname),
            _encoded(entry.gname),
        )
        self._check_open()
        self._closed = "the tar broke off at an earlier error"
        self._blocks.put(block)
        if is_file and data is not None:
            self._copy(entry, data)
        self._closed = None

    def finish(self) -> None:
        """Write the end-of-archive mark and all that is still held back. Further calls raise `Closed`."""
        self._check_open()
        self._closed = "the tar is finished"
        self._blocks.finish()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise Closed(self._closed)

    def _copy(self, entry: Entry, data: BinaryIO) -> None:
        left = entry.size
        # At the end one byte more than there may be is asked for.
        while piece := data.read(min(left + 1, PIECE)):
            left -= len(piece)
            if left < 0:
                break
            if len(piece) < PIECE // 2:
                self._blocks.put(piece)
            else:
                self._blocks.pass_on(piece)
        if left:
            raise SizeMismatch(entry.path[:100], entry.size, entry.size - left)
        self._blocks.pad(entry.size)


def _path(entry: Entry) -> bytes:
    path = _encoded(entry.path)
    parts = path.split(b"/")
    if b".." in parts or (path and b"" in parts):
        raise InvalidArgument(f"not the path of an entry: {entry.path[:100]!r}")
    if entry.type is EntryType.DIRECTORY:
        return (path or b".") + b"/"
    if not path:
        raise InvalidArgument(f"a {entry.type.value} cannot be the layer's root")
    return path


def _encoded(text: str) -> bytes:
    if "\0" in text:
        raise InvalidArgument(f"a name with a NUL in it: {text[:100]!r}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"not a name: {text[:100]!r}") from error
