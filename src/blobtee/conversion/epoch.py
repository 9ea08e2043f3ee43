"""The times in a tar, clamped to an epoch, and nothing else of it changed (`spec/remote.md` section 5)."""

from __future__ import annotations

import io
from collections.abc import Callable

from blobtee.errors import CorruptData, TooLarge
from blobtee.layers import pax
from blobtee.layers.reader import MAX_EXTENDED
from blobtee.layers.tarstream import Source
from blobtee.tasks import check

_BLOCK = 512
_PIECE = 1 << 20
_CHECK_EVERY = 256
_ZERO_BLOCK = bytes(_BLOCK)
_TIME_KEYS = ("mtime", "atime", "ctime", "LIBARCHIVE.creationtime")
_MTIME = slice(136, 148)
_GNU_TIMES = (slice(345, 357), slice(357, 369))
_GNU_MAGIC = b"ustar  \0"
_CHECKSUM = slice(148, 156)
_WITHOUT_DATA = tuple(b"%d" % kind for kind in range(1, 7))
"""Whatever their size field says (as `layers.reader` has it)."""


def clamp(stream: io.RawIOBase, write: Callable[[bytes | memoryview], object], epoch: int) -> None:
    """Read a tar from `stream` and write it to `write`, with each time after `epoch` (seconds) set to it.

    Times are those of headers, of GNU's additions to them, and of pax records; a record that gets shorter or longer may
    move what follows by blocks. All else is kept, padding and what is behind the end included. Pieces have at most a
    mebibyte and are valid during the call only. `CorruptData`: not a tar, or one that breaks off. `TooLarge`: an
    extended header beyond `MAX_EXTENDED`. What `write` raises passes through.
    """
    _Clamp(stream, write, epoch).run()


class _Clamp:
    def __init__(self, stream: io.RawIOBase, write: Callable[[bytes | memoryview], object], epoch: int) -> None:
        self._source = Source(stream)
        self._write = write
        self._epoch = epoch
        self._buffer = memoryview(bytearray(_PIECE))

    def run(self) -> None:
        number = 0
        size: int | None = None  # what pax records say of the next entry
        while True:
            if number % _CHECK_EVERY == 0:
                check()
            number += 1
            block = self._source.read(_BLOCK)
            if not block.strip(b"\0"):
                break
            if len(block) < _BLOCK:
                raise CorruptData("the tar ends within a header")
            _verify(block)
            kind = block[156:157]
            stored = _number(block[124:136], "size")
            if kind in (b"x", b"g"):
                said = self._extended(block, stored)
                size = said if kind == b"x" and said is not None else size
                continue
            self._write(self._header(block))
            if kind in (b"L", b"K"):
                self._copy(_padded(stored))
                continue
            if kind == b"S" and block[257:265] == _GNU_MAGIC:
                self._sparse_map(block)
            if kind not in _WITHOUT_DATA:
                self._copy(_padded(stored if size is None else size))
            size = None
        if block:
            self._write(block)
        while n := self._source.readinto(self._buffer):
            check()
            self._write(self._buffer[:n])

    def _extended(self, block: bytes, stored: int) -> int | None:
        """Copy an extended header with its times clamped; the size that it says, if it does."""
        if stored > MAX_EXTENDED:
            raise TooLarge(f"an extended header of {stored} bytes; the limit is {MAX_EXTENDED}")
        raw = self._source.read(_padded(stored))
        if len(raw) < stored:
            raise CorruptData("the tar ends within an extended header")
        found = pax.records(raw[:stored])
        changed = [
            (key, str(self._epoch).encode() if key in _TIME_KEYS and value and self._is_late(key, value) else value)
            for key, value in found
        ]
        if changed != found:
            body = b"".join(_record(key, value) for key, value in changed)
            raw = body + bytes(-len(body) % _BLOCK)
            header = bytearray(block)
            header[124:136] = b"%011o\0" % len(body)
            header[_CHECKSUM] = b"%06o\0 " % _sum(header)
            block = bytes(header)
        self._write(self._header(block))
        self._write(raw)
        sizes = [pax.number(value, key) for key, value in found if key == "size" and value]
        return sizes[-1] if sizes else None

    def _is_late(self, key: str, value: bytes) -> bool:
        return pax.nanoseconds(value, key) > self._epoch * 1_000_000_000

    def _header(self, block: bytes) -> bytes:
        places = [_MTIME, *(_GNU_TIMES if block[257:265] == _GNU_MAGIC else ())]
        late = [place for place in places if _number(block[place], "time") > self._epoch]
        if not late:
            return block
        header = bytearray(block)
        for place in late:
            header[place] = _time(self._epoch)
        header[_CHECKSUM] = b"%06o\0 " % _sum(header)
        return bytes(header)

    def _sparse_map(self, block: bytes) -> None:
        """Blocks of old GNU's sparse map go on between header and data."""
        more = block[482]
        while more:
            check()
            extension = self._source.read(_BLOCK)
            if len(extension) < _BLOCK:
                raise CorruptData("the tar ends within a sparse map")
            self._write(extension)
            more = extension[504]

    def _copy(self, nbytes: int) -> None:
        left = nbytes
        while left:
            check()
            n = self._source.readinto(self._buffer[: min(left, _PIECE)])
            if not n:
                if left < _BLOCK:
                    return  # only padding is missing, which readers forgive
                raise CorruptData("the tar ends within a file")
            self._write(self._buffer[:n])
            left -= n


def _padded(nbytes: int) -> int:
    return -(-nbytes // _BLOCK) * _BLOCK


def _sum(block: bytes | bytearray) -> int:
    """The checksum, with its own field taken for blanks."""
    return sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")


def _verify(block: bytes) -> None:
    stated, total = _number(block[_CHECKSUM], "checksum"), _sum(block)
    # Old writers added signed bytes.
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise CorruptData("a tar header with a wrong checksum")


def _number(field: bytes, what: str) -> int:
    """Octal, or GNU's base 256."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if what == "size" and not 0 <= value < 1 << 63:
            raise CorruptData("a tar header whose size is out of range")
        return value
    digits = field.strip(b" \0").partition(b"\0")[0].strip()
    if not digits:
        return 0
    try:
        value = int(digits, 8)
    except ValueError:
        raise CorruptData(f"a tar header whose {what} is no number: {field!r}") from None
    if value < 0 and what == "size":
        raise CorruptData("a tar header with a negative size")
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
