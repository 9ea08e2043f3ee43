"""A tar stream as entries: POSIX ustar and pax, GNU, v7, as Go, GNU tar, bsdtar and Python write them.

One pass, bounded memory. Every number and name comes from a file that may be hostile. Where headers contradict each
other they mean what they do to Go's archive/tar, which unpacks images: what is shown must be what runs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from blobtee.core import TarHeaders, TarScanner
from blobtee.errors import Closed, CorruptData, TooLarge, Unimplemented
from blobtee.layers import pax, sparse
from blobtee.layers.entry import MAX_PATH, Entry, EntryType, normalise, plain_entry
from blobtee.layers.tarstream import Data, Source
from blobtee.tasks import check

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Bytes of one extended header or long name (Go's archive/tar has the same)."""

_ZERO_BLOCK = bytes(BLOCK)
_MAX_SIZE = 2**63 - 1
_TYPES = {
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHARACTER_DEVICE,
    b"4": EntryType.BLOCK_DEVICE,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
}
"""Types without data, whatever their size field says (as Go's archive/tar reads them). The rest is a file."""

_PLAIN = (EntryType.FILE, EntryType.HARDLINK, EntryType.SYMLINK, EntryType.DIRECTORY, EntryType.FIFO)
"""The types as the C core counts them."""

_XATTR = "SCHILY.xattr."

_Pairs = list[tuple[str, bytes]]


def entries(stream: BinaryIO | io.RawIOBase) -> Iterator[Entry]:
    """The entries of the tar that `stream` gives from its position on, in order.

    Only `read(n)`, `readinto` and, to pass over what nobody asked for, `skip(n)` of the stream are used (see
    `tarstream.Source`), and short reads are fine. It is read up to the end-of-archive mark, or to its end when the
    mark is missing, and is left open; up to `tarstream.WINDOW` bytes more have been read from one that cannot seek
    back. `CorruptData`: a wrong checksum, a tar that breaks off, a path that leads out of the layer. `TooLarge`: an
    extended header beyond `MAX_EXTENDED`. `Unimplemented`: a part of a multi-volume archive. Errors of the stream's
    own, when they are ours, pass through.
    """
    return _Reader(stream).entries()


