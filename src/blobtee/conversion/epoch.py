"""The times in a tar, clamped to an epoch, and nothing else of it changed (`spec/remote.md` section 5)."""

from __future__ import annotations

import io
from collections.abc import Callable
from zlib import adler32

from blobtee.errors import CorruptData, TooLarge
from blobtee.layers import pax
from blobtee.layers.reader import MAX_EXTENDED
from blobtee.layers.tarstream import Source
from blobtee.tasks import check

_BLOCK = 512
_PIECE = (1 << 20) + _BLOCK
"""Room for the longest extended header with its records."""
_CHECK_EVERY = 256
_TIME_KEYS = frozenset({"mtime", "atime", "ctime", "LIBARCHIVE.creationtime"})
_MTIME = slice(136, 148)
_GNU_MAGIC = b"ustar  \0"
_GNU_TIMES = (slice(345, 357), slice(357, 369))
_STAR_MAGIC = b"tar\0"
_STAR_TIMES = (slice(476, 488), slice(488, 500))
_CHECKSUM = slice(148, 156)
_WITHOUT_DATA = tuple(b"%d" % kind for kind in range(1, 7))
"""Whatever their size field says (as `layers.reader` has it)."""
_MAX_SIZE = 2**63 - 1


def clamp(stream: io.RawIOBase, write: Callable[[bytes | memoryview], object], epoch: int) -> None:
    """Read a tar from `stream` and write it to `write`, with each time after `epoch` (seconds) set to it.

    Times are those of headers, of GNU's and star's additions to them, and of pax records; a record that gets shorter or
    longer may move what follows by blocks. All else is kept: padding, what is behind the end, and what stands where a
    time should be but is none. Pieces have about a mebibyte at most and are valid during the call only. `CorruptData`:
    not a tar, or one that breaks off. `TooLarge`: an extended header beyond `MAX_EXTENDED`. What `write` raises passes
    through.
    """
    _Clamp(stream, write, epoch).run()


