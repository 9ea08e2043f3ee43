"""Any gzip at random: points that it can be inflated from, found while it is read once from its start."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from blobtee.compression.feed import READ_NBYTES, Feed, Source
from blobtee.content import Trust
from blobtee.core import Sha256, update_many
from blobtee.core.gzindex import WINDOW_NBYTES, GzipPoint, MarkingInflater, resume
from blobtee.errors import BlobteeError, Closed, CorruptData, DigestMismatch, FailedPrecondition, Internal
from blobtee.seeking.spans import SpannedStream, SpanTable
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SPACING = 1 << 20
"""Bytes between two points, of the blob or of what it unpacks to. An index takes about 0.6 % of the blob then."""

DIGEST_NBYTES = 32
_LEVEL = 3
_AT_ONCE = 12
_LATE = READ_NBYTES + (256 << 10)
"""A point is told at most so many bytes of the blob after its place: a piece that is read, and what 64 KiB may take."""
_MOST_HELD = 8 << 20
_PADDING = 1 << 20
"""Zeros behind the last member that belong to the last span. There may be any number, and nobody needs them."""


class Checkpoint(NamedTuple):
    """A point without its window, the window packed, and SHA-256 of the blob from there to the next one."""

    bare: GzipPoint
    window: bytes
    digest: bytes

    def point(self) -> GzipPoint:
        """`CorruptData`: the window is none."""
        return replace(self.bare, window=_window(self.window))


class Checkpoints(SpannedStream):
    """Spans begin at the points; the first has the blob's header too, the last the end of its last member.

    Each span's bytes of the blob are compared with the digest that was made of them when the blob was read, and what
    comes out with the CRC-32 that it had then.
    """

    proof = Trust.BLOB

    def __init__(self, points: Sequence[Checkpoint], size: int, packed_end: int) -> None:
        """Of a stream of `size` bytes, all of whose members lie in the blob's first `packed_end` bytes.

        `CorruptData`, `TooLarge`: points that are in no order, or too far from each other (`spans.MAX_SPAN`).
        """
        if not points or points[0].bare.at:
            raise CorruptData("an index that does not begin where the stream does")
        table = SpanTable(packed_end)
        starts = [0, *(point.bare.packed_at for point in points[1:]), packed_end]
        ats = [*(point.bare.at for point in points), size]
        for number in range(len(points)):
            table.append(ats[number + 1] - ats[number], starts[number], starts[number + 1] - starts[number])
        if points[0].bare.packed_at > starts[1]:
            raise CorruptData("an index whose first point lies behind the second")
        super().__init__(table)
        self.points = points
        self.packed_end = packed_end

    def unpack(self, number: int, packed: memoryview) -> bytearray:
        point, span = self.points[number], self.table[number]
        actual = Sha256(packed)
        if actual.digest() != point.digest:
            what = f"bytes [{span.packed_at}, {span.packed_at + span.packed_nbytes}) of the layer"
            raise DigestMismatch(what, f"sha256:{point.digest.hex()}", f"sha256:{actual.hexdigest()}")
        try:
            inflater = resume(point.point())
            out = bytearray(span.nbytes)
            rest = packed[point.bare.packed_at - span.packed_at :]
            consumed, produced = inflater.inflate_into(rest, out)
            # What is left is the end of a block, or of a member and the beginning of the next one.
            inflater.inflate_into(rest[consumed:], bytearray())
            follower = self.points[number + 1].bare if number + 1 < len(self.points) else None
            if produced < span.nbytes and follower is not None:
                with memoryview(out) as view:
                    produced += inflater.inflate_into(follower.ahead, view[produced:])[1]
            if produced < span.nbytes:
                raise CorruptData(f"only {produced} bytes come")
            if follower is None:
                inflater.finish()
            elif inflater.member_state != (follower.crc32, follower.member_nbytes):
                raise CorruptData("they do not lead to where the next ones begin")
        except BlobteeError as error:
            raise CorruptData(f"an index that is wrong about the bytes from {span.at} on: {error}") from None
        return out


def _window(packed: bytes) -> bytes:
    if not packed:
        return b""
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= WINDOW_NBYTES:
            raise CorruptData("a window of impossible length")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=WINDOW_NBYTES)
    except zstandard.ZstdError as error:
        raise CorruptData(f"a window that cannot be unpacked: {error}") from None


class Indexing(io.RawIOBase):
    """What the gzip stream `raw` unpacks to, as a file to be read once and in order, as `compression.decompress` gives
    it; when it was read to its end, there is an index of it. Closing it closes `raw`.

    Reading errors as for `decompress`: every failure is final.
    """

    def __init__(self, raw: Source, spacing: int = SPACING) -> None:
        """`spacing`: see `core.gzindex.MarkingInflater`."""
        super().__init__()
        self._feed = Feed(raw)
        self._inflater = MarkingInflater(spacing)
        self._pending = memoryview(b"")
        self._points: list[GzipPoint] = []
        self._windows: list[bytes] = []
        self._digests = _SpanDigests()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._produced = self._zeros = 0
        self._ended = False
        self._failure: BlobteeError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the decoder is closed")
        if self._failure is not None:
            raise self._failure
        try:
            with memoryview(buffer) as given, given.cast("B") as view:
                n = self._fill(view) if len(view) else 0
        except BaseException as error:
            self._failure = error if isinstance(error, BlobteeError) else CorruptData("reading broke off before this")
            raise
        self._produced += n
        return n

    def _fill(self, view: memoryview) -> int:
        while not self._ended:
            check()
            over = not self._pending and not self._next_piece()
            consumed, produced = self._inflater.inflate_into(self._pending, view)
            self._pending = self._pending[consumed:]
            found = self._inflater.point()
            if found is not None:
                self._add(found)
            if produced:
                return produced
            if over and found is None:
                self._inflater.finish()
                self._ended = True
        return 0

    def _next_piece(self) -> bool:
        data = bytes(self._feed.read(READ_NBYTES))
        self._pending = memoryview(data)
        if self._zeros <= _PADDING or not self._inflater.finished:
            kept = len(data.rstrip(b"\0"))
            self._zeros = len(data) - kept if kept else self._zeros + len(data)
            self._digests.add(data)
        return bool(data)

    def _add(self, point: GzipPoint) -> None:
        if self._points:
            self._digests.cut(point.packed_at)
        self._windows.append(self._compressor.compress(point.window) if point.window else b"")
        self._points.append(replace(point, window=b""))

    def checkpoints(self) -> Checkpoints | None:
        """The index; None for a stream that cannot have one, as its blocks or headers are too long.

        `FailedPrecondition`: the stream was not read to its end.
        """
        if not self._ended:
            raise FailedPrecondition("an index of a stream that was not read to its end")
        digests = self._digests.finish()
        points = [Checkpoint(*row) for row in zip(self._points, self._windows, digests, strict=True)]
        try:
            return Checkpoints(points, self._produced, self._digests.nbytes)
        except BlobteeError:
            return None

    def close(self) -> None:
        if not self.closed:
            self._feed.close()
        super().close()


class _SpanDigests:
    """SHA-256 of spans whose borders become known some time after their bytes; several at a time, which is quicker."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._held = bytearray()
        self._used = 0
        self._cuts: list[int] = []
        self._open = Sha256()
        self._digests: list[bytes] = []

    def add(self, data: bytes) -> None:
        if self._used > _MOST_HELD:
            self._settle()
            if self._used > _LATE:
                with memoryview(self._held) as held:
                    self._open.update(held[: self._used - _LATE])
                self._drop(self._used - _LATE)
        end = self._used + len(data)
        if end > len(self._held):
            self._held += bytes(end - len(self._held))
        self._held[self._used : end] = data
        self._used = end
        self.nbytes += len(data)

    def cut(self, at: int) -> None:
        """A span ends, and another begins, at the blob's byte `at`."""
        if at < self.nbytes - self._used:
            raise Internal(f"a point at byte {at} that was told too late")
        self._cuts.append(at)
        if len(self._cuts) == _AT_ONCE:
            self._settle()

    def finish(self) -> list[bytes]:
        self._cuts.append(self.nbytes)
        self._settle()
        return self._digests

    def _settle(self) -> None:
        """Hash the spans that are whole."""
        if not self._cuts:
            return
        first = self.nbytes - self._used
        with memoryview(self._held) as held:
            work: list[tuple[Sha256, memoryview]] = []
            start = 0
            for end in self._cuts:
                work.append((Sha256() if work else self._open, held[start : end - first]))
                start = end - first
            update_many(sorted(work, key=lambda pair: memoryview(pair[1]).nbytes, reverse=True))
            self._digests += [hasher.digest() for hasher, _ in work]
            for _, part in work:
                part.release()
        self._open, self._cuts = Sha256(), []
        self._drop(start)

    def _drop(self, nbytes: int) -> None:
        """Forget the first bytes that are held; the memory stays."""
        rest = self._used - nbytes
        self._held[:rest] = self._held[nbytes : self._used]
        self._used = rest
