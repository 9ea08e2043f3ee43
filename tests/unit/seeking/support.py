"""Readers and providers that count what is asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobtee.content import ReaderAt, Trust
from blobtee.errors import Closed

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class CountingReader(ReaderAt):
    """Bytes in memory; `reads` are offset and length of each read that gave something."""

    def __init__(self, data: bytes, trust: Trust = Trust.BLOB) -> None:
        self.data = data
        self.size = len(data)
        self.trust = trust
        self.reads: list[tuple[int, int]] = []
        self.closed = False

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the reader is closed")
        self._check(offset)
        with memoryview(buffer).cast("B") as view:
            part = self.data[offset : offset + len(view)]
            view[: len(part)] = part
        if part:
            self.reads.append((offset, len(part)))
        return len(part)

    def close(self) -> None:
        self.closed = True

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.reads)