class _Clamp:
    """The bytes `_start` to `_at` of the buffer are dealt with but not yet written, those up to `_end` come next."""

    def __init__(self, stream: io.RawIOBase, write: Callable[[bytes | memoryview], object], epoch: int) -> None:
        self._source = Source(stream)
        self._write = write
        self._epoch = epoch
        self._view = memoryview(bytearray(_PIECE))
        self._start = self._at = self._end = 0
        self._records_size: bytes | None = None
        """What the extended header in front of the next entry says of its size."""

    def run(self) -> None:
        number = 0
        while True:
            if number % _CHECK_EVERY == 0:
                check()
            number += 1
            have = self._need(_BLOCK)
            block = bytes(self._view[self._at : self._at + have])
            if not block.strip(b"\0"):
                break
            if have < _BLOCK:
                raise CorruptData("the tar ends within a header")
            _verify(block)
            self._entry(block)
        while self._end > self._at:
            check()
            self._at = self._end
            self._refill()

    def _entry(self, block: bytes) -> None:
        """Pass by one header, and what belongs to it."""
        kind = block[156:157]
        stored = _size(block[124:136])
        if kind in b"xgX":
            self._extended(block, stored)
            return
        self._header(block)
        self._at += _BLOCK
        if kind in b"LKV":
            # A long name, or the archive's label: the entry is still to come.
            self._pass(stored)
            return
        if kind == b"S":
            self._sparse_map(block)
        if kind not in _WITHOUT_DATA:
            size = pax.number(self._records_size, "size") if self._records_size else stored
            if not 0 <= size <= _MAX_SIZE:
                raise CorruptData(f"a tar entry of {size} bytes")
            self._pass(size)
        self._records_size = None

    def _extended(self, block: bytes, stored: int) -> None:
        """Pass by an extended header, with its times clamped."""
        if stored > MAX_EXTENDED:
            raise TooLarge(f"an extended header of {stored} bytes; the limit is {MAX_EXTENDED}")
        if self._need(_BLOCK + _padded(stored)) < _BLOCK + stored:
            raise CorruptData("the tar ends within an extended header")
        raw = bytes(self._view[self._at + _BLOCK : self._at + _BLOCK + stored])
        # Most have neither, but a long name.
        found = pax.records(raw) if b"time=" in raw or b"size=" in raw else []
        # The last one holds; one of all files says nothing, and takes back what was said of the next (`layers.reader`).
        self._records_size = None if block[156:157] == b"g" else dict(found).get("size")
        epoch = b"%d" % self._epoch
        changed = [(key, epoch if key in _TIME_KEYS and self._is_late(key, value) else value) for key, value in found]
        if changed == found:
            self._header(block)
            self._at += _BLOCK
            self._pass(stored)
            return
        body = b"".join(_record(key, value) for key, value in changed)
        if len(body) > MAX_EXTENDED:
            raise TooLarge(f"an extended header of {len(body)} bytes; the limit is {MAX_EXTENDED}")
        header = bytearray(block)
        header[124:136] = b"%011o\0" % len(body)
        made = bytes(self._clamped(header, changed=True)) + body + bytes(-len(body) % _BLOCK)
        end = min(self._at + _BLOCK + _padded(stored), self._end)
        if len(made) == end - self._at:
            self._view[self._at : end] = made
        else:
            self._flush()
            self._write(made)
            self._start = end
        self._at = end

    def _is_late(self, key: str, value: bytes) -> bool:
        whole = value.partition(b".")[0]
        if whole.isdigit() and len(whole) < 20 and int(whole) != self._epoch:
            return int(whole) > self._epoch
        try:
            return pax.nanoseconds(value, key) > self._epoch * 1_000_000_000
        except CorruptData:
            return False

    def _header(self, block: bytes) -> None:
        """Clamp the times of the header at the position."""
        clamped = self._clamped(bytearray(block))
        if clamped != block:
            self._view[self._at : self._at + _BLOCK] = clamped

    def _clamped(self, header: bytearray, *, changed: bool = False) -> bytearray:
        """The header with its times clamped, and added up if anything about it `changed`."""
        if _is_later(header[_MTIME], self._epoch):
            header[_MTIME] = _time(self._epoch)
            changed = True
        magic = header[257:265]
        others: tuple[slice, ...] = ()
        if magic == _GNU_MAGIC:
            others = _GNU_TIMES
        elif magic[:6] == b"ustar\0" and header[508:512] == _STAR_MAGIC:
            others = _STAR_TIMES
        for place in others:
            # Old writers of Go's have a part of the path there, which may begin with any byte of UTF-8.
            if header[place.start] in b"\x8001234567 " and _is_later(header[place], self._epoch):
                header[place] = _time(self._epoch)
                changed = True
        if changed:
            header[_CHECKSUM] = b"%06o\0 " % _sum(header)
        return header

    def _sparse_map(self, block: bytes) -> None:
        """Blocks of old GNU's sparse map go on between header and data."""
        more = block[482]
        while more:
            check()
            if self._need(_BLOCK) < _BLOCK:
                raise CorruptData("the tar ends within a sparse map")
            more = self._view[self._at + 504]
            self._at += _BLOCK

    def _pass(self, nbytes: int) -> None:
        """Go on behind `nbytes` bytes of data and their padding, which may be missing at the very end."""
        left = _padded(nbytes)
        padding = left - nbytes
        while True:
            here = min(left, self._end - self._at)
            self._at += here
            left -= here
            if not left:
                return
            check()
            self._refill()
            if self._at == self._end:
                if left > padding:
                    raise CorruptData("the tar ends within a file")
                return

    def _need(self, nbytes: int) -> int:
        """Have that many bytes at the position, fewer only at the end; how many there are."""
        while self._end - self._at < nbytes:
            before = self._end - self._at
            self._refill()
            if self._end - self._at == before:
                return before
        return nbytes

    def _refill(self) -> None:
        """Write what is dealt with, and read some more behind what is not; nothing at the end."""
        self._flush()
        rest = self._view[self._at : self._end]
        if self._at:
            self._view[: len(rest)] = bytes(rest)
        self._start = self._at = 0
        self._end = len(rest)
        # Decoders give little at a time: small pieces would cost the packer more than they save here.
        while self._end < _PIECE:
            n = self._source.readinto(self._view[self._end :])
            if not n:
                return
            self._end += n

    def _flush(self) -> None:
        if self._at > self._start:
            self._write(self._view[self._start : self._at])
        self._start = self._at


def _padded(nbytes: int) -> int:
    return -(-nbytes // _BLOCK) * _BLOCK


def _sum(block: bytes | bytearray) -> int:
    """The checksum, with its own field taken for blanks."""
    # The low half of Adler-32 is one more than the sum of the bytes, as long as that is below 65521.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    return total - sum(block[_CHECKSUM]) + 8 * ord(" ")


def _verify(block: bytes) -> None:
    stated, total = _octal(block[_CHECKSUM]), _sum(block)
    # Old writers added signed bytes.
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise CorruptData("a tar header with a wrong checksum")


def _octal(field: bytes | bytearray) -> int | None:
    """The number in an octal field, 0 when it is empty; None when it holds something else."""
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    try:
        return int(digits, 8) if digits.isdigit() else None if digits else 0
    except ValueError:
        return None


def _number(field: bytes | bytearray) -> int | None:
    """The number in an octal field, or in GNU's base 256; None when it is neither."""
    if not field[0] & 0x80:
        return _octal(field)
    value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value


def _is_later(field: bytearray, epoch: int) -> bool:
    value = _number(field)
    return value is not None and value > epoch


def _size(field: bytes) -> int:
    value = _number(field)
    if value is None or not 0 <= value <= _MAX_SIZE:
        raise CorruptData(f"a tar header whose size is no number: {field!r}")
    return value


def _time(seconds: int) -> bytes:
    if 0 <= seconds < 8**11:
        return b"%011o\0" % seconds
    return (seconds & ((1 << 95) - 1) | 1 << 95).to_bytes(12, "big")


def _record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode("utf-8", "surrogateescape") + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body
