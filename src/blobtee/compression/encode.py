"""Encoders: a tar in, a packed layer out, in parallel and in bounded memory.

The input is cut every so many bytes, by nothing but its position, and each piece becomes a gzip member or zstd frame of
its own: so the bytes that come out do not depend on the number of threads, and a reader can begin at any piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import zstandard

from blobtee.compression.seektable import SeekTable
from blobtee.compression.types import Compression, Type
from blobtee.core import Sha256, gzip_member_bound, gzip_member_into
from blobtee.errors import Closed, InvalidArgument
from blobtee.tasks import Ordered, check, usable_threads

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

GZIP_PIECE = 1 << 20
"""What a member holds, if it packs to no more than `MAX_PACKED` bytes; else it is cut in two."""
ZSTD_PIECE = 1 << 21
"""The same of a frame. Its window is as large, which costs a decoder nothing: it knows the content's size."""
MAX_PACKED = 896 << 10
"""Who wants one small file of a layer reads a whole member or frame: with the index, that is to be a mebibyte."""

# libzstd's own 3 has smaller tables and comes out 1 to 2 % larger. Frames of 2 MiB are then, beside klauspost's default
# (1.20), at 98 % for site-packages, for binaries and for Python's library, at 100 % for Go's sources, and above that
# only where much repeats at a distance that a window of 8 MiB sees: at 108 % for a tree of manual pages, icons and
# documents that are gzips already. Frames of 4 MiB would take 0.5 to 2.5 % less; but one of binaries packs to 1.4 MiB.
_ZSTD_TABLES = {3: {"hash_log": 19, "chain_log": 18}}

_AHEAD = 1

Write = Callable[[memoryview], object]


class Packed(NamedTuple):
    """A member or frame that was made: how many bytes it holds and takes, and its SHA-256."""

    nbytes: int
    packed_nbytes: int
    digest: bytes


Index = Callable[[Sequence[Packed]], bytes]
"""Makes what is embedded behind all members or frames, in a form that decoders pass over; may be nothing."""

# For Go's level n: the least level of libdeflate whose members of 1 MiB came out no larger, on each of five tars of 97
# to 168 MB (site-packages; /usr/bin with gcc; Python's library; documents, manual pages, icons; Go's sources), with Go
# 1.26 and libdeflate 1.14. At Go's 6 they are 0.1 to 3.3 % smaller with 5, and up to 2.5 % larger with 4.
_DEFLATE_LEVELS = (0, 1, 1, 2, 3, 5, 5, 6, 6, 6)


def deflate_level(level: int) -> int:
    """The level of `core.gzip_member` whose members are no larger than Go's compress/gzip at `level` (0 to 9)."""
    return _DEFLATE_LEVELS[level] if level < len(_DEFLATE_LEVELS) else level


class Encoder(ABC):
    """Packs what is written to it. A context manager that closes; for one thread at a time.

    `write` and `finish` raise what the consumer raises, and `Cancelled` when the work is. After any failure only
    `close()` is left to do, and what the consumer has got is worth nothing.
    """

    def __init__(self, consume: Write) -> None:
        self._consume = consume
        self._over = False

    def write(self, data: ReadableBuffer) -> int:
        """Pack all of `data`, which may be changed afterwards; its length in bytes. `Closed` after end or failure."""
        self._begin()
        with memoryview(data) as view, view.cast("B") as flat:
            self._write(flat)
            nbytes = len(flat)
        self._over = False
        return nbytes

    def finish(self) -> None:
        """Say that no more comes; when this returns, the consumer has got all. `Closed` when called again."""
        self._begin()
        self._finish()

    @abstractmethod
    def close(self) -> None:
        """End the threads, giving the consumer nothing more. Harmless after `finish()`, and when called again."""

    def _begin(self) -> None:
        if self._over:
            raise Closed("the encoder was closed, is finished or has failed")
        check()
        self._over = True  # until it went well

    @abstractmethod
    def _write(self, view: memoryview) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def encoder(
    compression: Compression, write: Write, *, threads: int | None = None, index: Index | None = None
) -> Encoder:
    """An encoder that gives what `compression` makes of the bytes written to it to `write`, piece by piece, in order.

    `write` is called from within `Encoder.write` and `finish`. It must take all it is given, and copy what it wants to
    keep: the memory is used again. Some 10 MiB a thread are in use, whatever the size of the layer.

    gzip: members of `GZIP_PIECE` bytes that say their own length (`core.gzip_member`); no larger than what Go's
    compress/gzip makes at that level. zstd: frames of `ZSTD_PIECE` bytes with size and checksum, and a seek table at
    the end. Data that hardly packs is cut smaller (`MAX_PACKED`). `threads` counts the caller's; None is as
    many as there are processors, within reason. `index`, if given, is called once by `finish` and says what comes
    behind the last piece, before a seek table; plain tars have no place for it, and it is not called.

    `InvalidArgument` for eStargz, which is made of files and not of bytes (`conversion`), and for less than one thread.
    """
    threads = usable_threads(threads)
    level = compression.effective_level
    if compression.type is Type.UNCOMPRESSED:
        return _Plain(write)
    if compression.type is Type.GZIP and level is not None:
        return _Pieces(_Gzip(level), write, threads, index)
    if compression.type is Type.ZSTD and level is not None:
        return _Pieces(_Zstd(level), write, threads, index)
    raise InvalidArgument(f"{compression.type.value} is not packed byte by byte; use a Packer")


