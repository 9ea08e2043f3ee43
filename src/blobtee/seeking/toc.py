"""Tables of contents in JSON, as eStargz and both dialects of zstd:chunked have them.

One object for each entry of the tar, in its order; a file's further chunks follow it as entries of type "chunk".
(stargz-snapshotter, `docs/estargz.md`, "TOC"; containers/storage, `docs/containers-storage-zstd-chunked.md`.)
"""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from blobtee.content import Trust
from blobtee.core import Sha256
from blobtee.errors import CorruptData, DigestMismatch, InvalidArgument, TooLarge, Unimplemented
from blobtee.layers import Entry, EntryType
from blobtee.layers.entry import MAX_PATH, normalise
from blobtee.oci import Digest
from blobtee.oci.times import from_rfc3339
from blobtee.seeking.api import Contents
from blobtee.seeking.jsontext import JsonText
from blobtee.seeking.listing import MAX_ENTRIES, MAX_EXTRAS
from blobtee.seeking.spans import MAX_IN_VAIN, MAX_SPAN, SpannedStream, SpanTable
from blobtee.tasks import check

MAX_TOC = 150 << 20
"""Bytes of a table, unpacked."""

_DIGEST_NBYTES = 32
_MAX_NUMBER = (1 << 63) - 1
_NUMBER = re.compile(r"[0-9]{1,19}\Z")
_TYPES = {
    "reg": EntryType.FILE,
    "dir": EntryType.DIRECTORY,
    "symlink": EntryType.SYMLINK,
    "hardlink": EntryType.HARDLINK,
    "char": EntryType.CHARACTER_DEVICE,
    "block": EntryType.BLOCK_DEVICE,
    "fifo": EntryType.FIFO,
}
_DEVICES = (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
_ZEROS = "zeros"

Decode = Callable[[memoryview, memoryview, int], None]
"""Fills the second with what the first holds from so many bytes on; `CorruptData` when there is less."""


def position(text: str, least: int, blob_nbytes: int) -> list[int]:
    """The numbers in an annotation that says `offset:length:…`, at least so many; `CorruptData` unless the bytes are
    within a blob of `blob_nbytes` and the numbers are some."""
    parts = text.split(":") if len(text) <= 200 else []
    if len(parts) < least or not all(map(_NUMBER.match, parts)):
        raise CorruptData(f"{text[:100]!r} is no place in a layer")
    numbers = [int(part) for part in parts]
    if numbers[0] + numbers[1] > blob_nbytes or numbers[1] > MAX_TOC:
        raise CorruptData(f"{text[:100]!r} is no place in a layer of {blob_nbytes} bytes")
    return numbers


def check_digest(what: str, expected: str, data: bytes | memoryview) -> None:
    """`DigestMismatch`; `Unimplemented` for another algorithm than SHA-256, `InvalidDigest` for no digest."""
    digest = Digest(expected)
    if digest.algorithm != "sha256":
        raise Unimplemented(f"{what}: a digest of {digest.algorithm}")
    actual = Sha256(data).hexdigest()
    if actual != digest.hex:
        raise DigestMismatch(what, digest, f"sha256:{actual}")


class Chunks(SpannedStream):
    """A span is a chunk of a file, which begins `inner` bytes within what its place unpacks to."""

    proof = Trust.ATTESTED

    def __init__(self, table: SpanTable, decode: Decode, digests: bytes, inner: Sequence[int]) -> None:
        super().__init__(table)
        self._decode = decode
        self._digests = digests
        self._inner = inner

    def unpack(self, number: int, packed: memoryview) -> memoryview:
        out = memoryview(bytearray(self.table[number].nbytes))
        self._decode(packed, out, self._inner[number])
        expected = self._digests[number * _DIGEST_NBYTES : (number + 1) * _DIGEST_NBYTES]
        actual = Sha256(out)
        if actual.digest() != expected:
            what = f"a chunk at byte {self.table[number].packed_at} of the layer"
            raise DigestMismatch(what, f"sha256:{expected.hex()}", f"sha256:{actual.hexdigest()}")
        return out


def contents(table: bytes | bytearray | memoryview, blob_nbytes: int, ends: Sequence[int], decode: Decode) -> Contents:
    """What `table` tells of a blob of `blob_nbytes` bytes; the offsets of its entries are those of the files' contents
    laid end to end. `ends` are places of the blob where no chunk goes on.

    `CorruptData`: it is no such table, its chunks leave a file incomplete or out of order, or lie out of the blob.
    `TooLarge` beyond the bounds of this file, `listing` and `spans`. `Unimplemented`: a chunk has no digest, or none
    that is SHA-256.
    """
    reader = _Reader()
    try:
        for number, row in enumerate(_rows(JsonText(table))):
            if number % 256 == 0:
                check()
            if number >= MAX_ENTRIES:
                raise TooLarge(f"a table of contents of more than {MAX_ENTRIES} entries")
            reader.add(row)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise CorruptData(f"a table of contents that is damaged: {error}") from None
    return reader.contents(blob_nbytes, ends, decode)


class _Reader:
    """Rows of the table to entries and chunks."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._chunks: list[tuple[int, int, int, int]] = []
        """Offset in the blob, end if it is told (else 0), bytes before it there, its own; offset -1 for zeros."""
        self._digests = bytearray()
        self._extras = 0
        self._size = 0
        self._left = 0
        self._end = self._before = 0
        self._name = ""
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def add(self, row: dict[str, Any]) -> None:
        name, kind = _text(row, "name"), _text(row, "type")
        if kind == "chunk":
            if not self._left or _path(name) != self._name:
                raise CorruptData(f"{name[:100]}: a chunk that belongs to no file before it")
            self._chunk(row)
            return
        self._finish()
        entry = self._entry(row, _path(name), kind)
        self._extras += len(entry.xattrs)
        if self._extras > MAX_EXTRAS:
            raise TooLarge(f"a table of contents of more than {MAX_EXTRAS} attributes")
        self._entries.append(entry)
        self._name, self._left = entry.path, entry.size
        self._end = self._before = 0
        if entry.size:
            self._end = _number(row, "endOffset")
            self._chunk(row)

    def contents(self, blob_nbytes: int, ends: Sequence[int], decode: Decode) -> Contents:
        self._finish()
        borders = sorted({offset for offset, *_ in self._chunks if offset >= 0} | set(ends) | {blob_nbytes})
        table = SpanTable(blob_nbytes)
        for offset, end, _, nbytes in self._chunks:
            if offset < 0:
                table.append(nbytes, 0, 0)
                continue
            if offset >= blob_nbytes:
                raise CorruptData(f"a table of contents with a chunk at {offset} of a blob of {blob_nbytes} bytes")
            border = borders[bisect_right(borders, offset)]
            end = min(end, border) if end > offset else border
            table.append(nbytes, offset, end - offset)
        inner = [before for _, _, before, _ in self._chunks]
        stream = Chunks(table, decode, bytes(self._digests), inner)
        return Contents(self._entries, stream, Trust.ATTESTED)

    def _finish(self) -> None:
        if self._left:
            raise CorruptData(f"{self._name[:100]}: a table of contents without {self._left} bytes of it")

    def _entry(self, row: dict[str, Any], path: str, kind: str) -> Entry:
        type_ = _TYPES.get(kind)
        if type_ is None:
            raise CorruptData(f"{path[:100]}: a table of contents with an entry of type {kind[:40]!r}")
        if not path and type_ is not EntryType.DIRECTORY:
            raise CorruptData("a table of contents with an entry that has no name")
        device = type_ in _DEVICES
        uid, gid = _number(row, "uid"), _number(row, "gid")
        # The writers tell a name once for each id.
        uname = self._users[uid] = _text(row, "userName") or self._users.get(uid, "")
        gname = self._groups[gid] = _text(row, "groupName") or self._groups.get(gid, "")
        return Entry(
            path=path,
            type=type_,
            size=_number(row, "size") if type_ is EntryType.FILE else 0,
            mode=_number(row, "mode") & 0o7777,
            uid=uid,
            gid=gid,
            mtime_ns=_time(row),
            linkname=_linkname(row, type_),
            offset=self._size,
            uname=uname,
            gname=gname,
            devmajor=_number(row, "devMajor") if device else 0,
            devminor=_number(row, "devMinor") if device else 0,
            xattrs=_xattrs(row),
        )

    def _chunk(self, row: dict[str, Any]) -> None:
        position = self._entries[-1].size - self._left
        if _number(row, "chunkOffset") != position:
            raise CorruptData(f"{self._name[:100]}: chunks that overlap, or leave something out")
        nbytes = _number(row, "chunkSize") or self._left
        if nbytes > self._left:
            raise CorruptData(f"{self._name[:100]}: chunks of more bytes than it has")
        zeros = _text(row, "chunkType") == _ZEROS
        if zeros:
            self._chunks.append((-1, 0, 0, nbytes))
            self._digests += bytes(_DIGEST_NBYTES)
        else:
            inner = _number(row, "innerOffset")
            if inner + nbytes > MAX_SPAN:
                raise TooLarge(f"{self._name[:100]}: a chunk of {inner + nbytes} bytes; the limit is {MAX_SPAN}")
            self._before += inner
            if self._before > MAX_IN_VAIN + 4 * self._entries[-1].size:
                raise TooLarge(f"{self._name[:100]}: chunks behind {self._before} bytes that are unpacked in vain")
            self._chunks.append((_number(row, "offset"), self._end, inner, nbytes))
            self._digests += self._digest(row, whole=nbytes == self._entries[-1].size)
        self._left -= nbytes
        self._size += nbytes
        if self._size > _MAX_NUMBER:
            raise CorruptData("a table of contents of more bytes than numbers can say")

    def _digest(self, row: dict[str, Any], *, whole: bool) -> bytes:
        text = _text(row, "chunkDigest") or (_text(row, "digest") if whole else "")
        if not text:
            raise Unimplemented(f"{self._name[:100]}: a chunk without a digest")
        digest = Digest(text)
        if digest.algorithm != "sha256":
            raise Unimplemented(f"{self._name[:100]}: a chunk with a digest of {digest.algorithm}")
        return bytes.fromhex(digest.hex)


def _rows(text: JsonText) -> Iterator[dict[str, Any]]:
    """The objects in the top object's array "entries"."""
    found = False
    for _ in text.each("{", "}"):
        key = text.value()
        text.take(":")
        if key == "entries" and text.peek() == "[":
            if found:
                raise CorruptData("a table of contents with two lists of entries")
            found = True
            for _ in text.each("[", "]"):
                row = text.value()
                if not isinstance(row, dict):
                    raise CorruptData("a table of contents with an entry that is none")
                yield row
        else:
            value = text.value()
            if key == "version" and value != 1:
                raise CorruptData(f"a table of contents of version {str(value)[:20]}")
    text.end()


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str) or "\0" in value:
        raise CorruptData(f"a table of contents whose {key} is no text")
    return _one_spelling(value, key)


