"""Decoders: a packed layer in, its tar out, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from blobtee.compression.detect import PREFIX_NBYTES, detect
from blobtee.compression.feed import READ_NBYTES, Feed, Source
from blobtee.compression.gunzip import Members
from blobtee.compression.parts import Format, Parts
from blobtee.compression.unzstd import SizedFrames, Unzstd
from blobtee.errors import BlobteeError, Closed, CorruptData, TooLarge
from blobtee.oci import Compressed, layer_compression
from blobtee.tasks import usable_threads

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def decompress(
    raw: Source, media_type: str | None = None, *, max_output: int | None = None, threads: int | None = 1
) -> io.RawIOBase:
    """The bytes that are packed in `raw`, as a file to be read once and in order; closing it closes `raw`.

    The first bytes say how it is packed. `media_type` is a layer's: it must be known (`UnsupportedMediaType`), and
    what it calls compressed must be. No bytes at all are an empty tar, whatever the type.

    Reading raises `CorruptData` when the stream is damaged, breaks off, is followed by garbage (gzip may be followed by
    zeros), needs a dictionary or a window above `MAX_WINDOW`; `TooLarge` when more than `max_output` bytes come out;
    `Closed` after `close()`. Errors of `raw`, when they are ours, pass through. Every failure is final, a cancellation
    too: reading on raises it again. For one thread at a time.

    threads: how many may decode, the reader's own among them; None is as many as there are processors, within reason.
    It is of use for layers in parts that say how long they are, as blobtee writes them (`encoder`); others take one
    thread. With more than one, more of `raw` is read than is needed for what was asked, at most as much again.
    `close()` ends the threads.
    """
    stated = layer_compression(media_type) if media_type is not None else Compressed.NONE
    return _Decoder(Feed(raw), stated, max_output, usable_threads(threads))


class _Decoder(io.RawIOBase):
    def __init__(self, feed: Feed, stated: Compressed, max_output: int | None, threads: int) -> None:
        super().__init__()
        self._feed = feed
        self._stated = stated
        self._max_output = max_output
        self._threads = threads
        self._produced = 0
        self._parts: Parts | None = None
        self._fill: Callable[[memoryview], int] | None = None
        self._failure: BlobteeError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the decoder is closed")
        if self._failure is not None:
            raise self._failure
        try:
            if self._fill is None:
                self._fill = self._start()
            with memoryview(buffer).cast("B") as view:
                n = self._fill(view) if len(view) else 0
            self._produced += n
            if self._max_output is not None and self._produced > self._max_output:
                raise TooLarge(f"a layer of more than {self._max_output} bytes")
        except BaseException as error:
            # Bytes may be on their way through the decoders: who went on reading would miss them.
            self._failure = error if isinstance(error, BlobteeError) else CorruptData("reading broke off before this")
            raise
        return n

    def _start(self) -> Callable[[memoryview], int]:
        head = self._feed.peek(PREFIX_NBYTES)
        found = detect(head)
        form: Format
        if found is Compressed.GZIP:
            form = Members()
        elif found is Compressed.ZSTD:
            if self._threads == 1:
                # A frame at a time would leave the cache before it is copied out.
                return Unzstd(self._feed).readinto
            form = SizedFrames()
        elif head and self._stated is not Compressed.NONE:
            raise CorruptData(f"not {self._stated.value}, though its media type says so")
        else:
            return self._copy
        self._parts = Parts(form, self._feed, self._threads)
        return self._parts.readinto

    def _copy(self, view: memoryview) -> int:
        data = self._feed.read(min(len(view), READ_NBYTES))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            try:
                if self._parts is not None:
                    self._parts.close()
            finally:
                self._feed.close()
        super().close()
