"""The outline of a zstd stream (RFC 8878): frames, blocks, checksums, without decoding them.

libzstd's stream reader cannot tell a stream that breaks off from one that is over. This filter stands in front of it
and can: it follows the block headers, refuses what needs a dictionary, and leaves skippable frames out.
"""

from __future__ import annotations

import io
from enum import Enum
from typing import Protocol

from blobtee.compression.detect import ZSTD_MAGIC, is_skippable
from blobtee.errors import CorruptData
from blobtee.tasks import check

_RLE = 1
_DICTIONARY_ID_NBYTES = (0, 1, 2, 4)
_CONTENT_SIZE_NBYTES = (0, 2, 4, 8)


class _Raw(Protocol):
    def read(self, n: int, /) -> bytes | None: ...


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

    def _follow(self, data: bytes) -> bytes:
        """Step through `data`; return what of it belongs to frames that are decoded."""
        kept: list[bytes] = []
        position, start = 0, 0
        while position < len(data):
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
        return b"".join(kept)

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
