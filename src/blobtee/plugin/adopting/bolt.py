"""Reading a file of bbolt, the database of containerd's metadata (bbolt `page.go`, `bucket.go`, `meta.go`).

A tree of pages: branch pages lead to leaf pages, whose elements are keys with values or with buckets, which are trees
themselves, or pages inside of the value when they are small. Everything is little-endian. Nothing is believed: what a
damaged or hostile file says of places and sizes is checked, no page is visited twice on one way, and a file whose pages
lead to each other again and again is given up before it costs more than its size could.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from blobtee.content.files import os_errors
from blobtee.errors import DataLoss

_PAGE = struct.Struct("<QHHI")  # id, flags, count, overflow
_META = struct.Struct("<IIIIQQQQQ")  # magic, version, page size, flags, root, sequence, freelist, end, transaction
_BRANCH = struct.Struct("<IIQ")  # position, key size, page
_LEAF = struct.Struct("<IIII")  # flags, position, key size, value size
_BUCKET = struct.Struct("<QQ")  # root page, sequence
_MAGIC, _VERSION = 0xED0CDAED, 2
_IS_BRANCH, _IS_LEAF, _HOLDS_BUCKET = 1, 2, 1
_PAGE_SIZES = tuple(1 << bits for bits in range(9, 17))
_MOST_LEVELS = 64
_MAX_FILE = 1 << 34
_MAX_PAGE = 64 << 20
"""Bytes of a page with what overflows it, for one key with its value: containerd's largest are far below."""

_MOST_READS = 8
"""How often the size of the whole file may be read. A page belongs to one bucket; whoever reads buckets once, or some
of them twice, stays below. Pages that many buckets claim would cost any number of bytes, to read and to keep."""


class Bolt:
    """A file of bbolt, open for reading. A context manager. The file may be in use: what is read is then one of its
    states, or `DataLoss`."""

    def __init__(self, path: Path) -> None:
        """`NotFound`, `PermissionDenied`; `DataLoss`: neither of its two heads is in order."""
        self._path = path
        self._fd = -1
        with os_errors(f"read {path}"):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(self._fd)
            self._size = found.st_size
            if not stat.S_ISREG(found.st_mode) or not 2 * _PAGE_SIZES[0] <= self._size <= _MAX_FILE:
                raise DataLoss(f"{path} is no database of containerd's: it has {self._size} bytes")
            self._page_size, root = self._head()
        except BaseException:
            self.close()
            raise
        self._budget = _MOST_READS * self._size
        self.root = Bucket(self, root, 0)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def page(self, number: int) -> bytes:
        """The page with what overflows it."""
        start = number * self._page_size
        if not 0 <= start <= self._size - self._page_size:
            raise self.damaged(f"page {number} is outside of the file")
        page = self._read(start, self._page_size)
        nbytes = (_PAGE.unpack_from(page)[3] + 1) * self._page_size
        if nbytes > min(self._size - start, _MAX_PAGE):
            raise self.damaged(f"page {number} is longer than the file, or than any key with its value")
        self.spend(nbytes)
        return page if nbytes == self._page_size else self._read(start, nbytes)

    def spend(self, nbytes: int) -> None:
        """That many bytes are about to be looked at."""
        self._budget -= nbytes
        if self._budget < 0:
            raise self.damaged("its pages lead to each other again and again")

    def _read(self, start: int, nbytes: int) -> bytes:
        # Not mapped: a file that becomes shorter would end the process.
        with os_errors(f"read {self._path}"):
            data = os.pread(self._fd, nbytes, start)
        if len(data) != nbytes:
            raise self.damaged("it became shorter")
        return data

    def damaged(self, what: str) -> DataLoss:
        return DataLoss(f"{self._path} is damaged: {what}")

    def _head(self) -> tuple[int, int]:
        """Page size, and root page of the latest state that is in order."""
        found: list[tuple[int, int, int]] = []
        # The first head is at 0; where the second is, only a page size tells.
        for size in (0, *_PAGE_SIZES):
            nbytes = _PAGE.size + _META.size + 8
            if size + nbytes > self._size or (found and size not in (0, found[0][1])):
                continue
            head = self._read(size, nbytes)
            meta = head[_PAGE.size : _PAGE.size + _META.size]
            magic, version, page_size, _, root, _, _, _, transaction = _META.unpack(meta)
            (checksum,) = struct.unpack_from("<Q", head, _PAGE.size + _META.size)
            if (magic, version) != (_MAGIC, _VERSION) or page_size not in _PAGE_SIZES or size not in (0, page_size):
                continue
            if checksum == _fnv1a(meta):
                found.append((transaction, page_size, root))
        if not found:
            raise DataLoss(f"{self._path} is no database of containerd's, or damaged: it has no head")
        _, page_size, root = max(found)
        return page_size, root


