"""Tar headers, many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blobtee.core.native import (
    BYTES,
    ffi,
    lib,
    new_uncleared,
    readable,
)
from blobtee.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_TAR_CAPACITY = 512
_TAR_TEXT_NBYTES = 256 << 10


class TarHeaders(NamedTuple):
    """Consecutive entries of a tar.

    columns: lists of a number for each entry: type (0 file, 1 hard link, 2 symbolic link, 3 directory, 4 pipe), mode,
    uid, gid, nanoseconds of mtime, size, offset of the content from the input's beginning, index into `owners`.
    paths, linknames: as in `layers.Entry`. owners: names of user and group. next: where the header after the entries
    begins in the input, maybe past its end. needs_input: reading stopped because the input did.
    """

    columns: list[list[int]]
    paths: list[str]
    linknames: list[str]
    owners: list[tuple[str, str]]
    next: int
    needs_input: bool


class TarScanner:
    """Reads tar headers many at a time, as far as they are plain ones."""

    def __init__(self) -> None:
        self._numbers = new_uncleared("int64_t[]", lib.BT_TAR_COLUMNS * _TAR_CAPACITY)
        self._text = new_uncleared(BYTES, _TAR_TEXT_NBYTES)
        self._owners = new_uncleared(BYTES, _TAR_TEXT_NBYTES)
        batch = self._batch = ffi.new("bt_tar_batch *")
        batch.numbers, batch.capacity = self._numbers, _TAR_CAPACITY
        batch.text, batch.text_nbytes = self._text, _TAR_TEXT_NBYTES
        batch.owners, batch.owners_nbytes = self._owners, _TAR_TEXT_NBYTES

    def scan(self, data: ReadableBuffer, start: int) -> TarHeaders:
        """The entries whose headers are whole in `data` from byte `start` on, where a header begins.

        Stops before the first one that is not plain: a device, a sparse file, extended attributes, anything wrong, the
        tar's end. Nothing is wrong or different in what it gives. At most 512 at once.
        """
        batch = self._batch
        with readable(data) as view:
            if not 0 <= start <= len(view):
                raise InvalidArgument(f"scan: byte {start} of {len(view)}")
            stop = lib.bt_tar_scan(view + start, len(view) - start, batch)
        count = batch.nentries
        with memoryview(ffi.buffer(self._numbers)).cast("B").cast("q") as numbers:
            columns = [
                numbers[first : first + count].tolist()
                for first in range(0, lib.BT_TAR_COLUMNS * _TAR_CAPACITY, _TAR_CAPACITY)
            ]
        texts = ffi.buffer(self._text, batch.text_used)[:].decode("utf-8", "surrogateescape").split("\0")
        names = ffi.buffer(self._owners, batch.owners_used)[:].decode("utf-8", "surrogateescape").split("\0")
        owners = list(zip(names[:-1:2], names[1::2], strict=True))
        more = stop == lib.BT_TAR_MORE
        return TarHeaders(columns, texts[:-1:2], texts[1::2], owners, int(batch.next), more)
