"""The table of contents of an eStargz blob (stargz-snapshotter, `docs/estargz.md`, "TOC")."""

from __future__ import annotations

import base64
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from blobtee.compression.estargz import TOC_NAME
from blobtee.conversion.spool import Spool
from blobtee.core import Sha256
from blobtee.errors import TooLarge
from blobtee.layers import Entry, EntryType

Consume = Callable[[bytes], object]

_TYPES = {
    EntryType.FILE: "reg",
    EntryType.DIRECTORY: "dir",
    EntryType.SYMLINK: "symlink",
    EntryType.HARDLINK: "hardlink",
    EntryType.CHARACTER_DEVICE: "char",
    EntryType.BLOCK_DEVICE: "block",
    EntryType.FIFO: "fifo",
}
_EPOCH = datetime(1970, 1, 1)
_SECOND = 1_000_000_000
_BEGIN = b'{"version":1,"entries":['
# Not a byte after the last brace: Go's decoder may leave it unread, and the digest would be another.
_END = b"\n]}"
_BLOCK = 512
_MAX_NBYTES = 8**11 - 1
"""What the size field of the table's own tar header holds."""
_GATHERED = 256
"""Lines that go to the spool together."""

_GZIP_HEADER = b"\x1f\x8b\x08\x00" + bytes(5) + b"\xff"
_GZIP_TRAILER_NBYTES = 8
_MAX_STORED = 65_535


class Chunk(NamedTuple):
    """`nbytes` bytes of a file from `position` on: the member at `offset` begins with them. `digest`: their SHA-256."""

    offset: int
    position: int
    nbytes: int
    digest: str


class File(NamedTuple):
    """A file's chunks from its first to its last byte, and the digest of it all."""

    entry: Entry
    chunks: Sequence[Chunk]
    digest: str


class Written(NamedTuple):
    """`digest` is the table's, as hex digits of SHA-256; `nbytes` is how long its member came out."""

    digest: str
    nbytes: int


class Table:
    """Lines of JSON, one for each entry and each further chunk: some 300 bytes each, in a spool, so memory stays small.

    Readers have all of it in memory, so what they can bear is the limit; `TooLarge` comes at 8 GiB. JSON cannot hold
    names that are not UTF-8: they are told with U+FFFD, and only the tar has them as they are.
    """

    def __init__(self) -> None:
        self._spool = Spool()
        self._lines: list[str] = []
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def add(self, entry: Entry) -> None:
        """Append what is not a file, or an empty one."""
        digest = Sha256().hexdigest() if entry.type is EntryType.FILE else ""
        self._append(_lines(File(entry, (), digest), *self._names(entry)))

    def add_file(self, file: File) -> None:
        self._append(_lines(file, *self._names(file.entry)))

    def write(self, consume: Consume, diff: Sha256, *, offset: int, level: int, late: Sequence[File] = ()) -> Written:
        """Write the table's member, which begins at `offset` of the blob: a tar of one file, with its end.

        `diff` is fed with what the member holds. The members of the files in `late` come behind this one: their chunks'
        offsets are counted from its end, and made absolute here.
        """
        self._flush()
        end = _late_lines(late, 0, first=not self._spool.nbytes) + _END
        nbytes = len(_BEGIN) + self._spool.nbytes + len(end)
        if nbytes > _MAX_NBYTES:
            raise TooLarge(f"a table of contents of {nbytes} bytes; the limit is {_MAX_NBYTES}")
        header = tarfile.TarInfo(TOC_NAME)
        header.size = nbytes
        padding = bytes(-nbytes % _BLOCK + 2 * _BLOCK)

        member = _Member(consume, diff, min(level, zlib.Z_BEST_COMPRESSION))
        member.put(header.tobuf(tarfile.USTAR_FORMAT))
        digest = Sha256()
        for piece in self._pieces():
            digest.update(piece)
            member.put(piece)
        if late:
            # Where the member ends depends on its own length: so its last part is stored, and the numbers have a width.
            behind = offset + member.flush() + _stored_nbytes(len(end) + len(padding)) + _GZIP_TRAILER_NBYTES
            end = _late_lines(late, behind, first=not self._spool.nbytes) + _END
            digest.update(end)
            member.finish_stored(end + padding)
        else:
            digest.update(end)
            member.put(end + padding)
            member.finish()
        return Written(digest.hexdigest(), member.nbytes)

    def close(self) -> None:
        self._spool.close()

    def _append(self, lines: Iterator[str]) -> None:
        self._lines += lines
        if len(self._lines) >= _GATHERED:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            before = ",\n" if self._spool.nbytes else "\n"
            self._spool.write((before + ",\n".join(self._lines)).encode("ascii"))
            self._lines.clear()

    def _pieces(self) -> Iterator[bytes]:
        yield _BEGIN
        yield from self._spool.pieces()

    def _names(self, entry: Entry) -> tuple[str, str]:
        """Names of user and group, each only where it is another than that id had before."""
        uname, gname = entry.uname, entry.gname
        if uname and self._users.get(entry.uid) == uname:
            uname = ""
        elif uname:
            self._users[entry.uid] = uname
        if gname and self._groups.get(entry.gid) == gname:
            gname = ""
        elif gname:
            self._groups[entry.gid] = gname
        return uname, gname


