"""The bytes in front of a tar entry's data: ustar, and a PAX extended header for what ustar cannot say.

Source of the facts: POSIX.1-2017, pax; star's `SCHILY.xattr.` records, which Go, GNU tar and bsdtar know.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import adler32

from blobtee.errors import InvalidArgument, TooLarge
from blobtee.layers.entry import MAX_PATH, EntryType
from blobtee.layers.reader import BLOCK, MAX_EXTENDED

XATTR = b"SCHILY.xattr."
FILE = b"0"
HARDLINK = b"1"
DIRECTORY = b"5"
_EXTENDED = b"x"
KINDS = {
    EntryType.FILE: FILE,
    EntryType.HARDLINK: HARDLINK,
    EntryType.SYMLINK: b"2",
    EntryType.CHARACTER_DEVICE: b"3",
    EntryType.BLOCK_DEVICE: b"4",
    EntryType.DIRECTORY: DIRECTORY,
    EntryType.FIFO: b"6",
}

_SECOND = 1_000_000_000
_MAX_8 = 0o7777777
_MAX_12 = 0o77777777777
_NAME = 100
_PREFIX = 155
_OWNER = 32
# Any name does: readers take the one of the entry that follows. The same for all, so that the block can be kept.
_EXTENDED_NAME = b"PaxHeaders/entry"
# By the length of the records, which is mostly that of a time.
_extended_headers: dict[int, bytes] = {}
_MAX_IDS = 4096
_ids: dict[tuple[int, int, int], bytes] = {}
"""Mode, uid and gid as written: few files differ in them, and numbers are most of a header's work."""


def header(
    path: bytes,
    kind: bytes,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime_ns: int = 0,
    linkname: bytes = b"",
    devmajor: int = 0,
    devminor: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
    uname: bytes = b"",
    gname: bytes = b"",
) -> bytes:
    """The header blocks of one entry; `path` of a directory ends in a slash. Times are nanoseconds since the epoch.

    A path or link beyond ustar's fields, an id above 2,097,151, a size from 8 GiB on, a time before 1970 or with a
    fraction of a second, and extended attributes bring a PAX header, nothing else does. Names go out as they are,
    whatever their encoding. `InvalidArgument` for what no tar can say, `TooLarge` for what readers refuse: a PAX header
    beyond `MAX_EXTENDED`, a path or link beyond `MAX_PATH`.
    """
    seconds, fraction = divmod(mtime_ns, _SECOND)
    records = b""
    name, prefix = path, b""
    # Nearly all entries pass this one test, but for their time's fraction.
    if (
        len(path) > _NAME
        or len(linkname) > _NAME
        or xattrs
        or not 0 <= uid <= _MAX_8
        or not 0 <= gid <= _MAX_8
        or not 0 <= size <= _MAX_12
        or not 0 <= seconds <= _MAX_12
        or devmajor | devminor
        or uname
        or gname
    ):
        if len(path) > MAX_PATH or len(linkname) > MAX_PATH:
            raise TooLarge(f"{shown(path)}: a name of more than {MAX_PATH} bytes, which readers refuse")
        name, prefix = _split(path)
        records = _records(path if not name else b"", linkname, uid, gid, size, uname, gname)
        if not name:
            name = path[:_NAME]
        if not 0 <= seconds <= _MAX_12:
            records += _record(b"mtime", _time(mtime_ns))
            seconds = fraction = 0
        if xattrs:
            records += _xattr_records(path, xattrs)
        if not (0 <= devmajor <= _MAX_8 and 0 <= devminor <= _MAX_8):
            raise InvalidArgument(f"{shown(path)}: no tar can hold the device number {devmajor}:{devminor}")
        linkname = linkname if len(linkname) <= _NAME else linkname[:_NAME]
        uname = uname if len(uname) <= _OWNER else b""
        gname = gname if len(gname) <= _OWNER else b""
        uid, gid = uid if uid <= _MAX_8 else 0, gid if gid <= _MAX_8 else 0
        size = size if size <= _MAX_12 else 0
    if fraction:
        # By far the most common record, and never as long as 100 bytes.
        text = b" mtime=%d.%09d" % (seconds, fraction)
        text = text.rstrip(b"0")
        records += b"%d%s\n" % (len(text) + 3, text)
    ids = _ids.get((mode, uid, gid))
    if ids is None:
        if len(_ids) >= _MAX_IDS:
            _ids.clear()
        ids = _ids[mode, uid, gid] = b"%07o\0%07o\0%07o\0" % (mode, uid, gid)
    head = b"%s%s%011o\0%011o\0" % (name.ljust(_NAME, b"\0"), ids, size, seconds)
    if linkname or prefix or uname or gname or devmajor | devminor:
        tail = _tail(kind, linkname, uname, gname, devmajor, devminor, prefix)
        tail_sum = sum(tail)
    else:
        tail, tail_sum = _TAILS[kind]
    # Adler-32's lower half is one more than the sum of the bytes, modulo 65,521: 148 bytes stay below that. It is ten
    # times faster than sum(). The checksum's own field counts as blanks.
    checksum = (adler32(head) & 0xFFFF) - 1 + tail_sum + 8 * 32
    block = b"%s%06o\0 %s" % (head, checksum, tail)
    return _extended(records) + block if records else block


