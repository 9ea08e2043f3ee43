"""A tar on its way out: small pieces gathered, large ones passed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blobtee.layers.reader import BLOCK
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

PIECE = 1 << 20
"""Bytes of data that are read or written at once; small entries are gathered to about as many."""

_END = bytes(2 * BLOCK)
_ZEROS = bytes(PIECE)
_CHECK_EVERY = 256


class Blocks:
    """Gives `write` what it gets, in order, in pieces of about `PIECE`. What `write` raises passes through.

    A piece is good only during the call of `write`. Cancellation is looked for now and then.
    """

    def __init__(self, write: Callable[[Buffer], object]) -> None:
        self._write = write
        self._gathered = bytearray()
        self._count = 0

    def put(self, data: Buffer) -> None:
        """Append a little."""
        gathered = self._gathered
        gathered += data
        self._count += 1
        if len(gathered) >= PIECE:
            self._flush()
        elif self._count % _CHECK_EVERY == 0:
            check()

    def pass_on(self, data: Buffer) -> None:
        """Append much: it goes to `write` as it is."""
        self._flush()
        self._write(data)

    def zeros(self, nbytes: int) -> None:
        """Append zeros, maybe very many."""
        while nbytes >= PIECE:
            self.pass_on(_ZEROS)
            nbytes -= PIECE
        if nbytes:
            self.put(bytes(nbytes))

    def pad(self, size: int) -> None:
        """Fill up the last block of data of `size` bytes."""
        if size % BLOCK:
            self.put(bytes(-size % BLOCK))

    def finish(self) -> None:
        """Append the end-of-archive mark, and give away what was gathered."""
        self.put(_END)
        self._flush()

    def _flush(self) -> None:
        check()
        gathered = self._gathered
        if gathered:
            # A new one each time: `write` may not keep what it gets, but must not bring us down when it does.
            self._gathered = bytearray()
            self._write(gathered)
