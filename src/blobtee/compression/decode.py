"""Streaming decoders: a packed layer in, its tar out, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import zstandard

from blobtee.compression.detect import PREFIX_NBYTES, detect
from blobtee.compression.zstdframes import Frames
from blobtee.core import Inflater
from blobtee.errors import BlobteeError, Closed, CorruptData, TooLarge
from blobtee.oci import Compressed, layer_compression
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_WINDOW = 128 << 20
"""Bytes of history that a zstd frame may ask for: what `zstd --ultra -22` uses, and its own decoder's default limit."""

_READ = 1 << 18


class Source(Protocol):
    """What is read: any binary file that blocks. Short reads are fine; nothing means the end."""

    def read(self, n: int, /) -> bytes | None: ...

    def close(self) -> None: ...


def decompress(raw: Source, media_type: str | None = None, *, max_output: int | None = None) -> io.RawIOBase:
    """The bytes that are packed in `raw`, as a file to be read once and in order; closing it closes `raw`.

    The first bytes say how it is packed. `media_type` is a layer's: it must be known (`UnsupportedMediaType`), and
    what it calls compressed must be. No bytes at all are an empty tar, whatever the type.

    Reading raises `CorruptData` when the stream is damaged, breaks off, is followed by garbage (gzip may be followed by
    zeros), needs a dictionary or a window above `MAX_WINDOW`; `TooLarge` when more than `max_output` bytes come out;
    `Closed` after `close()`. Errors of `raw`, when they are ours, pass through. After a failure, nothing more is to be
    had. For one thread at a time.
    """
    stated = layer_compression(media_type) if media_type is not None else Compressed.NONE
    return _Decoder(_Peeked(raw), stated, max_output)


class _Peeked:
    """A source whose first bytes can be looked at, and whose foreign errors become ours."""

    def __init__(self, raw: Source) -> None:
        self._raw = raw
        self._head: bytes | None = None

    def peek(self) -> bytes:
        if self._head is None:
            head = b""
            while len(head) < PREFIX_NBYTES:
                more = self._read(_READ)
                if not more:
                    break
                head += more
            self._head = head
        return self._head

    def read(self, n: int, /) -> bytes:
        head = self._head
        if head:
            self._head = head[n:]
            return head[:n]
        return self._read(n)

    def _read(self, n: int) -> bytes:
        try:
            data = self._raw.read(n)
        except BlobteeError:
            raise
        except (OSError, EOFError, ValueError) as error:
            raise CorruptData(f"the packed stream cannot be read on: {error}") from error
        if data is None:
            raise CorruptData("a packed stream from a source that does not block")
        return data

    def close(self) -> None:
        self._raw.close()


class _Decoder(io.RawIOBase):
    def __init__(self, source: _Peeked, stated: Compressed, max_output: int | None) -> None:
        super().__init__()
        self._source = source
        self._stated = stated
        self._max_output = max_output
        self._produced = 0
        self._fill: Callable[[memoryview], int] | None = None
        self._failure: BlobteeError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the decoder is closed")
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))
        try:
            if self._fill is None:
                self._fill = self._start()
            with memoryview(buffer).cast("B") as view:
                n = self._fill(view) if len(view) else 0
            self._produced += n
            if self._max_output is not None and self._produced > self._max_output:
                raise TooLarge(f"a layer of more than {self._max_output} bytes")
        except (CorruptData, TooLarge) as error:
            self._failure = error
            raise
        return n

    def _start(self) -> Callable[[memoryview], int]:
        head = self._source.peek()
        found = detect(head)
        if found is Compressed.GZIP:
            return _Gunzip(self._source).readinto
        if found is Compressed.ZSTD:
            return _Unzstd(self._source).readinto
        if head and self._stated is not Compressed.NONE:
            raise CorruptData(f"not {self._stated.value}, though its media type says so")
        return self._copy

    def _copy(self, view: memoryview) -> int:
        data = self._source.read(min(len(view), _READ))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


class _Gunzip:
    """gzip by the C core: members one after another, zeros allowed behind the last."""

    def __init__(self, source: _Peeked) -> None:
        self._source = source
        self._inflater = Inflater()
        self._pending = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        ended = False
        while True:
            check()
            if not self._pending and not ended:
                self._pending = memoryview(self._source.read(_READ))
                ended = not self._pending
            consumed, produced = self._inflater.inflate_into(self._pending, view)
            self._pending = self._pending[consumed:]
            if produced:
                return produced
            if ended:
                self._inflater.finish()
                return 0


class _Unzstd:
    """zstd by libzstd, behind a filter that knows where frames end."""

    def __init__(self, source: _Peeked) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        frames = cast(BinaryIO, Frames(source))  # only `read` is used of it
        self._reader = decompressor.stream_reader(frames, read_size=_READ, read_across_frames=True, closefd=False)

    def readinto(self, view: memoryview) -> int:
        try:
            return self._reader.readinto(view)
        except zstandard.ZstdError as error:
            if "window" in str(error).lower() or "memory" in str(error).lower():
                raise CorruptData(
                    f"a zstd frame that needs a window of more than {MAX_WINDOW >> 20} MiB; such layers are refused"
                ) from None
            raise CorruptData(f"damaged zstd data: {error}") from None