def _tail(
    kind: bytes,
    linkname: bytes = b"",
    uname: bytes = b"",
    gname: bytes = b"",
    devmajor: int = 0,
    devminor: int = 0,
    prefix: bytes = b"",
) -> bytes:
    """What comes after the checksum."""
    tail = b"%s%sustar\x0000%s%s%07o\0%07o\0%s" % (
        kind,
        linkname.ljust(_NAME, b"\0"),
        uname.ljust(_OWNER, b"\0"),
        gname.ljust(_OWNER, b"\0"),
        devmajor,
        devminor,
        prefix,
    )
    return tail.ljust(BLOCK - 156, b"\0")


_TAILS = {kind: (_tail(kind), sum(_tail(kind))) for kind in (*KINDS.values(), _EXTENDED)}


def _split(path: bytes) -> tuple[bytes, bytes]:
    """The path as ustar's name and prefix; an empty name when it does not fit."""
    if len(path) <= _NAME:
        return path, b""
    slash = path.rfind(b"/", 1, min(_PREFIX + 1, len(path) - 1))
    if slash > 0 and len(path) - slash - 1 <= _NAME:
        return path[slash + 1 :], path[:slash]
    return b"", b""


def _records(path: bytes, linkname: bytes, uid: int, gid: int, size: int, uname: bytes, gname: bytes) -> bytes:
    if uid < 0 or gid < 0 or size < 0:
        raise InvalidArgument(f"{shown(path)}: a negative size, uid or gid")
    records = b""
    names = (
        (b"path", path),
        (b"linkpath", linkname if len(linkname) > _NAME else b""),
        (b"uname", uname if len(uname) > _OWNER else b""),
        (b"gname", gname if len(gname) > _OWNER else b""),
    )
    for key, value in names:
        if value:
            records += _record(key, value)
    if not _is_utf8(records):
        # What PAX says to be UTF-8 unless told otherwise.
        records = _record(b"hdrcharset", b"BINARY") + records
    if size > _MAX_12:
        records += _record(b"size", b"%d" % size)
    if uid > _MAX_8:
        records += _record(b"uid", b"%d" % uid)
    if gid > _MAX_8:
        records += _record(b"gid", b"%d" % gid)
    return records


def _xattr_records(path: bytes, xattrs: Mapping[bytes, bytes]) -> bytes:
    records = []
    for key in sorted(xattrs):
        if b"=" in key or b"\0" in key or not key:
            raise InvalidArgument(f"{shown(path)}: no tar can hold an extended attribute of the name {key!r}")
        records.append(_record(XATTR + key, xattrs[key]))
    return b"".join(records)


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    # The length counts its own digits.
    if len(b"%d" % length) + rest != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _time(ns: int) -> bytes:
    seconds, fraction = divmod(abs(ns), _SECOND)
    text = b"%s%d" % (b"-" if ns < 0 else b"", seconds)
    return text + (b".%09d" % fraction).rstrip(b"0") if fraction else text


def _extended(records: bytes) -> bytes:
    size = len(records)
    if size > MAX_EXTENDED:
        raise TooLarge(f"an extended header of {size} bytes; readers take {MAX_EXTENDED}")
    block = _extended_headers.get(size)
    if block is None:
        block = header(_EXTENDED_NAME, _EXTENDED, 0o644, size=size)
        if size < BLOCK:
            _extended_headers[size] = block
    return b"%s%s%s" % (block, records, bytes(-size % BLOCK))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def shown(path: bytes) -> str:
    """A path for people: no surrogates, and not of any length."""
    text = path.decode("utf-8", "backslashreplace")
    return text if len(text) <= 200 else f"{text[:99]}…{text[-100:]}"