class Bucket:
    """Keys with values or buckets, in the order of the keys."""

    def __init__(self, file: Bolt, root: int, depth: int, inline: bytes | None = None) -> None:
        self._file = file
        self._root = root
        self._depth = depth
        self._inline = inline
        if depth > _MOST_LEVELS:
            raise file.damaged("buckets within buckets within buckets")

    def bucket(self, name: bytes) -> Bucket | None:
        return next((member for key, member in self.items() if key == name and isinstance(member, Bucket)), None)

    def value(self, name: bytes) -> bytes | None:
        return next((member for key, member in self.items() if key == name and isinstance(member, bytes)), None)

    def buckets(self) -> Iterator[tuple[bytes, Bucket]]:
        return ((key, member) for key, member in self.items() if isinstance(member, Bucket))

    def items(self) -> Iterator[tuple[bytes, bytes | Bucket]]:
        """`DataLoss`: not in order."""
        if self._inline is not None:
            self._file.spend(len(self._inline))
            yield from self._leaf(self._inline)
            return
        seen: set[int] = set()
        stack = [self._root]
        while stack:
            number = stack.pop()
            if number in seen:
                raise self._file.damaged(f"page {number} leads back to itself")
            seen.add(number)
            page = self._file.page(number)
            _, flags, count, _ = _PAGE.unpack_from(page)
            if flags & _IS_LEAF:
                yield from self._leaf(page)
            elif flags & _IS_BRANCH:
                if _PAGE.size + count * _BRANCH.size > len(page):
                    raise self._file.damaged(f"page {number} has more elements than room")
                children = [_BRANCH.unpack_from(page, _PAGE.size + n * _BRANCH.size)[2] for n in range(count)]
                stack += reversed(children)
            else:
                raise self._file.damaged(f"page {number} is of no kind that holds keys")

    def _leaf(self, page: bytes) -> Iterator[tuple[bytes, bytes | Bucket]]:
        _, flags, count, _ = _PAGE.unpack_from(page)
        if not flags & _IS_LEAF or _PAGE.size + count * _LEAF.size > len(page):
            raise self._file.damaged("a page of keys is none")
        # Keys and values lie one behind the other. If many could be the same bytes, a small page would be any number.
        room = len(page) - _PAGE.size - count * _LEAF.size
        for number in range(count):
            at = _PAGE.size + number * _LEAF.size
            element, position, key_size, value_size = _LEAF.unpack_from(page, at)
            start = at + position
            if start + key_size + value_size > len(page):
                raise self._file.damaged("a key or its value is outside of its page")
            room -= key_size + value_size
            if room < 0:
                raise self._file.damaged("keys and values of a page lie in each other")
            key = page[start : start + key_size]
            value = page[start + key_size : start + key_size + value_size]
            yield key, self._member(value) if element & _HOLDS_BUCKET else value

    def _member(self, value: bytes) -> Bucket:
        if len(value) < _BUCKET.size:
            raise self._file.damaged("a bucket without a head")
        root = _BUCKET.unpack_from(value)[0]
        if root:
            return Bucket(self._file, root, self._depth + 1)
        inline = value[_BUCKET.size :]
        if len(inline) < _PAGE.size:
            raise self._file.damaged("a bucket without a page")
        return Bucket(self._file, 0, self._depth + 1, inline)


def _fnv1a(data: bytes) -> int:
    """64 bits of Fowler, Noll and Vo."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
