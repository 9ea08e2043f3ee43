"""One ingest behind a socket: a Write stream that is open as long as its writer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from blobtee import tasks
from blobtee.content.api import Info, Status, Writer
from blobtee.content.checks import check_truncation, flat
from blobtee.content.labels import checked
from blobtee.content.proxy.connection import Connection
from blobtee.content.proxy.messages import digest_of, info_of, nanoseconds, ref_text
from blobtee.errors import (
    BlobteeError,
    Closed,
    DigestMismatch,
    FailedPrecondition,
    InvalidArgument,
    ProtocolViolation,
    SizeMismatch,
    Unimplemented,
)
from blobtee.oci import Digest
from blobtee.wire.content import COMMIT, STAT, WRITE, messages

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_PIECE = 1 << 20
"""Bytes of data in one message, as containerd's own clients send them."""

_AHEAD = 4
"""Messages under way at once: the server writes one while the next comes."""


class ProxyWriter(Writer):
    """`on_close` is called once, when the server has let go of the ref or can no longer be asked to."""

    def __init__(
        self, connection: Connection, ref: str, total: int, expected: str | None, on_close: Callable[[], None]
    ) -> None:
        """Open the ingest; see `Ingester.writer`. `ConnectionFailed` stands for a locked ref too."""
        self._connection = connection
        self._doing = f"write ingest {ref[:200]!r}"
        self._on_close = on_close
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._call = connection.converse("Write", iter(self._requests.get, None))
        self._open = True
        self._status = Status(ref, 0, total)
        self._digest = Digest.of(b"")
        self._opened_for = total
        try:
            self._send(STAT, ref=ref_text(ref), total=total, expected=expected or "")
            self._receive()
            self._status = dataclasses.replace(self._status, expected=Digest(expected) if expected else None)
            if not total:
                self._status = dataclasses.replace(self._status, total=self._former_total())
        except BaseException:
            self.close()
            raise

    @property
    def status(self) -> Status:
        return self._status

    @property
    def digest(self) -> Digest:
        return self._digest

    def write(self, data: Buffer) -> int:
        """See `Writer.write`. After an error the writer is closed; what the server kept can be resumed."""
        self._check_open()
        with flat(data) as view, self._closed_by_an_error():
            offset, under_way = self._status.offset, 0
            for at in range(0, view.nbytes, _PIECE):
                with view[at : at + _PIECE] as piece:
                    self._send(WRITE, offset=offset + at, data=bytes(piece))
                under_way += 1
                if under_way == _AHEAD:
                    self._receive()
                    under_way -= 1
            for _ in range(under_way):
                self._receive()
            if self._status.offset != offset + view.nbytes:
                raise ProtocolViolation(
                    f"cannot {self._doing}: the server is at {self._status.offset}, not at {offset + view.nbytes}"
                )
            return view.nbytes

    def truncate(self, size: int) -> None:
        """See `Writer.truncate`. `Unimplemented`: to anything but 0, for which the service has no word."""
        self._check_open()
        check_truncation(size, self._status.offset)
        if size == self._status.offset:
            return
        if size:
            raise Unimplemented(f"cannot truncate to {size} bytes: a content service can only start over")
        with self._closed_by_an_error():
            self._send(WRITE, offset=0)
            self._receive()

    def commit(self, size: int = 0, expected: str | None = None, labels: Mapping[str, str] | None = None) -> Info:
        self._check_open()
        try:
            if size < 0:
                raise InvalidArgument(f"a blob cannot have {size} bytes")
            wanted = Digest(expected) if expected else self._status.expected
            return self._commit(size, wanted, checked(labels))
        finally:
            self.close()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            # The server ends the stream when it has unlocked the ref.
            with tasks.shield():
                self._end()
        except BlobteeError:
            pass  # what ended it has been told by the call that met it
        finally:
            self._call.cancel()
            self._on_close()

    def _commit(self, size: int, wanted: Digest | None, labels: Mapping[str, str]) -> Info:
        offset = self._status.offset
        if self._opened_for and not offset and not size:
            # A stream holds its commit to the total that it was opened with, unless another is named; 0 is none.
            self._reopen()
        try:
            self._send(COMMIT, offset=offset, total=size or offset, expected=wanted or "", labels=labels)
            answer = self._receive()
        except FailedPrecondition as error:
            what = f"ingest {self._status.ref[:200]!r}"
            if size and size != offset:
                raise SizeMismatch(what, size, offset) from error
            if wanted is not None and wanted != self._digest:
                raise DigestMismatch(what, wanted, self._digest) from error
            raise
        try:
            found = self._connection.ask("Info", messages.InfoRequest(digest=self._digest), self._doing)
            return info_of(found.info)
        except BlobteeError:
            # It is committed, whatever has become of it since. The answer's times are the ingest's.
            times = nanoseconds(answer.started_at), nanoseconds(answer.updated_at)
            return Info(self._digest, offset, *times, labels)

    def _reopen(self) -> None:
        self._end()
        self._requests = SimpleQueue()
        self._call = self._connection.converse("Write", iter(self._requests.get, None))
        self._send(STAT, ref=ref_text(self._status.ref), expected=self._status.expected or "")
        self._receive()

    def _end(self) -> None:
        """End the stream from this side, and wait for the server to."""
        self._requests.put(None)
        for _ in range(_AHEAD + 1):  # answers that nobody waited for, and the end
            if self._connection.next(self._call, self._doing) is None:
                return
        raise ProtocolViolation(f"cannot {self._doing}: the server answers what it was not asked")

    def _former_total(self) -> int:
        """What the ingest was once opened with: a stream tells of its own total alone."""
        request = messages.StatusRequest(ref=ref_text(self._status.ref))
        total: int = self._connection.ask("Status", request, self._doing).status.total
        return total

    def _send(self, action: int, **fields: Any) -> None:
        try:
            self._requests.put(messages.WriteContentRequest(action=action, **fields))
        except (ValueError, TypeError) as error:  # surrogates, numbers beyond 64 bits
            raise InvalidArgument(f"cannot {self._doing}: {error}") from None

    def _receive(self) -> Any:
        answer = self._connection.next(self._call, self._doing)
        if answer is None:
            raise ProtocolViolation(f"cannot {self._doing}: the server ended the stream")
        if answer.digest:
            self._digest = digest_of(answer.digest)
        self._status = dataclasses.replace(
            self._status,
            offset=answer.offset,
            started_at=nanoseconds(answer.started_at) or self._status.started_at,
            updated_at=nanoseconds(answer.updated_at) or self._status.updated_at,
        )
        return answer

    def _check_open(self) -> None:
        self._connection.check_open()
        if not self._open:
            raise Closed(f"the writer of {self._status.ref[:200]!r} is closed")

    @contextmanager
    def _closed_by_an_error(self) -> Iterator[None]:
        """The block's errors end the stream, and with it the writer."""
        try:
            yield
        except BaseException:
            self.close()
            raise
