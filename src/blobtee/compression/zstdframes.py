"""The outline of a zstd stream (RFC 8878): frames, blocks, checksums, without decoding them.

libzstd's stream reader cannot tell a stream that breaks off from one that is over. This filter stands in front of it
and can: it follows the block headers, refuses what needs a dictionary, and leaves skippable frames out.
"""

from __future__ import annotations

import io
from enum import Enum
from typing import NamedTuple, Protocol

from blobtee.compression.detect import ZSTD_MAGIC, is_skippable
from blobtee.errors import CorruptData
from blobtee.tasks import check

MAX_HEADER_NBYTES = 18
"""A frame's magic number and header are at most this long."""

_RLE = 1
_DICTIONARY_ID_NBYTES = (0, 1, 2, 4)
_CONTENT_SIZE_NBYTES = (0, 2, 4, 8)


class FrameHeader(NamedTuple):
    """What a frame says of itself."""

    nbytes: int
    """Of magic number and header."""
    content_nbytes: int | None
    window_nbytes: int
    checksum_nbytes: int


def frame_header(head: bytes) -> FrameHeader | None:
    """What the frame that begins with `head` says (RFC 8878 3.1.1.1).

    None when no frame begins so, `head` is too short, or the frame is one that `Frames` refuses.
    """
    if head[:4] != ZSTD_MAGIC or len(head) < 5 or head[4] & 0x0B:
        return None
    bits = head[4]
    single_segment = bits >> 5 & 1
    window_at, content_at = 5, 6 - single_segment
    nbytes = content_at + (_CONTENT_SIZE_NBYTES[bits >> 6] or single_segment)
    if len(head) < nbytes:
        return None
    content = None
    if nbytes > content_at:
        content = int.from_bytes(head[content_at:nbytes], "little") + (256 if nbytes - content_at == 2 else 0)
    if single_segment and content is not None:
        window = content
    else:
        base = 1 << (10 + (head[window_at] >> 3))
        window = base + (base >> 3) * (head[window_at] & 7)
    return FrameHeader(nbytes, content, window, bits & 0x04)


def follow_blocks(data: bytes | bytearray | memoryview, position: int) -> tuple[int, bool]:
    """From the block header at `position`, step over blocks as long as their headers are in `data`.

    Where it got, perhaps behind the end of `data`, and whether the frame's last block ends there. `CorruptData` for a
    reserved block type.
    """
    end = len(data) - 3
    while position <= end:
        header = data[position] | data[position + 1] << 8 | data[position + 2] << 16
        kind = header >> 1 & 3
        if kind == 3:
            raise CorruptData("a zstd block of a reserved type")
        position += 3 + (1 if kind == _RLE else header >> 3)
        if header & 1:
            return position, True
    return position, False


class _Raw(Protocol):
    def read(self, n: int, /) -> bytes | memoryview | None: ...


class _At(Enum):
    MAGIC = "a frame's magic number"
    SKIP_SIZE = "a skippable frame's size"
    SKIP = "a skippable frame"
    DESCRIPTOR = "a frame's header"
    HEADER = "the rest of a frame's header"
    BLOCK_HEADER = "a block's header"
    BLOCK = "a block"
    CHECKSUM = "a frame's checksum"


