"""zstd: frames that say how much they hold, and all others."""

from __future__ import annotations

from typing import BinaryIO, cast

import zstandard

from blobtee.compression.detect import is_skippable
from blobtee.compression.feed import READ_NBYTES, Feed
from blobtee.compression.parts import MAX_PART, Part
from blobtee.compression.zstdframes import MAX_HEADER_NBYTES, FrameHeader, Frames, follow_blocks, frame_header
from blobtee.errors import CorruptData

MAX_WINDOW = 128 << 20
"""Bytes of history that a zstd frame may ask for: what `zstd --ultra -22` uses, and its own decoder's default limit."""

_SKIP_HEADER_NBYTES = 8


class SizedFrames:
    """A `Format`: frames that say that they hold at most `MAX_PART` bytes. Skippable frames are left out."""

    def __init__(self) -> None:
        self._idle: list[zstandard.ZstdDecompressor] = []

    def next_part(self, feed: Feed) -> Part | None:
        head = feed.peek(MAX_HEADER_NBYTES)
        while is_skippable(head[:4]):
            if not _skip(feed, head):
                return None
            head = feed.peek(MAX_HEADER_NBYTES)
        header = frame_header(head)
        if header is None or header.content_nbytes is None:
            return None
        if header.content_nbytes > MAX_PART or header.window_nbytes > MAX_WINDOW:
            return None
        frame = bytearray()
        try:
            whole = _take_frame(feed, header, header.content_nbytes, frame)
        except CorruptData:
            whole = None
        feed.unread(bytes(frame[whole or 0 :]))
        if whole is None:
            return None
        del frame[whole:]
        return Part(frame, header.content_nbytes)

    def unpack(self, packed: bytes | bytearray | memoryview, out: memoryview) -> None:
        decompressor = self._idle.pop() if self._idle else zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        try:
            # Into a buffer that is large enough, libzstd decodes a whole frame directly.
            with decompressor.stream_reader(packed) as reader:
                filled = reader.readinto(out) if len(out) else 0
                if filled != len(out) or reader.read(1):
                    raise CorruptData("a zstd frame that does not hold what it says")
        except zstandard.ZstdError as error:
            raise CorruptData(f"damaged zstd data: {error}") from None
        finally:
            self._idle.append(decompressor)

    def stream(self, feed: Feed, parts: int) -> Unzstd:
        return Unzstd(feed)


def is_one_frame(packed: memoryview) -> bool:
    """Whether the bytes of `packed` are one frame, from its magic number to its checksum, that needs no dictionary. Its
    blocks are followed, not decoded."""
    header = frame_header(bytes(packed[:MAX_HEADER_NBYTES]))
    if header is None or header.window_nbytes > MAX_WINDOW:
        return False
    try:
        end, last = follow_blocks(packed, header.nbytes)
    except CorruptData:
        return False
    return last and end + header.checksum_nbytes == len(packed)


def _skip(feed: Feed, head: bytes) -> bool:
    """Take a whole skippable frame of no more than `MAX_PART` bytes; False when it is none."""
    nbytes = _SKIP_HEADER_NBYTES + int.from_bytes(head[4:_SKIP_HEADER_NBYTES], "little")
    if len(head) < _SKIP_HEADER_NBYTES or nbytes > MAX_PART:
        return False
    skipped = feed.take(nbytes)
    if len(skipped) < nbytes:
        feed.unread(skipped)
        return False
    return True


def _take_frame(feed: Feed, header: FrameHeader, content_nbytes: int, frame: bytearray) -> int | None:
    """Move bytes from `feed` to `frame` until a frame is in it; its length, None if it breaks off or is too long."""
    # What cannot be packed is stored, so a frame is hardly longer than what it holds, if nobody is up to something.
    most = content_nbytes + (content_nbytes >> 4) + (1 << 16)
    position, last = header.nbytes, False
    while position <= most:
        wanted = position + (header.checksum_nbytes if last else 3)
        if len(frame) < wanted:
            frame += feed.take(max(wanted - len(frame), READ_NBYTES))
            if len(frame) < wanted:
                return None
        if last:
            return wanted
        position, last = follow_blocks(frame, position)
    return None


class Unzstd:
    """Any zstd, by libzstd's stream decoder behind a filter that knows where frames end."""

    def __init__(self, feed: Feed) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        frames = cast(BinaryIO, Frames(feed))  # only `read` is used of it
        self._reader = decompressor.stream_reader(frames, read_size=READ_NBYTES, read_across_frames=True, closefd=False)

    def readinto(self, view: memoryview) -> int:
        try:
            return self._reader.readinto(view)
        except zstandard.ZstdError as error:
            if "window" in str(error).lower() or "memory" in str(error).lower():
                raise CorruptData(
                    f"a zstd frame that needs a window of more than {MAX_WINDOW >> 20} MiB; such layers are refused"
                ) from None
            raise CorruptData(f"damaged zstd data: {error}") from None