class _Plain(Encoder):
    def _write(self, view: memoryview) -> None:
        for start in range(0, len(view), GZIP_PIECE):
            check()
            with view[start : start + GZIP_PIECE] as piece:
                self._consume(piece)

    def _finish(self) -> None:
        pass

    def close(self) -> None:
        self._over = True


class _Codec(Protocol):
    """One format. `pack` runs in any thread, several at a time; the other two in the encoder's."""

    @property
    def piece_nbytes(self) -> int: ...

    def pack(self, piece: memoryview) -> memoryview:
        """The packed piece, in memory that is not touched before `done`."""

    def done(self, packed: memoryview, nbytes: int) -> None:
        """`packed`, made of `nbytes` bytes, was delivered, or is not wanted."""

    def tail(self, pieces: Sequence[Packed]) -> bytes:
        """What comes after the last piece."""


class _Gzip:
    piece_nbytes = GZIP_PIECE

    def __init__(self, level: int) -> None:
        self._level = deflate_level(level)
        self._buffers: list[memoryview] = []

    def pack(self, piece: memoryview) -> memoryview:
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = memoryview(bytearray(gzip_member_bound(GZIP_PIECE)))
        return buffer[: gzip_member_into(piece, buffer, self._level, sized=True)]

    def done(self, packed: memoryview, nbytes: int) -> None:
        self._buffers.append(memoryview(packed.obj))

    def tail(self, pieces: Sequence[Packed]) -> bytes:
        return b""


class _Zstd:
    piece_nbytes = ZSTD_PIECE

    def __init__(self, level: int) -> None:
        self._level = level
        self._compressors: list[zstandard.ZstdCompressor] = []

    def pack(self, piece: memoryview) -> memoryview:
        try:
            compressor = self._compressors.pop()
        except IndexError:
            parameters = zstandard.ZstdCompressionParameters(
                compression_level=self._level,
                window_log=ZSTD_PIECE.bit_length() - 1,
                **_ZSTD_TABLES.get(self._level, {}),
                write_checksum=True,
                write_content_size=True,
            )
            compressor = zstandard.ZstdCompressor(compression_params=parameters)
        packed = compressor.compress(piece)
        self._compressors.append(compressor)
        return memoryview(packed)

    def done(self, packed: memoryview, nbytes: int) -> None:
        pass

    def tail(self, pieces: Sequence[Packed]) -> bytes:
        table = SeekTable()
        for piece in pieces:
            table.add(piece.packed_nbytes, piece.nbytes)
        return table.to_bytes()


class _Made(NamedTuple):
    """A piece of the input, and what became of it."""

    piece: memoryview
    packed: list[tuple[memoryview, Packed]]


class _Pieces(Encoder):
    def __init__(self, codec: _Codec, consume: Write, threads: int, index: Index | None) -> None:
        super().__init__(consume)
        self._codec = codec
        self._index = index
        self._made: list[Packed] = []
        self._most = threads + _AHEAD if threads > 1 else 0
        self._ordered: Ordered[_Made] = Ordered(threads, name="blobtee-encoder")
        self._free: list[memoryview] = []
        self._piece: memoryview | None = None
        self._filled = 0
        self._cut = 0

    def _write(self, view: memoryview) -> None:
        start = 0
        while start < len(view):
            if self._piece is None:
                self._piece = self._free.pop() if self._free else memoryview(bytearray(self._codec.piece_nbytes))
            n = min(len(self._piece) - self._filled, len(view) - start)
            self._piece[self._filled : self._filled + n] = view[start : start + n]
            self._filled += n
            start += n
            if self._filled == len(self._piece):
                self._send()

    def _send(self) -> None:
        """Have the piece packed, and deliver what is ready or has to be."""
        whole = self._piece if self._piece is not None else memoryview(b"")
        piece = whole[: self._filled]
        self._piece, self._filled = None, 0
        self._cut += 1
        self._ordered.put(lambda: _Made(piece, self._pack(piece)))
        while len(self._ordered) > self._most:
            self._deliver()

    def _pack(self, piece: memoryview) -> list[tuple[memoryview, Packed]]:
        packed = self._codec.pack(piece)
        if len(packed) > MAX_PACKED and len(piece) > MAX_PACKED:
            self._codec.done(packed, len(piece))
            half = len(piece) // 2
            return self._pack(piece[:half]) + self._pack(piece[half:])
        digest = Sha256(packed).digest() if self._index is not None else b""
        return [(packed, Packed(len(piece), len(packed), digest))]

    def _deliver(self) -> None:
        check()
        made = self._ordered.take()
        for packed, facts in made.packed:
            # What the consumer keeps in spite of all is an error then, and not other bytes than it was given.
            with packed[:] as lent:
                self._consume(lent)
            self._codec.done(packed, facts.nbytes)
            self._made.append(facts)
        if len(made.piece) == self._codec.piece_nbytes:
            self._free.append(made.piece)

    def _finish(self) -> None:
        # Nothing at all is packed as an empty piece: no bytes would be no stream.
        if self._filled or not self._cut:
            self._send()
        while self._ordered:
            self._deliver()
        index = self._index(self._made) if self._index is not None else b""
        for tail in (index, self._codec.tail(self._made)):
            if tail:
                with memoryview(tail) as lent:
                    self._consume(lent)
        self.close()

    def close(self) -> None:
        self._over = True
        self._ordered.close()
        self._free.clear()
        self._piece = None