def _lines(file: File, uname: str, gname: str, offset: Callable[[int], str] = str) -> Iterator[str]:
    """The file's lines, keys in the order of the format's own writer; fields that say nothing are left out.

    The first chunk is told with the file; `chunkSize` is left out where the chunk goes to the file's end.
    """
    entry, chunks, digest = file
    name = json.dumps(_utf8(entry.path))
    slash = "" if entry.type is not EntryType.DIRECTORY else "/" if entry.path else "./"
    fields = [f'{{"name":{name[:-1]}{slash}","type":"{_TYPES[entry.type]}"']
    if entry.size:
        fields.append(f'"size":{entry.size}')
    if modtime := _modtime(entry.mtime_ns):
        fields.append(f'"modtime":"{modtime}"')
    if entry.linkname:
        fields.append(f'"linkName":{json.dumps(_utf8(entry.linkname))}')
    if entry.mode:
        fields.append(f'"mode":{entry.mode}')
    if entry.uid:
        fields.append(f'"uid":{entry.uid}')
    if entry.gid:
        fields.append(f'"gid":{entry.gid}')
    if uname:
        fields.append(f'"userName":{json.dumps(_utf8(uname))}')
    if gname:
        fields.append(f'"groupName":{json.dumps(_utf8(gname))}')
    if chunks:
        fields.append(f'"offset":{offset(chunks[0].offset)}')
    if entry.devmajor:
        fields.append(f'"devMajor":{entry.devmajor}')
    if entry.devminor:
        fields.append(f'"devMinor":{entry.devminor}')
    if entry.xattrs:
        told = {_utf8(key): base64.b64encode(value).decode() for key, value in entry.xattrs.items()}
        fields.append(f'"xattrs":{json.dumps(told, sort_keys=True, separators=(",", ":"))}')
    if digest:
        fields.append(f'"digest":"sha256:{digest}"')
    if len(chunks) > 1:
        fields.append(f'"chunkSize":{chunks[0].nbytes}')
    if chunks:
        fields.append(f'"chunkDigest":"sha256:{chunks[0].digest}"')
    yield ",".join(fields) + "}"
    for chunk in chunks[1:]:
        size = f',"chunkSize":{chunk.nbytes}' if chunk is not chunks[-1] else ""
        yield (
            f'{{"name":{name},"type":"chunk","offset":{offset(chunk.offset)},"chunkOffset":{chunk.position}{size}'
            f',"chunkDigest":"sha256:{chunk.digest}"}}'
        )


def _late_lines(files: Sequence[File], base: int, *, first: bool) -> bytes:
    """Lines that are of the same length whatever `base` is. All names are told: so no line depends on another."""
    lines = [
        line
        for file in files
        for line in _lines(file, file.entry.uname, file.entry.gname, lambda offset: f"{base + offset:20}")
    ]
    return (("\n" if first else ",\n") + ",\n".join(lines)).encode("ascii") if lines else b""


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def _modtime(mtime_ns: int) -> str:
    """RFC 3339 in UTC, to the nearest second; nothing for the epoch, and for years that are not of four digits."""
    if 0 <= mtime_ns < _SECOND:
        return ""
    try:
        return (_EPOCH + timedelta(seconds=(mtime_ns + _SECOND // 2) // _SECOND)).isoformat() + "Z"
    except OverflowError:
        return ""


def _stored_nbytes(nbytes: int) -> int:
    """How long `nbytes` bytes are in stored blocks of deflate."""
    return nbytes + 5 * -(-nbytes // _MAX_STORED)


class _Member:
    """One gzip member, written as it comes: the table can be longer than what should be in memory."""

    def __init__(self, consume: Consume, diff: Sha256, level: int) -> None:
        self._consume = consume
        self._diff = diff
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc = 0
        self._holds = 0
        self.nbytes = 0
        self._send(_GZIP_HEADER)

    def put(self, data: bytes) -> None:
        self._count(data)
        self._send(self._deflate.compress(data))

    def flush(self) -> int:
        """Come to a byte's border; how long the member is up to there."""
        self._send(self._deflate.flush(zlib.Z_SYNC_FLUSH))
        return self.nbytes

    def finish(self) -> None:
        self._send(self._deflate.flush())
        self._end()

    def finish_stored(self, data: bytes) -> None:
        """After `flush`: `data`, which is not empty, comes last, and as it is."""
        self._count(data)
        for start in range(0, len(data), _MAX_STORED):
            piece = data[start : start + _MAX_STORED]
            last = start + len(piece) == len(data)
            head = len(piece).to_bytes(2, "little") + (len(piece) ^ 0xFFFF).to_bytes(2, "little")
            self._send(bytes([last]) + head + piece)
        self._end()

    def _count(self, data: bytes) -> None:
        self._diff.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self._holds += len(data)

    def _end(self) -> None:
        self._send(self._crc.to_bytes(4, "little") + (self._holds & 0xFFFF_FFFF).to_bytes(4, "little"))

    def _send(self, packed: bytes) -> None:
        if packed:
            self._consume(packed)
            self.nbytes += len(packed)