class Frames(io.RawIOBase):
    """`raw` without its skippable frames. A broken stream ends in `CorruptData`."""

    def __init__(self, raw: _Raw) -> None:
        super().__init__()
        self._raw = raw
        self._at = _At.MAGIC
        self._need = 4
        self._field = bytearray()
        self._checksum = False
        self._last = False
        self.frames = 0

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes (65536 when negative); none only at the end of the stream."""
        while True:
            check()
            data = self._raw.read(n if n > 0 else 1 << 16)
            if data is None:
                raise CorruptData("a zstd stream from a source that does not block")
            if not data:
                if self._at is not _At.MAGIC or self._field:
                    raise CorruptData(f"a zstd stream that ends within {self._at.value}")
                return b""
            kept = self._follow(data)
            if kept:
                return kept

    def _follow(self, data: bytes | memoryview) -> bytes:
        """Step through `data`; return what of it belongs to frames that are decoded."""
        kept: list[bytes | memoryview] = []
        position, start = 0, 0
        while position < len(data):
            if self._at is _At.BLOCK_HEADER and not self._field and position + 3 <= len(data):
                position, ends_frame = self._follow_blocks(data, position)
                if ends_frame:
                    kept.append(data[start:position])
                    start = position
                continue
            n = min(self._need, len(data) - position)
            is_body = self._at in (_At.SKIP, _At.BLOCK, _At.CHECKSUM)
            if not is_body:
                self._field += data[position : position + n]
            position += n
            self._need -= n
            if self._at is _At.SKIP:
                start = position
            if self._need == 0:
                field, self._field = bytes(self._field), bytearray()
                before = self._at
                self._step(field)
                while self._need == 0:
                    self._step(b"")
                if before is _At.MAGIC:
                    # The magic number waits in `field` until it is known whose it is.
                    if self._at is _At.DESCRIPTOR:
                        kept.append(field)
                    start = position
                elif before in (_At.SKIP_SIZE, _At.SKIP):
                    start = position
                elif self._at is _At.MAGIC:
                    kept.append(data[start:position])
                    start = position
        if self._at not in (_At.MAGIC, _At.SKIP_SIZE, _At.SKIP):
            kept.append(data[start:])
        return bytes(kept[0]) if len(kept) == 1 else b"".join(kept)

    def _follow_blocks(self, data: bytes | memoryview, position: int) -> tuple[int, bool]:
        """The quick way through blocks whose headers are in `data`: how far it leads, and if the frame is over."""
        reached, self._last = follow_blocks(data, position)
        self._expect(_At.BLOCK, max(0, reached - len(data)))
        while self._need == 0:
            self._step(b"")
        return min(reached, len(data)), self._at is _At.MAGIC

    def _step(self, field: bytes) -> None:
        """The field or body that ended here says what comes next."""
        at = self._at
        if at is _At.MAGIC:
            if field == ZSTD_MAGIC:
                self.frames += 1
                self._expect(_At.DESCRIPTOR, 1)
            elif is_skippable(field):
                self._expect(_At.SKIP_SIZE, 4)
            else:
                raise CorruptData("garbage where a zstd frame should begin")
        elif at is _At.SKIP_SIZE:
            self._expect(_At.SKIP, int.from_bytes(field, "little"))
        elif at is _At.DESCRIPTOR:
            self._descriptor(field[0])
        elif at is _At.HEADER:
            self._expect(_At.BLOCK_HEADER, 3)
        elif at is _At.BLOCK_HEADER:
            self._block(int.from_bytes(field, "little"))
        elif at is _At.BLOCK and not self._last:
            self._expect(_At.BLOCK_HEADER, 3)
        elif at is _At.BLOCK and self._checksum:
            self._expect(_At.CHECKSUM, 4)
        else:
            self._expect(_At.MAGIC, 4)

    def _expect(self, at: _At, nbytes: int) -> None:
        self._at, self._need = at, nbytes

    def _descriptor(self, bits: int) -> None:
        single_segment = bits >> 5 & 1
        if bits & 0x08:
            raise CorruptData("a zstd frame with a reserved bit set")
        dictionary = _DICTIONARY_ID_NBYTES[bits & 3]
        if dictionary:
            raise CorruptData("a zstd frame that needs a dictionary; layers have none")
        self._checksum = bool(bits & 0x04)
        content = _CONTENT_SIZE_NBYTES[bits >> 6] or single_segment
        self._expect(_At.HEADER, (1 - single_segment) + content)

    def _block(self, header: int) -> None:
        self._last = bool(header & 1)
        kind, size = header >> 1 & 3, header >> 3
        if kind == 3:
            raise CorruptData("a zstd block of a reserved type")
        self._expect(_At.BLOCK, 1 if kind == _RLE else size)
