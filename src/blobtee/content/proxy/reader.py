"""Random access to a blob behind a socket."""

from __future__ import annotations

import os
import threading
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from blobtee.content.api import ReaderAt
from blobtee.content.checks import flat
from blobtee.content.files import FileReader, os_errors
from blobtee.content.proxy.connection import Connection
from blobtee.errors import BlobteeError, Closed, NotFound, ProtocolViolation
from blobtee.oci import Digest
from blobtee.wire.content import messages

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 8 << 20
"""Bytes that one RPC is asked for."""


class ProxyReader(ReaderAt):
    """Each read is an RPC of its own.

    Beside them one RPC from the blob's beginning is kept open and not read: a server goes on with it when the blob is
    deleted, so that all of it can still be had then. It costs the server a thread and a descriptor, and the two of us
    what flow control lets through (64 KiB, which is also what a server of ours fetches for it of a lazy blob).
    """

    def __init__(self, connection: Connection, digest: Digest, size: int) -> None:
        """`NotFound`, and whatever else the server answers."""
        self.size = size
        self._connection = connection
        self._digest = digest
        self._doing = f"read blob {digest}"
        self._lock = threading.Lock()
        self._saved: FileReader | None = None
        self._closed = False
        self._anchor = connection.stream("Read", messages.ReadContentRequest(digest=digest), unhurried=True)
        try:
            connection.begun(self._anchor, self._doing)
        except BaseException:
            self._anchor.cancel()
            raise

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        self._check_open()
        self._check(offset)
        with flat(buffer) as view:
            wanted = min(view.nbytes, self.size - offset)
            for at in range(0, wanted, _PIECE):
                with view[at : min(at + _PIECE, wanted)] as piece:
                    self._fill(offset + at, piece)
        return wanted

    def close(self) -> None:
        self._closed = True
        self._anchor.cancel()
        with self._lock:
            if self._saved is not None:
                self._saved.close()

    def _fill(self, offset: int, piece: memoryview) -> None:
        saved = self._saved
        if saved is None:
            try:
                self._ask(offset, piece)
                return
            except NotFound:
                saved = self._save()
        saved.readinto_at(offset, piece)

    def _ask(self, offset: int, piece: memoryview) -> None:
        request = messages.ReadContentRequest(digest=self._digest, offset=offset, size=piece.nbytes)
        call = self._connection.stream("Read", request)
        filled = 0
        try:
            while filled < piece.nbytes:
                data = self._next(call, filled)
                if data is None:
                    raise ProtocolViolation(f"cannot {self._doing}: {filled} bytes came instead of {piece.nbytes}")
                data = data[: piece.nbytes - filled]
                piece[filled : filled + len(data)] = data
                filled += len(data)
        finally:
            call.cancel()

    def _save(self) -> FileReader:
        """The blob was deleted: keep what the RPC that is still open has of it, which is all."""
        with self._lock:
            if self._saved is None:
                with os_errors(f"keep deleted blob {self._digest}"), TemporaryFile(prefix="blobtee-") as file:
                    saved = 0
                    while (data := self._next(self._anchor, saved)) is not None:
                        saved += len(data)
                        if saved > self.size:
                            break
                        file.write(data)
                    if saved != self.size:
                        raise ProtocolViolation(f"cannot {self._doing}: {saved} bytes came instead of {self.size}")
                    file.flush()
                    self._saved = FileReader(os.dup(file.fileno()), self.size, f"blob {self._digest}")
            return self._saved

    def _next(self, call: Any, at: int) -> bytes | None:
        """The data of the next message, which are those from `at` on; None at the end."""
        try:
            message = self._connection.next(call, self._doing)
        except BlobteeError:
            self._check_open()  # closing it is what ended the call
            raise
        if message is None:
            return None
        if message.offset != at:
            raise ProtocolViolation(f"cannot {self._doing}: bytes for {message.offset} came at {at}")
        data: bytes = message.data
        if not data:
            # With these a server could keep a reader for ever.
            raise ProtocolViolation(f"cannot {self._doing}: a message without bytes came at {at}")
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the reader of {self._digest} is closed")
