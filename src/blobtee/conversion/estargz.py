"""eStargz: a tar in gzip members at whose borders files begin, and a table that tells where (`spec/formats.md`)."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from blobtee.compression import deflate_level
from blobtee.compression.estargz import TOC_NAME, footer
from blobtee.compression.estargz import payload_nbytes as payload_nbytes
from blobtee.conversion.cutting import Batch, Cutter, Piece
from blobtee.conversion.feed import Feed
from blobtee.conversion.tail import Tail
from blobtee.conversion.toc import Chunk, File, Table
from blobtee.core import GZIP_MAX_LEVEL, GZIP_MIN_LEVEL, Sha256, gzip_member, sha256_many
from blobtee.errors import BlobteeError, Cancelled, Closed, CorruptData, InvalidArgument
from blobtee.layers import Entry, entries
from blobtee.oci import Digest
from blobtee.tasks import Group, Ordered, check, usable_threads

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer

CHUNK_NBYTES = 4 << 20
"""The default of the stargz tools."""
_CHUNK_NBYTES = range(4 << 10, (64 << 20) + 1)
_BLOCK = 512
_AHEAD = 1
_DRAIN = 1 << 18


class EstargzSummary(NamedTuple):
    """What was made. `toc_digest` is of the table's JSON. `diff_id` and `size` (bytes) are of what decompressing the
    whole blob gives, with the table's entry; `content_digest` and `content_size` of the tar that was put in.
    """

    toc_digest: Digest
    diff_id: Digest
    size: int
    content_digest: Digest
    content_size: int


class EstargzWriter:
    """Makes an eStargz blob of the tar that is written to it, in one pass and some tens of megabytes of memory.

    The tar is kept byte by byte: decoding the first `payload_nbytes` bytes of the blob gives it back. Each chunk of
    `chunk_size` bytes of a file begins a member of its own; the same tar gives the same blob for any number of threads
    (with one version of libdeflate and zlib). `consume` gets the blob in order, from one thread at a time, which need
    not be the caller's. `threads` counts those that compress; None is as many as there are processors, within reason.

    `write` and `finish` raise, soon after the bytes that are to blame: what `layers.entries` raises of a tar that it
    cannot read; `CorruptData` for one that ends so that no entry could follow; `InvalidArgument` for one that has a
    `stargz.index.json` already; `TooLarge` for holes beyond `tail.MAX_HOLES`; `StorageFull` when a temporary file
    cannot grow; what `consume` raises; and `Cancelled` when the work is. After any failure only `close()` is left to
    do, and what was consumed is worth nothing. For one thread at a time; a context manager that closes.
    """

    def __init__(
        self,
        consume: Callable[[bytes], object],
        *,
        level: int = 6,
        chunk_size: int = CHUNK_NBYTES,
        threads: int | None = None,
    ) -> None:
        if level not in range(GZIP_MIN_LEVEL, GZIP_MAX_LEVEL + 1):
            raise InvalidArgument(f"eStargz has the levels {GZIP_MIN_LEVEL} to {GZIP_MAX_LEVEL}, not {level}")
        if chunk_size not in _CHUNK_NBYTES:
            raise InvalidArgument(f"chunks have {_CHUNK_NBYTES[0]} to {_CHUNK_NBYTES[-1]} bytes, not {chunk_size}")
        threads = usable_threads(threads)
        self._consume = consume
        self._toc_level = level
        self._content = Sha256()
        self._group = Group(name="blobtee-estargz")
        self._feed = Feed(self._group.cancellation)
        self._blob = _Blob(consume, level=deflate_level(level), chunk_nbytes=chunk_size, threads=threads)
        self._started = False
        self._over = False
        self._closed = False

    def write(self, data: Buffer) -> int:
        """Append all of `data`, which may be changed afterwards; its length in bytes. `Closed` after end or failure."""
        self._begin()
        with memoryview(data) as view, view.cast("B") as flat:
            try:
                self._feed.put(data if isinstance(data, bytes) else flat)
            except Cancelled:
                self._join()
                raise
            self._content.update(flat)
            nbytes = len(flat)
        self._over = False
        return nbytes

    def finish(self) -> EstargzSummary:
        """Say that no more comes; when this returns, the consumer has got all. `Closed` when called again."""
        self._begin()
        self._feed.end()
        self._join()
        diff = self._content.copy()
        toc_digest = self._blob.finish(diff, self._toc_level)
        content, content_size = self._content.hexdigest(), self._content.nbytes
        self.close()
        return EstargzSummary(
            Digest(f"sha256:{toc_digest}"),
            Digest(f"sha256:{diff.hexdigest()}"),
            diff.nbytes,
            Digest(f"sha256:{content}"),
            content_size,
        )

    def close(self) -> None:
        """End the threads, giving the consumer nothing more. Harmless after `finish()`, and when called again."""
        self._over = True
        if self._closed:
            return
        self._closed = True
        self._group.cancellation.cancel("the writer was closed")
        self._group.join()
        self._group.cancellation.detach()
        self._feed.leave()
        self._blob.close()

    def _begin(self) -> None:
        if self._over:
            raise Closed("the writer was closed, is finished or has failed")
        check()
        self._over = True  # until it went well
        if not self._started:
            self._started = True
            self._group.spawn(self._blob.read, self._feed)

    def _join(self) -> None:
        """Wait for the thread, and raise what it raised."""
        self._group.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Packed(NamedTuple):
    data: bytes
    nbytes: list[int]
    digests: list[str]
    """Of what each member has of a file."""
    events: list[Entry | Piece]


def _pack(batch: Batch, level: int) -> _Packed:
    view = memoryview(batch.data)
    ends = [*batch.starts[1:], len(view)]
    payloads = [view[start : start + n] for start, n in zip(batch.starts, batch.payloads, strict=True)]
    digests = [digest.hex() for digest in sha256_many(payloads)]
    members = [gzip_member(view[start:end], level, sized=True) for start, end in zip(batch.starts, ends, strict=True)]
    return _Packed(b"".join(members), [len(member) for member in members], digests, batch.events)


class _ConsumerFailed(BlobteeError):
    """What the consumer raises passes through the reader of the tar in this, or would be taken for the tar's fault."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Blob:
    """From the tar's bytes to the blob's: `read` runs in a thread of its own, as the reader of tars pulls."""

    def __init__(self, consume: Callable[[bytes], object], *, level: int, chunk_nbytes: int, threads: int) -> None:
        self._consume = consume
        self._level = level
        self._most = threads + _AHEAD
        self._ordered: Ordered[_Packed] = Ordered(threads, name="blobtee-estargz")
        self._cutter = Cutter(chunk_nbytes, self._send)
        self._table = Table()
        self._tail = Tail(chunk_nbytes, level)
        self._chunks: list[Chunk] = []
        self._nbytes = 0
        self._end = 0

    def read(self, feed: Feed) -> None:
        stream = _Tapped(feed, self._cutter)
        try:
            for entry in entries(stream):
                self._found(entry)
            while stream.read(_DRAIN):
                pass
            self._check_end(stream.nbytes)
            self._cutter.finish()
            while self._ordered:
                self._deliver()
        except _ConsumerFailed as failed:
            raise failed.reason from None

    def finish(self, diff: Sha256, level: int) -> str:
        """After `read`: the table, and what comes behind it. The table's digest, as hex digits."""
        table = self._table.write(self._consume, diff, offset=self._nbytes, level=level, late=self._tail.files)
        self._tail.write(self._consume, diff)
        self._consume(footer(self._nbytes))
        return table.digest

    def close(self) -> None:
        self._ordered.close()
        self._table.close()
        self._tail.close()

    def _found(self, entry: Entry) -> None:
        if entry.path == TOC_NAME:
            raise InvalidArgument(f"the layer has a {TOC_NAME} already: decode it without, or pack it as gzip or zstd")
        self._tail.forget(entry.path)
        stored = entry.size if entry.sparse is None else sum(segment.length for segment in entry.sparse)
        self._end = -(-(entry.offset + stored) // _BLOCK) * _BLOCK
        if stored < entry.size:
            self._tail.add(entry)
        else:
            self._cutter.entry(entry, stored)

    def _check_end(self, nbytes: int) -> None:
        """The table's entry comes next: either right behind an entry, or behind an end that readers take for one."""
        if nbytes < self._end or self._end < nbytes < self._end + 2 * _BLOCK:
            raise CorruptData("the tar ends within its padding or its end-of-archive mark: no entry can follow it")

    def _send(self, batch: Batch) -> None:
        self._ordered.put(partial(_pack, batch, self._level))
        while len(self._ordered) > self._most:
            self._deliver()

    def _deliver(self) -> None:
        check()
        packed = self._ordered.take()
        if packed.data:
            try:
                self._consume(packed.data)
            except Exception as error:
                raise _ConsumerFailed(error) from error
        offsets = []
        for nbytes in packed.nbytes:
            offsets.append(self._nbytes)
            self._nbytes += nbytes
        for event in packed.events:
            if isinstance(event, Piece):
                self._add_chunk(event, offsets[event.member], packed.digests[event.member])
            else:
                self._table.add(event)

    def _add_chunk(self, piece: Piece, offset: int, digest: str) -> None:
        self._chunks.append(Chunk(offset, piece.position, piece.nbytes, digest))
        if piece.last:
            whole = digest if piece.whole is None else piece.whole.hexdigest()
            self._table.add_file(File(piece.entry, self._chunks, whole))
            self._chunks = []


class _Tapped(io.RawIOBase):
    """What is read of `feed` goes to `cutter` too."""

    def __init__(self, feed: Feed, cutter: Cutter) -> None:
        super().__init__()
        self._feed = feed
        self._cutter = cutter
        self.nbytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with memoryview(buffer) as view:
            data = self.read(len(view))
            view[: len(data)] = data
            return len(data)

    def read(self, n: int = -1) -> bytes:
        data = self._feed.read(n if n >= 0 else _DRAIN)
        if data:
            self.nbytes += len(data)
            self._cutter.feed(data)
        return data
