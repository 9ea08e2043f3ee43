"""A list of a tar's entries as bytes, small and quick to read (`docs/formats.md`, "The list of entries").

Numbers lie in columns, so that a compressor finds them alike: what is the same for all files takes next to nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from blobtee.errors import CorruptData, InvalidArgument, TooLarge
from blobtee.layers import Entry, EntryType, sparse
from blobtee.layers.entry import normalise, plain_entry
from blobtee.seeking.api import stored_nbytes
from blobtee.seeking.jsontext import JsonText
from blobtee.tasks import check

_HEAD = struct.Struct("<4sI")
_MAGIC = b"BTL1"
_SECTION = struct.Struct("<Q")
_TYPES = (
    EntryType.FILE,
    EntryType.HARDLINK,
    EntryType.SYMLINK,
    EntryType.DIRECTORY,
    EntryType.FIFO,
    EntryType.CHARACTER_DEVICE,
    EntryType.BLOCK_DEVICE,
)
_CODES = {type_: code for code, type_ in enumerate(_TYPES)}
_DEVICES = (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
_COLUMNS = 6
_NOTHING: dict[str, Any] = {}
_MAX_PATH = 32 << 10
MAX_ENTRIES = 2_000_000
"""Entries of one list."""

MAX_EXTRAS = 2_000_000
"""Attributes and segments between holes of one list's entries together. Each takes more memory than it is long."""


class ListWriter:
    """Collects entries, some 60 bytes each before they are compressed."""

    def __init__(self) -> None:
        self._types = bytearray()
        self._numbers = [array("q") for _ in range(_COLUMNS)]
        self._texts = [bytearray() for _ in range(4)]
        self._more: list[str] = []
        self._end = 0

    @property
    def nbytes(self) -> int:
        """How long the list is up to now, about."""
        numbers = len(self._types) * (1 + 8 * _COLUMNS)
        return numbers + sum(map(len, self._texts)) + sum(map(len, self._more))

    def __len__(self) -> int:
        return len(self._types)

    def add(self, entry: Entry) -> None:
        """The next entry, in the order of the tar. `InvalidArgument` for one that the list cannot tell: a number
        beyond 64 bits, or a NUL in a name."""
        values = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.offset - self._end)
        texts = [_bytes(text) for text in (entry.path, entry.linkname, entry.uname, entry.gname)]
        if any(not -(1 << 63) <= value < 1 << 63 for value in values) or any(b"\0" in text for text in texts):
            raise InvalidArgument(f"{entry.path[:100]}: an entry with numbers or names that no list can hold")
        self._types.append(_CODES[entry.type])
        for numbers, value in zip(self._numbers, values, strict=True):
            numbers.append(value)
        for column_text, text in zip(self._texts, texts, strict=True):
            column_text += text + b"\0"
        self._end = entry.offset + stored_nbytes(entry)
        more: dict[str, Any] = {}
        if entry.devmajor or entry.devminor:
            more["device"] = [entry.devmajor, entry.devminor]
        if entry.sparse is not None:
            more["sparse"] = [number for segment in entry.sparse for number in segment]
        if entry.xattrs:
            more["xattrs"] = [[_base64(_bytes(key)), _base64(value)] for key, value in sorted(entry.xattrs.items())]
        if more:
            self._more.append(json.dumps([len(self._types) - 1, more], separators=(",", ":")))

    def to_bytes(self) -> bytes:
        """The list, not compressed."""
        sections = [bytes(self._types), *map(packed_column, self._numbers), *map(bytes, self._texts)]
        sections.append(("[" + ",\n".join(self._more) + "]").encode("ascii"))
        head = _HEAD.pack(_MAGIC, len(self._types))
        return head + b"".join(part for section in sections for part in (_SECTION.pack(len(section)), section))


def dump(entries: Iterable[Entry]) -> bytes:
    """A list of `entries`; errors as for `ListWriter.add`."""
    writer = ListWriter()
    for entry in entries:
        writer.add(entry)
    return writer.to_bytes()