class _Reader:
    """Most headers are plain, and are read by the C core, as many at once as are held. The rest are read here."""

    def __init__(self, stream: BinaryIO | io.RawIOBase) -> None:
        self._source = Source(stream)
        self._scanner = TarScanner()
        self._serial = 0
        self._end = 0

    def entries(self) -> Iterator[Entry]:
        source = self._source
        while True:
            check()
            headers = self._scan()
            if headers is not None:
                yield from self._plain(headers)
                continue
            entry = self._next()
            if entry is None:
                source.give_back()
                return
            end = self._end
            yield entry
            self._serial += 1
            source.skip_to(_padded(end), padded=_padded(end) - end)

    def _scan(self) -> TarHeaders | None:
        """Plain entries from the position on; None when the next one is not, or too long to be held."""
        source = self._source
        while True:
            headers = self._scanner.scan(source.held, min(source.position - source.held_from, len(source.held)))
            if headers.paths:
                return headers
            if not headers.needs_input or not source.fill():
                return None

    def _plain(self, headers: TarHeaders) -> Iterator[Entry]:
        source, owners, opener = self._source, headers.owners, self._open
        start = source.position
        rows = zip(*headers.columns, headers.paths, headers.linknames, strict=True)
        for type_, mode, uid, gid, mtime_ns, size, offset, owner, path, linkname in rows:
            uname, gname = owners[owner]
            # The next one's header is held, so nothing has to be skipped to get there.
            source.position = begin = start + offset
            self._end = begin + size
            yield plain_entry(
                path, _PLAIN[type_], size, mode, uid, gid, mtime_ns, linkname, begin, uname, gname, opener
            )
            self._serial += 1
        source.skip_to(start + headers.next, padded=start + headers.next - self._end)

    def _next(self) -> Entry | None:
        """The next entry with all that its extra headers say; None at the end of the archive."""
        pairs: _Pairs = []
        long_name = long_link = None
        extra = 0
        while True:
            header = self._header()
            if header is None:
                if extra:
                    raise CorruptData("the tar ends after an extended header")
                return None
            kind = header[156:157]
            if kind in (b"x", b"X", b"g", b"L", b"K"):
                block = self._extended(header)
                extra += len(block) + BLOCK
                if extra > 4 * MAX_EXTENDED:
                    raise TooLarge("one entry with too many extended headers")
                if kind == b"L":
                    long_name = pax.text(block.partition(b"\0")[0])
                elif kind == b"K":
                    long_link = pax.text(block.partition(b"\0")[0])
                else:
                    pairs = pax.records(block)
                if kind == b"g":
                    # containerd ignores what is said of all files, and with it what was said of the next one so far.
                    pairs, long_name, long_link, extra = [], None, None, 0
            elif kind == b"V":
                self._skip(header)  # the archive's label
            else:
                return self._entry(header, kind, pairs, long_name, long_link)

    def _header(self) -> bytes | None:
        header = self._source.read(BLOCK)
        if not header or header == _ZERO_BLOCK:
            return None
        if len(header) < BLOCK:
            raise CorruptData("the tar ends within a header")
        stated = _octal(header[148:156], "checksum")
        unsigned = sum(header) - sum(header[148:156]) + 8 * 32
        if stated != unsigned:
            signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
            if stated != signed:
                raise CorruptData(f"a tar header with a wrong checksum at byte {self._source.position - BLOCK}")
        return header

    def _extended(self, header: bytes) -> bytes:
        size = _size(header[124:136])
        if size > MAX_EXTENDED:
            raise TooLarge(f"an extended header of {size} bytes; the limit is {MAX_EXTENDED}")
        check()
        block = self._source.read(_padded(size))
        if len(block) < size:
            raise CorruptData("the tar ends within an extended header")
        return block[:size]

    def _skip(self, header: bytes) -> None:
        size = _size(header[124:136])
        self._source.skip_to(self._source.position + _padded(size), padded=_padded(size) - size)

    def _entry(self, header: bytes, kind: bytes, pairs: _Pairs, long_name: str | None, long_link: str | None) -> Entry:
        if kind == b"M":
            raise Unimplemented("a part of a multi-volume tar; join the volumes first")
        # An empty value takes a field back to what the header says; an attribute may well be empty.
        records = {key: value for key, value in dict(pairs).items() if value or key.startswith(_XATTR)}
        name, linkname = _names(header)
        name = long_name or pax.text(records.get("path", b"")) or name
        linkname = long_link or pax.text(records.get("linkpath", b"")) or linkname
        numbers = pax.sparse_numbers(pairs)
        if numbers is not None and kind != b"S":
            name = pax.text(records.get("GNU.sparse.name", b"")) or name
        stored = pax.number(records["size"], "size") if "size" in records else _size(header[124:136])
        if not 0 <= stored <= _MAX_SIZE:
            raise CorruptData(f"a tar entry of {stored} bytes")
        type_ = EntryType.DIRECTORY if _is_directory(kind, name) else _TYPES.get(kind, EntryType.FILE)
        path = normalise(name, "a path")
        if not path and type_ is not EntryType.DIRECTORY:
            raise CorruptData("a tar entry without a name")
        size, segments = stored, None
        if kind in _TYPES:
            size = stored = 0
        elif type_ is EntryType.FILE:
            size, stored, segments = self._sparse(header, kind, numbers, records, stored, path)
        self._end = self._source.position + stored
        is_posix = header[257:262] == b"ustar"
        is_device = is_posix and type_ in (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
        return Entry(
            path=path,
            type=type_,
            size=size if type_ is EntryType.FILE else 0,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=pax.number(records["uid"], "uid") if "uid" in records else _number(header[108:116], "uid"),
            gid=pax.number(records["gid"], "gid") if "gid" in records else _number(header[116:124], "gid"),
            mtime_ns=pax.nanoseconds(records["mtime"], "mtime")
            if "mtime" in records
            else _number(header[136:148], "mtime") * 1_000_000_000,
            linkname=self._linkname(type_, linkname),
            offset=self._source.position,
            uname=pax.text(records["uname"]) if "uname" in records else _text(header[265:297]) * is_posix,
            gname=pax.text(records["gname"]) if "gname" in records else _text(header[297:329]) * is_posix,
            devmajor=_number(header[329:337], "device number") if is_device else 0,
            devminor=_number(header[337:345], "device number") if is_device else 0,
            xattrs={key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)},
            sparse=segments,
            _opener=self._open,
        )

    @staticmethod
    def _linkname(type_: EntryType, linkname: str) -> str:
        if type_ is EntryType.HARDLINK:
            target = normalise(linkname, "a hard link's target")
            if not target:
                raise CorruptData("a hard link to the layer's root")
            return target
        if type_ is not EntryType.SYMLINK:
            return ""
        if not linkname or "\0" in linkname or len(linkname) > MAX_PATH:
            raise CorruptData(f"a symbolic link with no, an over-long or a broken target: {linkname[:100]!r}")
        return linkname

    def _sparse(
        self,
        header: bytes,
        kind: bytes,
        numbers: list[int] | None,
        records: dict[str, bytes],
        stored: int,
        path: str,
    ) -> tuple[int, int, tuple[sparse.Segment, ...] | None]:
        """Content size, stored size (without a map in front), and the segments of a file with holes."""
        if kind == b"S":
            return self._old_sparse(header, stored, path)
        if numbers is None:
            return stored, stored, None
        if records.get("GNU.sparse.major") == b"1":
            return self._sparse_map(records, stored, path)
        size = self._real_size(records, path)
        return size, stored, sparse.checked(numbers, size, stored, path)

    @staticmethod
    def _real_size(records: dict[str, bytes], path: str) -> int:
        for key in ("GNU.sparse.size", "GNU.sparse.realsize"):
            if key in records:
                size = pax.number(records[key], key)
                if 0 <= size <= _MAX_SIZE:
                    return size
        raise CorruptData(f"{path[:100]}: a sparse file without its size")

    def _sparse_map(
        self, records: dict[str, bytes], stored: int, path: str
    ) -> tuple[int, int, tuple[sparse.Segment, ...]]:
        """Format 1.0: the map is decimal lines in front of the data, filled up to whole blocks."""
        text = bytearray()
        wanted, lines = 1, 0
        while True:
            if lines >= 1 and wanted == 1:
                wanted = 1 + 2 * pax.number(bytes(text[: text.index(b"\n")]), "sparse map")
                if not 1 <= wanted <= 1 + 2 * sparse.MAX_SEGMENTS:
                    raise CorruptData(f"{path[:100]}: a sparse map of {wanted} numbers")
            if lines >= max(wanted, 1):
                break
            if len(text) + BLOCK > min(stored, MAX_EXTENDED * 2):
                raise CorruptData(f"{path[:100]}: a sparse map that does not end")
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                raise CorruptData("the tar ends within a sparse map")
            text += block
            lines += block.count(b"\n")
        numbers = [pax.number(line, "sparse map") for line in bytes(text).split(b"\n", wanted)[1:wanted]]
        size = self._real_size(records, path)
        rest = stored - len(text)
        return size, rest, sparse.checked(numbers, size, rest, path)

    def _old_sparse(self, header: bytes, stored: int, path: str) -> tuple[int, int, tuple[sparse.Segment, ...]]:
        """The old GNU format: four segments in the header, 21 in each block that follows while a flag says so."""
        numbers: list[int] = []
        block, first, count, more = header, 386, 4, header[482]
        while True:
            for i in range(count):
                at = first + 24 * i
                if not block[at]:
                    break
                numbers += [_size(block[at : at + 12]), _size(block[at + 12 : at + 24])]
            if not more:
                break
            if len(numbers) > 2 * sparse.MAX_SEGMENTS:
                raise TooLarge(f"{path[:100]}: more than {sparse.MAX_SEGMENTS} sparse segments")
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                raise CorruptData("the tar ends within a sparse map")
            first, count, more = 0, 21, block[504]
        size = _size(header[483:495])
        return size, stored, sparse.checked(numbers, size, stored, path)

    def _open(self, entry: Entry, expand: bool) -> io.RawIOBase:
        stored = sum(segment.length for segment in entry.sparse) if entry.sparse is not None else entry.size
        if self._source.position != entry.offset:
            raise Closed(f"{entry.path}: its data was read already, or the tar has moved on")
        serial = self._serial
        data = Data(self._source, entry.offset + stored, lambda: self._serial == serial)
        return data if entry.sparse is None or not expand else sparse.ExpandedFile(data, entry.sparse, entry.size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_directory(kind: bytes, name: str) -> bool:
    # v7 had no directory type: a final slash says it. GNU's D is a directory with a list of its names as data.
    return kind in (b"5", b"D") or (kind == b"\0" and name.endswith("/"))


def _text(field: bytes) -> str:
    return pax.text(field.partition(b"\0")[0])


def _names(header: bytes) -> tuple[str, str]:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        # star keeps times where POSIX has the last 24 bytes of the prefix, and says so at the very end.
        is_star = header[508:512] == b"tar\0"
        name = _text(header[345:476] if is_star else header[345:500]) + "/" + name
    elif header[257:265] == b"ustar  \0" and not (_is_time(header[345:357]) and _is_time(header[357:369])):
        # GNU's format has times there. Go wrote a prefix all the same until 1.8, and reads it.
        prefix = header[345:500].partition(b"\0")[0]
        name = _text(prefix) + "/" + name if prefix.isascii() and prefix else name
    return name, _text(header[157:257])


def _is_time(field: bytes) -> bool:
    """Whether a field that may be left empty has a number."""
    try:
        return not field[0] or _number(field, "time") is not None
    except CorruptData:
        return False


def _octal(field: bytes, what: str) -> int:
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits.isdigit() else _refuse(field, what)
    except ValueError:
        return _refuse(field, what)


def _number(field: bytes, what: str) -> int:
    """An octal field, or GNU's base-256 one: big-endian two's complement behind a set top bit."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if abs(value) > _MAX_SIZE:
            _refuse(field, what)
        return value
    return _octal(field, what)


def _size(field: bytes) -> int:
    size = _number(field, "size")
    return size if size >= 0 else _refuse(field, "size")


def _refuse(field: bytes, what: str) -> int:
    raise CorruptData(f"a tar header whose {what} is no number: {field!r}")
