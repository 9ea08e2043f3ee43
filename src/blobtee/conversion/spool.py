"""Bytes put aside until later: in memory while they are few, then in a file that has no name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, cast

from blobtee.errors import from_os_error
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

MEMORY_NBYTES = 8 << 20
"""A spool that grows beyond this moves to the directory for temporary files."""

_PIECE = 1 << 20


class Spool:
    """Written first, then read. A full disk is `StorageFull`, other trouble with the file `StorageError`."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(MEMORY_NBYTES)  # noqa: SIM115 - closed by close()
        self.nbytes = 0

    def write(self, data: Buffer) -> int:
        try:
            n = self._file.write(data)
        except OSError as error:
            raise from_os_error(error, "write a temporary file") from error
        self.nbytes += n
        return n

    def file(self) -> BinaryIO:
        """All of it as a seekable file, positioned at its start. There is one position, shared by all who ask."""
        self._file.seek(0)
        return cast(BinaryIO, self._file)

    def pieces(self) -> Iterator[bytes]:
        """All of it, in order, in pieces of at most a mebibyte."""
        file = self.file()
        while piece := self.take(file, _PIECE):
            check()
            yield piece

    @staticmethod
    def take(file: BinaryIO, n: int) -> bytes:
        try:
            return file.read(n)
        except OSError as error:
            raise from_os_error(error, "read a temporary file") from error

    def close(self) -> None:
        # What could not be written to a full disk fails once more here, and is not wanted any longer.
        with suppress(OSError):
            self._file.close()