def load(data: bytes | memoryview, stream_nbytes: int) -> list[Entry]:
    """The entries of a list about a stream of `stream_nbytes` bytes; their order is the tar's.

    `CorruptData` for a list that does not say what an entry can be, or has files that lie out of the stream or on each
    other; `TooLarge` for more than `MAX_ENTRIES`.
    """
    try:
        return _load(memoryview(data), stream_nbytes)
    except (struct.error, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise CorruptData(f"a list of entries that is damaged: {error}") from None


def _load(data: memoryview, stream_nbytes: int) -> list[Entry]:
    magic, count = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptData("not a list of entries")
    if count > MAX_ENTRIES:
        raise TooLarge(f"a list of {count} entries; the limit is {MAX_ENTRIES}")
    sections = _sections(data[_HEAD.size :], 1 + _COLUMNS + 4 + 1)
    types = bytes(sections[0])
    numbers = [_numbers(section, count) for section in sections[1 : 1 + _COLUMNS]]
    texts = [_texts(section, count) for section in sections[1 + _COLUMNS : 5 + _COLUMNS]]
    if len(types) != count:
        raise CorruptData("a list of entries with columns of different lengths")
    more = _more(sections[-1], count)
    number_of_more, extra = next(more, (count, _NOTHING))
    entries: list[Entry] = []
    end = extras = 0
    for number, row in enumerate(zip(types, *numbers, *texts, strict=True)):
        if number % 4096 == 0:
            check()
        code, mode, uid, gid, mtime_ns, size, gap, path, linkname, uname, gname = row
        type_ = _TYPES[code]
        offset = end + gap
        if gap < 0 or size < 0 or not 0 <= mode <= 0o7777 or (size and type_ is not EntryType.FILE):
            raise CorruptData(f"{path[:100]}: a listed entry with impossible numbers")
        _check_names(type_, path, linkname)
        entry = plain_entry(path, type_, size, mode, uid, gid, mtime_ns, linkname, offset, uname, gname, None)
        if number == number_of_more:
            entry = _extended(entry, extra)
            number_of_more, extra = next(more, (count, _NOTHING))
            extras += len(entry.xattrs) + len(entry.sparse or ())
            if extras > MAX_EXTRAS:
                raise TooLarge(f"a list of more than {MAX_EXTRAS} attributes and segments")
        end = offset + stored_nbytes(entry)
        if end > stream_nbytes:
            raise CorruptData(f"{path[:100]}: a listed file that ends behind the tar")
        entries.append(entry)
    return entries


def _check_names(type_: EntryType, path: str, linkname: str) -> None:
    if normalise(path, "a path") != path or (not path and type_ is not EntryType.DIRECTORY):
        raise CorruptData(f"{path[:100]!r}: a listed path that is none")
    if type_ is EntryType.HARDLINK:
        if not linkname or normalise(linkname, "a hard link's target") != linkname:
            raise CorruptData(f"{path[:100]}: a listed hard link to nowhere")
    elif (type_ is EntryType.SYMLINK) != bool(linkname) or len(linkname) > _MAX_PATH:
        raise CorruptData(f"{path[:100]}: a listed entry with an impossible target")


def _extended(entry: Entry, more: dict[str, Any]) -> Entry:
    """`entry` with what only few have."""
    major, minor = more.get("device", (0, 0))
    if type(major) is not int or type(minor) is not int or ((major or minor) and entry.type not in _DEVICES):
        raise CorruptData(f"{entry.path[:100]}: a listed entry with impossible device numbers")
    segments = None
    if "sparse" in more:
        numbers = more["sparse"]
        if entry.type is not EntryType.FILE or not all(type(number) is int for number in numbers):
            raise CorruptData(f"{entry.path[:100]}: a listed entry with impossible holes")
        segments = sparse.checked(numbers, entry.size, sum(numbers[1::2]), entry.path)
    xattrs = {_text(_unbase64(key)): _unbase64(value) for key, value in more.get("xattrs", ())}
    return Entry(
        entry.path, entry.type, entry.size, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.linkname,
        entry.offset, entry.uname, entry.gname, major, minor, xattrs, segments,
    )  # fmt: skip


def _more(data: memoryview, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each entry of which there is more to say, ascending, and what that is."""
    text = JsonText(data)
    before = -1
    for _ in text.each("[", "]"):
        number, more = text.value()
        if type(number) is not int or not before < number < count or not isinstance(more, dict):
            raise CorruptData("a list of entries that says more of one that is none")
        before = number
        yield number, more
    text.end()


def _sections(data: memoryview, count: int) -> Sequence[memoryview]:
    sections = []
    for _ in range(count):
        (nbytes,) = _SECTION.unpack_from(data)
        data = data[_SECTION.size :]
        if nbytes > len(data):
            raise CorruptData("a list of entries that ends early")
        sections.append(data[:nbytes])
        data = data[nbytes:]
    if len(data):
        raise CorruptData("a list of entries with something behind it")
    return sections


def _numbers(section: memoryview, count: int) -> list[int]:
    found = column(section)
    if len(found) != count:
        raise CorruptData("a list of entries with columns of different lengths")
    return found.tolist()


def column(data: memoryview) -> array[int]:
    """Numbers of 8 bytes, little endian; `ValueError` when they are not whole."""
    found = array("q")
    found.frombytes(data)
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _texts(section: memoryview, count: int) -> list[str]:
    data = bytes(section)
    if data.count(b"\0") != count or not data.endswith(b"\0" if count else b""):
        raise CorruptData("a list of entries with columns of different lengths")
    return _text(data).split("\0")[:-1]


def packed_column(numbers: array[int]) -> bytes:
    """What `column` reads."""
    if sys.byteorder == "little":
        return numbers.tobytes()
    swapped = numbers[:]
    swapped.byteswap()
    return swapped.tobytes()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: object) -> bytes:
    if not isinstance(text, str):
        raise CorruptData("a list of entries with an attribute that is none")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise CorruptData("a list of entries with an attribute that is none") from None
