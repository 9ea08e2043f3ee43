"""Files with holes, as GNU tar stores them: the old format, and the PAX formats 0.0, 0.1 and 1.0.

Source of the facts: the GNU tar manual, appendix "Storing Sparse Files".
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from blobtee.errors import CorruptData

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_SEGMENTS = 65_536
"""Segments of one file: each costs memory, and a header may claim any number of them."""


class Segment(NamedTuple):
    """`length` stored bytes that belong at `offset` of the content."""

    offset: int
    length: int


def checked(numbers: Sequence[int], size: int, stored: int, path: str) -> tuple[Segment, ...]:
    """Pairs of offset and length as segments of a content of `size` bytes of which `stored` are in the tar.

    `CorruptData` unless they are in order, within the content, and as long as what is stored.
    """
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
        raise CorruptData(f"{path[:100]}: a sparse map of {len(numbers)} numbers")
    segments = []
    position = total = 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset < position or length < 0 or offset + length > size:
            raise CorruptData(f"{path[:100]}: a sparse map that is out of order or past the end")
        position = offset + length
        total += length
        if length:
            segments.append(Segment(offset, length))
    if total != stored:
        raise CorruptData(f"{path[:100]}: a sparse map of {total} bytes over {stored} stored ones")
    return tuple(segments)


class ExpandedFile(io.RawIOBase):
    """The content of a sparse file, read once and in order: `stored` gives the segments' bytes one after another.

    Closing it closes `stored`.
    """

    def __init__(self, stored: io.RawIOBase, segments: Sequence[Segment], size: int) -> None:
        super().__init__()
        self._stored = stored
        self._segments = list(reversed(segments))
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with memoryview(buffer).cast("B") as view:
            segment = self._segments[-1] if self._segments else Segment(self._size, 0)
            hole = segment.offset - self._position
            if hole > 0:
                n = min(hole, len(view))
                view[:n] = bytes(n)
            else:
                left = segment.offset + segment.length - self._position
                n = self._stored.readinto(view[: min(left, len(view))]) or 0
                if n == left and self._segments:
                    self._segments.pop()
                if left and len(view) and not n:
                    raise CorruptData("the tar ends within a sparse file")
        self._position += n
        return n

    def close(self) -> None:
        if not self.closed:
            self._stored.close()
        super().close()
