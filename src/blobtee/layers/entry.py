"""One member of a layer's tar."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from blobtee.errors import Closed, CorruptData
from blobtee.layers.sparse import Segment

MAX_PATH = 32 << 10
"""Bytes of a path. Linux opens 4096 at once; deeper trees exist, but not by this much."""


class EntryType(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "fifo"


class _Fields:
    """An `Entry` before it is frozen (see `plain_entry`)."""

    __slots__ = (
        "_opener",
        "devmajor",
        "devminor",
        "gid",
        "gname",
        "linkname",
        "mode",
        "mtime_ns",
        "offset",
        "path",
        "size",
        "sparse",
        "type",
        "uid",
        "uname",
        "xattrs",
    )


@dataclass(frozen=True, slots=True)
class Entry(_Fields):
    """`path` is relative to the layer's root, without `.`, `..`, empty parts and a final slash; `""` is the root.

    Text that is not UTF-8 is kept with surrogate escapes (`os.fsencode` gives the bytes back).
    `size` is the content's length in bytes, holes included; 0 for everything but files. `offset` is where the stored
    data begins in the tar. `linkname` is a symbolic link's text as written, or the normalised path of a hard link's
    target. `mtime_ns` is nanoseconds since the epoch and may be negative.
    """

    path: str
    type: EntryType
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    linkname: str
    offset: int
    uname: str = ""
    gname: str = ""
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    sparse: tuple[Segment, ...] | None = None
    """Where the stored bytes belong in the content, when there are holes; None when the data is stored whole."""
    _opener: Callable[[Entry, bool], io.RawIOBase] | None = field(default=None, repr=False, compare=False)

    @property
    def mtime(self) -> float:
        """Seconds since the epoch, for people; `mtime_ns` is exact."""
        return self.mtime_ns / 1_000_000_000

    def data(self) -> io.RawIOBase:
        """The content, holes filled with zeros, as a file to be read once and in order.

        Valid until the next entry is asked for; then reading raises `Closed`. A tar that ends too early is
        `CorruptData`. What is not a file has no bytes.
        """
        return self._open(expand=True)

    def stored(self) -> io.RawIOBase:
        """The stored bytes as a file, holes left out: as `data`, but `sparse` says where they belong."""
        return self._open(expand=False)

    def detached(self) -> Entry:
        """The entry without its stream, which it would keep alive: `data` raises `Closed`."""
        if self.xattrs or self.sparse is not None or self.devmajor or self.devminor:
            return replace(self, _opener=None)
        return plain_entry(
            self.path,
            self.type,
            self.size,
            self.mode,
            self.uid,
            self.gid,
            self.mtime_ns,
            self.linkname,
            self.offset,
            self.uname,
            self.gname,
            None,
        )

    def _open(self, *, expand: bool) -> io.RawIOBase:
        if self._opener is None:
            raise Closed(f"{self.path}: this entry does not come from a stream any more")
        return self._opener(self, expand)


def plain_entry(
    path: str,
    type_: EntryType,
    size: int,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    linkname: str,
    offset: int,
    uname: str,
    gname: str,
    opener: Callable[[Entry, bool], io.RawIOBase] | None,
) -> Entry:
    """An entry without attributes, holes and device numbers, in a third of the time that a frozen dataclass takes."""
    fields: Any = _Fields()
    fields.path = path
    fields.type = type_
    fields.size = size
    fields.mode = mode
    fields.uid = uid
    fields.gid = gid
    fields.mtime_ns = mtime_ns
    fields.linkname = linkname
    fields.offset = offset
    fields.uname = uname
    fields.gname = gname
    fields.devmajor = fields.devminor = 0
    fields.xattrs = {}
    fields.sparse = None
    fields._opener = opener
    fields.__class__ = Entry
    entry: Entry = fields
    return entry


def normalise(name: str, what: str) -> str:
    """`name` as `Entry.path`. `CorruptData` for a `..` or a NUL in it, or when it is longer than `MAX_PATH`."""
    if len(name) > MAX_PATH:
        raise CorruptData(f"{what} of {len(name)} characters; the limit is {MAX_PATH}")
    if "\0" in name:
        raise CorruptData(f"{what} with a NUL byte: {name[:100]!r}")
    if "/" not in name and name not in ("", ".", ".."):
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CorruptData(f"{what} with '..' leads out of the layer: {name[:100]!r}")
    return "/".join(parts)
