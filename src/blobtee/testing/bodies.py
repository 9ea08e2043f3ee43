"""Bodies that a test server sends: bytes, files, and bytes made on the way out."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from blobtee.oci import Digest

_PIECE = 1 << 20
T = TypeVar("T")
Count = Callable[[int], object]
"""Told of bytes before they go out, and of the negative difference when fewer went: a client that has read a body
therefore finds it counted."""


class Body(ABC):
    """`size` bytes that can be sent from any offset, by many threads at once."""

    size: int

    @abstractmethod
    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes [start, stop) in pieces of at most 1 MiB."""

    def send(self, connection: socket.socket, start: int, stop: int, count: Count) -> None:
        """Write the bytes [start, stop) to `connection`. `OSError` when the peer is gone."""
        for piece in self.pieces(start, stop):
            while piece:
                piece = piece[_counted(connection.send, piece, len(piece), count) :]

    def read(self) -> bytes:
        return b"".join(self.pieces(0, self.size))

    def digest(self) -> Digest:
        hasher = hashlib.sha256()
        for piece in self.pieces(0, self.size):
            hasher.update(piece)
        return Digest(f"sha256:{hasher.hexdigest()}")


def _counted(send: Callable[[T], int], what: T, planned: int, count: Count) -> int:
    count(planned)
    sent = 0
    try:
        sent = send(what)
    finally:
        if sent != planned:
            count(sent - planned)
    return sent


class Bytes(Body):
    """A body in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        for position in range(start, stop, _PIECE):
            yield self._data[position : min(stop, position + _PIECE)]


class File(Body):
    """A file on disk, opened for each sending; plain connections get it by sendfile."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self.size = self._path.stat().st_size

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        with self._path.open("rb") as file:
            file.seek(start)
            while start < stop:
                data = file.read(min(_PIECE, stop - start))
                if not data:
                    return
                start += len(data)
                yield memoryview(data)

    def send(self, connection: socket.socket, start: int, stop: int, count: Count) -> None:
        if isinstance(connection, ssl.SSLSocket):
            super().send(connection, start, stop, count)
            return
        with self._path.open("rb") as file:
            while start < stop:
                planned = min(4 * _PIECE, stop - start)

                def send(n: int, offset: int = start) -> int:
                    return os.sendfile(connection.fileno(), file.fileno(), offset, n)

                sent = _counted(send, planned, planned, count)
                if not sent:
                    return
                start += sent


class Generated(Body):
    """`size` pseudo-random bytes, the same for the same `seed`, that take one MiB of memory whatever their size.

    They repeat with a period that is no power of two, so that bytes put at a wrong offset change the digest.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.size = size
        # A prime number of bytes, a little under 1 MiB.
        self._block = memoryview(random.Random(seed).randbytes(1_048_573))

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        while start < stop:
            inside = start % len(self._block)
            piece = self._block[inside : inside + stop - start]
            start += len(piece)
            yield piece
