"""Files with holes, for a format that knows none.

In an eStargz blob a file is a row of members. Those before the table of contents hold the tar, which has no bytes for
holes. So the content of such a file is written once more, whole, behind the table, where it is not part of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from blobtee.conversion.spool import Spool
from blobtee.conversion.toc import Chunk, Consume, File
from blobtee.core import Sha256, gunzip, gzip_member
from blobtee.errors import CorruptData, TooLarge
from blobtee.layers import Entry
from blobtee.tasks import check

MAX_HOLES = 8 << 30
"""Bytes of holes in one layer: they cost nothing in the tar, and would cost time here."""


class Tail:
    """The members behind the table, put aside in a spool."""

    def __init__(self, chunk_nbytes: int, level: int) -> None:
        self._chunk_nbytes = chunk_nbytes
        self._level = level
        self._spool = Spool()
        self._members: list[tuple[int, int]] = []
        self._files: dict[str, File] = {}
        self._holes = 0
        self._zeros: tuple[bytes, str] | None = None

    @property
    def files(self) -> Sequence[File]:
        """What the table has to say of them; offsets are counted from the tail's start."""
        return list(self._files.values())

    def add(self, entry: Entry) -> None:
        """Read the content of `entry`. `TooLarge` beyond `MAX_HOLES`."""
        self._holes += entry.size - sum(segment.length for segment in entry.sparse or ())
        if self._holes > MAX_HOLES:
            raise TooLarge(
                f"{entry.path[:100]}: more than {MAX_HOLES} bytes of holes, which eStargz has no way to tell"
            )
        chunks: list[Chunk] = []
        whole = Sha256()
        buffer = memoryview(bytearray(min(self._chunk_nbytes, entry.size)))
        with entry.data() as content:
            for position in range(0, entry.size, self._chunk_nbytes):
                check()
                chunk = buffer[: min(self._chunk_nbytes, entry.size - position)]
                filled = 0
                while filled < len(chunk):
                    n = content.readinto(chunk[filled:])
                    if not n:
                        raise CorruptData("the tar ends within a sparse file")
                    filled += n
                whole.update(chunk)
                offset = self._spool.nbytes
                chunks.append(Chunk(offset, position, len(chunk), self._put(chunk)))
        self._files[entry.path] = File(entry, chunks, whole.hexdigest())

    def forget(self, path: str) -> None:
        """A later entry takes the place of that file, if there was one."""
        self._files.pop(path, None)

    def write(self, consume: Consume, diff: Sha256) -> None:
        """Write the members; `diff` is fed with what they hold."""
        file = self._spool.file()
        for packed_nbytes, nbytes in self._members:
            check()
            packed = self._spool.take(file, packed_nbytes)
            consume(packed)
            diff.update(gunzip(packed, max_output=nbytes))

    def close(self) -> None:
        self._spool.close()

    def _put(self, chunk: memoryview) -> str:
        """Append the chunk's member; its digest."""
        if len(chunk) == self._chunk_nbytes and bytes(chunk) == bytes(len(chunk)):
            if self._zeros is None:
                self._zeros = self._packed(chunk)
            packed, digest = self._zeros
        else:
            packed, digest = self._packed(chunk)
        self._members.append((len(packed), len(chunk)))
        self._spool.write(packed)
        return digest

    def _packed(self, chunk: memoryview) -> tuple[bytes, str]:
        return gzip_member(chunk, self._level, sized=True), Sha256(chunk).hexdigest()
