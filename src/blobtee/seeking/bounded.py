"""So many bytes as a file, to be read once and in order."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING

from blobtee.errors import Closed, CorruptData
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class BoundedFile(io.RawIOBase):
    """The next `nbytes` bytes of something. For one thread."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self._left = nbytes

    @abstractmethod
    def _some(self, view: memoryview) -> int:
        """Put some of what comes next into `view`, which is not empty; how many bytes that was, 0 when there are no
        more."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """`CorruptData` when there is less than was said."""
        if self.closed:
            raise Closed("the file is closed")
        with memoryview(buffer) as given, given.cast("B") as view, view[: min(len(view), self._left)] as wanted:
            if not len(wanted):
                return 0
            check()
            n = self._some(wanted)
        if not n:
            raise CorruptData(f"the layer ends {self._left} bytes early")
        self._left -= n
        return n
