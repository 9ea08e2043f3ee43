"""gzip: members that say how long they are, and all others."""

from __future__ import annotations

from blobtee.compression.feed import READ_NBYTES, Feed
from blobtee.compression.parts import MAX_PART, Part
from blobtee.core import SIZED_HEADER_NBYTES, Inflater, gunzip_member_into, gzip_member, sized_member_nbytes
from blobtee.tasks import check

_MAX_RATIO = 1032  # deflate's: a run of 258 bytes from two bits


class Members:
    """A `Format`: members as `core.gzip_member` makes them when `sized`, and MiGz."""

    def next_part(self, feed: Feed) -> Part | None:
        nbytes = sized_member_nbytes(feed.peek(SIZED_HEADER_NBYTES))
        if nbytes is None or nbytes > MAX_PART:
            return None
        # With the next one's header, for the next call.
        packed = feed.take(nbytes + SIZED_HEADER_NBYTES)
        feed.unread(packed[nbytes:])
        packed = packed[:nbytes]
        holds = int.from_bytes(packed[-4:], "little")
        if len(packed) < nbytes or holds > min(MAX_PART, _MAX_RATIO * nbytes):
            feed.unread(packed)
            return None
        return Part(packed, holds)

    def unpack(self, packed: bytes | bytearray, out: memoryview) -> None:
        gunzip_member_into(packed, out)

    def stream(self, feed: Feed, parts: int) -> Gunzip:
        return Gunzip(feed, continues=parts > 0)


class Gunzip:
    """Any gzip, by the C core's stream decoder: members one after another, zeros allowed behind the last.

    continues: members came before, so it may begin with the zeros, or the end.
    """

    def __init__(self, feed: Feed, *, continues: bool) -> None:
        self._feed = feed
        self._inflater = Inflater()
        self._pending = memoryview(b"")
        if continues:
            self._inflater.inflate_into(gzip_member(b""), bytearray(1))

    def readinto(self, view: memoryview) -> int:
        ended = False
        while True:
            check()
            if not self._pending and not ended:
                self._pending = memoryview(self._feed.read(READ_NBYTES))
                ended = not self._pending
            consumed, produced = self._inflater.inflate_into(self._pending, view)
            self._pending = self._pending[consumed:]
            if produced:
                return produced
            if ended:
                self._inflater.finish()
                return 0
