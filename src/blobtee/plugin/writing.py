"""The Write RPC: one writer for the life of the stream, one answer for each request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc

from blobtee.content.api import Store, Writer
from blobtee.content.proxy.messages import timestamp
from blobtee.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound, OutOfRange, RefLocked
from blobtee.oci import Digest
from blobtee.plugin.observer import Observer
from blobtee.wire.content import COMMIT, STAT, WRITE, messages


def write(store: Store, requests: Iterator[Any], observer: Observer) -> Iterator[Any]:
    """Answer `requests` until the client has sent its last or is gone: then the ref is unlocked, and the data stays."""
    try:
        first = next(requests, None)
        if first is None:
            return
        if not first.ref:
            raise InvalidArgument("the first message of a write has to name the ref")
        with store.writer(first.ref, total=first.total, expected=first.expected or None) as writer:
            stream = _Stream(store, writer, first, observer)
            yield stream.answer(first)
            for request in requests:
                yield stream.answer(request)
    except grpc.RpcError:
        # How grpcio says, out of the iteration, that the client cancelled or its connection broke.
        return


class _Stream:
    def __init__(self, store: Store, writer: Writer, first: Any, observer: Observer) -> None:
        self._store = store
        self._writer = writer
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
            with suppress(NotFound, DataLoss):
                self._store.info(self._expected)
                # Somebody was quicker, and what this one has is of no more use.
                self._writer.close()
                with suppress(RefLocked):
                    self._store.abort(self._ref)
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
