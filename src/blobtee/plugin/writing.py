"""The Write RPC: one writer for the life of the stream, one answer for each request."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

from blobtee import tasks
from blobtee.content.api import Store, Writer
from blobtee.content.proxy.messages import timestamp
from blobtee.core import H2Call, spread
from blobtee.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    RefLocked,
)
from blobtee.oci import Digest
from blobtee.plugin.observer import Observer
from blobtee.wire.content import COMMIT, STAT, WRITE, messages

_TRIES = 30
_PAUSE = 0.005
_LIGHT_NBYTES = 64 << 10
"""Bytes of a blob whose hashing and writing are less than what Python does for it."""
_OPENING_SECONDS = 10.0
"""How long an abort waits for an opening that was told to end."""


class _Opening(tasks.Cancellation):
    """A writer that is being opened, which reads what is there already: until its ref is aborted or its client gone."""

    def __init__(self, ref: str, call: H2Call) -> None:
        super().__init__()
        self.ref = ref
        self._call = call

    def check(self) -> None:
        if self.cancelled:
            raise FailedPrecondition(f"ingest {self.ref[:200]!r} was aborted")
        if not self._call.active:
            raise Cancelled("the client has gone")


class Writing:
    """The writes of one service. Thread-safe."""

    def __init__(self, store: Store, observer: Observer, is_here: Callable[[str], bool] | None = None) -> None:
        self._store = store
        self.has = is_here or self._has
        self._observer = observer
        self._open: dict[str, Writer] = {}
        self._openings: set[_Opening] = set()

    def write(self, requests: Iterator[Any], call: H2Call) -> Generator[Any, None, None]:
        """Answer `requests` until the client has sent its last or is gone: then the ref is unlocked, the data stays."""
        first = next(requests, None)
        if first is None:
            return
        if not first.ref:
            raise InvalidArgument("the first message of a write has to name the ref")
        if not 0 < first.total <= _LIGHT_NBYTES:
            spread()
        opening = _Opening(first.ref, call)
        self._openings.add(opening)
        try:
            with tasks.scope(opening):
                writer = self._store.writer(first.ref, total=first.total, expected=first.expected or None)
            self._open[first.ref] = writer
        finally:
            self._openings.discard(opening)
        try:
            with writer:
                stream = _Stream(self, writer, first, self._observer)
                yield stream.answer(first)
                for request in requests:
                    yield stream.answer(request)
        finally:
            # A writer of the same ref may have been opened since an abort took this one's place.
            if self._open.get(first.ref) is writer:
                del self._open[first.ref]

    def abort(self, ref: str) -> None:
        """Remove an ingest, from under its writer too: containerd aborts what a stream of its own still holds open.

        What the writer is doing ends first, opening at once; what it does next is `FAILED_PRECONDITION`. `RefLocked`:
        the writer belongs to another server.
        """
        tries, deadline = 0, time.monotonic() + _OPENING_SECONDS
        while tries < _TRIES and time.monotonic() < deadline:
            try:
                self._store.abort(ref)
                return
            except RefLocked:
                openings = [opening for opening in list(self._openings) if opening.ref == ref]
                for opening in openings:
                    opening.cancel()
                if (writer := self._open.get(ref)) is not None:
                    writer.close()
                else:
                    tries += not openings
                    time.sleep(_PAUSE)
        raise RefLocked(f"ingest {ref[:200]!r} is being written elsewhere")

    def _has(self, digest: str) -> bool:
        try:
            self._store.info(digest)
        except (NotFound, DataLoss):
            return False
        return True


class _Stream:
    def __init__(self, writing: Writing, writer: Writer, first: Any, observer: Observer) -> None:
        self._writing = writing
        self._writer = writer
        self._first = first
        self._ref = first.ref
        self._total = 0
        # Of the stream alone: what an ingest was once opened for does not bind who resumes it.
        self._expected = ""
        self._observer = observer

    def answer(self, request: Any) -> Any:
        self._learn(request)
        if request.action in (WRITE, COMMIT):
            self._write(request)
        elif request.action != STAT:
            raise InvalidArgument(f"there is no action {request.action} in a write")
        if request.action == COMMIT:
            # The digest of after the commit is that of the data, in the algorithm that it was committed by.
            info = self._writer.commit(self._total, self._expected or None, dict(request.labels) or None)
            return self._answer(request.action, info.digest)
        return self._answer(request.action, self._writer.digest)

    def _learn(self, request: Any) -> None:
        if request.ref and request.ref != self._ref:
            raise InvalidArgument("one stream writes one ref")
        if request.total < 0:
            raise InvalidArgument(f"a blob cannot have {request.total} bytes")
        self._total = request.total or self._total
        if request.expected:
            self._expected = Digest(request.expected)
            # When the writer was opened it was not there.
            if request is not self._first and self._writing.has(self._expected):
                # Somebody was quicker, and what this one has is of no more use.
                self._writer.close()
                with suppress(RefLocked):
                    self._writing.abort(self._ref)
                raise AlreadyExists(f"blob {self._expected} is in the store already")

    def _write(self, request: Any) -> None:
        offset = self._writer.status.offset
        if request.offset > 0 and request.offset != offset:
            raise OutOfRange(f"cannot write at {request.offset}: the ingest is at {offset}")
        if request.offset == 0 and offset:
            self._writer.truncate(0)
        if request.data:
            self._observer.received(self._writer.write(request.data))

    def _answer(self, action: int, digest: str) -> Any:
        status = self._writer.status
        return messages.WriteContentResponse(
            action=action,
            started_at=timestamp(status.started_at),
            updated_at=timestamp(status.updated_at),
            offset=status.offset,
            total=self._total,
            digest=digest,
        )
