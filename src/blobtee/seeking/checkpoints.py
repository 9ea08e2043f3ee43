"""Any gzip at random: points that it can be inflated from, found while it is read once from its start."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from blobtee.compression.feed import READ_NBYTES, Feed, Source
from blobtee.content import Trust
from blobtee.core import Sha256, update_many
from blobtee.core.gzindex import WINDOW_NBYTES, GzipPoint, MarkingInflater, resume
from blobtee.errors import BlobteeError, Closed, CorruptData, DigestMismatch, FailedPrecondition, Internal
from blobtee.seeking.spans import SpannedStream, SpanTable
from blobtee.tasks import Ordered, check, usable_threads

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SPACING = 1 << 20
"""Bytes between two points, of the blob or of what it unpacks to. An index takes about 0.8 % of the blob then."""

DIGEST_NBYTES = 32
_LEVEL = 3
_AT_ONCE = 6
_THREADS, _BATCHES = 2, 2
"""Threads that an index is made by, the reader's among them, and what may wait for them."""

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
        self._packing = _Packing()
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
            self._packing.add(data)
        return bool(data)

    def _add(self, point: GzipPoint) -> None:
        if self._points:
            self._packing.cut(point.packed_at)
        self._packing.window(point.window)
        self._points.append(replace(point, window=b""))

    def checkpoints(self) -> Checkpoints | None:
        """The index; None for a stream that cannot have one, as its blocks or headers are too long.

        `FailedPrecondition`: the stream was not read to its end.
        """
        if not self._ended:
            raise FailedPrecondition("an index of a stream that was not read to its end")
        digests, windows = self._packing.finish()
        points = [Checkpoint(*row) for row in zip(self._points, windows, digests, strict=True)]
        try:
            return Checkpoints(points, self._produced, self._packing.nbytes)
        except BlobteeError:
            return None

    def close(self) -> None:
        if not self.closed:
            self._packing.close()
            self._feed.close()
        super().close()


class _Packed(NamedTuple):
    """Of spans and points that follow each other: digests of the ones, windows of the others."""

    digests: list[bytes]
    windows: list[bytes]


class _Packing:
    """Digests of spans whose borders become known some time after their bytes, and windows: many at a time, which is
    quicker, and beside whoever goes on reading.

    What was given and is not packed yet is held: up to `_MOST_HELD` here, and as much in each of `_BATCHES`.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._pieces: deque[bytes] = deque()
        self._held = 0
        """Bytes of the pieces; all of them are the last that came."""
        self._hashed = 0
        """Bytes of the blob that are in `_open`, or in what was packed."""
        self._open = Sha256()
        self._cuts: list[int] = []
        self._windows: list[bytes] = []
        self._batches: Ordered[_Packed] = Ordered(min(_THREADS, usable_threads(None)), name="blobtee-index")
        self._packed = _Packed([], [])

    def add(self, data: bytes) -> None:
        """The next bytes of the blob."""
        self._pieces.append(data)
        self._held += len(data)
        self.nbytes += len(data)
        if self._held > _MOST_HELD:
            self._settle()
            while self._held - len(self._pieces[0]) >= _LATE:
                with memoryview(self._pieces[0]) as piece:
                    self._open.update(piece[self._hashed - (self.nbytes - self._held) :])
                self._held -= len(self._pieces.popleft())
                self._hashed = self.nbytes - self._held

    def cut(self, at: int) -> None:
        """A span ends, and another begins, at the blob's byte `at`."""
        if at < self._hashed:
            raise Internal(f"a point at byte {at} that was told too late")
        self._cuts.append(at)
        if len(self._cuts) == _AT_ONCE:
            self._settle()

    def window(self, data: bytes) -> None:
        """The window of the next point."""
        self._windows.append(data)

    def finish(self) -> _Packed:
        """All of it; the last span ends where the blob does."""
        self._cuts.append(self.nbytes)
        self._settle()
        self._collect(0)
        return self._packed

    def close(self) -> None:
        self._batches.close()

    def _settle(self) -> None:
        """Have the spans packed that are whole."""
        if not self._cuts:
            return
        begin = self.nbytes - self._held
        pieces, borders = list(self._pieces), [at - begin for at in (self._hashed, *self._cuts)]
        self._batches.put(partial(_pack, pieces, borders, self._open, self._windows))
        self._hashed = self._cuts[-1]
        self._open, self._cuts, self._windows = Sha256(), [], []
        while self._pieces and begin + len(self._pieces[0]) <= self._hashed:
            begin += len(self._pieces.popleft())
        self._held = self.nbytes - begin
        self._collect(_BATCHES)

    def _collect(self, most: int) -> None:
        while len(self._batches) > most:
            packed = self._batches.take()
            self._packed.digests.extend(packed.digests)
            self._packed.windows.extend(packed.windows)


def _pack(pieces: list[bytes], borders: list[int], first: Sha256, windows: list[bytes]) -> _Packed:
    """The spans between the borders, of which `first` has begun the first one already."""
    hashers = [first, *(Sha256() for _ in borders[2:])]
    with memoryview(b"".join(pieces)) as data:
        spans = [data[start:end] for start, end in pairwise(borders)]
        longest_first = sorted(range(len(spans)), key=lambda number: spans[number].nbytes, reverse=True)
        update_many([(hashers[number], spans[number]) for number in longest_first])
        for span in spans:
            span.release()
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return _Packed(
        [hasher.digest() for hasher in hashers],
        [compressor.compress(window) if window else b"" for window in windows],
    )