def _one_spelling(value: str, what: str) -> str:
    """The text for its bytes as a tar's reader has it. JSON may escape halves of surrogate pairs: some stand for no
    bytes, and others, put together, for bytes that are a letter. Two names for one file would be a way to hide it."""
    if value.isascii():
        return value
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise CorruptData(f"a table of contents whose {what} is no text") from None


def _number(row: dict[str, Any], key: str) -> int:
    value = row.get(key) or 0
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise CorruptData(f"a table of contents whose {key} is {str(value)[:40]}")
    return value


def _path(name: str) -> str:
    # Absolute and relative names mean the same, as they do in a tar.
    return normalise(name, "a path")


def _linkname(row: dict[str, Any], type_: EntryType) -> str:
    target = _text(row, "linkName")
    if type_ is EntryType.HARDLINK:
        target = normalise(target, "a hard link's target")
    elif type_ is not EntryType.SYMLINK:
        return ""
    if not target or len(target) > MAX_PATH:
        raise CorruptData("a table of contents with a link to nowhere")
    return target


def _time(row: dict[str, Any]) -> int:
    text = _text(row, "modtime")
    if not text:
        return 0
    nanoseconds = from_rfc3339(text)
    if nanoseconds is None:
        raise CorruptData(f"a table of contents with a time that is none: {text[:40]!r}")
    return nanoseconds


def _xattrs(row: dict[str, Any]) -> dict[str, bytes]:
    told = row.get("xattrs") or {}
    if not isinstance(told, dict):
        raise CorruptData("a table of contents with attributes that are none")
    found = {}
    for key, value in told.items():
        try:
            found[_one_spelling(key, "attribute")] = base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise CorruptData("a table of contents with an attribute that is no base64") from None
    return found
