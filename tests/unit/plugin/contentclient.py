"""A bare client of the content service: what containerd sends, without what its client makes of the answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from blobtee.content.api import Store
from blobtee.oci import Digest
from blobtee.plugin.calls import Service
from blobtee.plugin.observer import SILENT, Observer
from blobtee.plugin.service import ContentService
from blobtee.plugin.serving import Serving
from blobtee.wire.content import SERVICE, messages
from blobtee.wire.table import common

_ANSWERS = {
    "Info": messages.InfoResponse,
    "Update": messages.UpdateResponse,
    "List": messages.ListContentResponse,
    "Delete": common.Empty,
    "Read": messages.ReadContentResponse,
    "Status": messages.StatusResponse,
    "ListStatuses": messages.ListStatusesResponse,
    "Write": messages.WriteContentResponse,
    "Abort": common.Empty,
}
TIMEOUT = 120
"""Seconds, for calls that hang: three hundred writers at once take a slow machine a while."""


class Client:
    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.max_receive_message_length", -1)])

    def one(self, method: str, request: Any) -> Any:
        return self._call("unary_unary", method)(request, timeout=TIMEOUT)

    def many(self, method: str, request: Any) -> Any:
        """The running call: iterate over it, or cancel it."""
        return self._call("unary_stream", method)(request, timeout=TIMEOUT)

    def write(self, requests: Iterable[Any]) -> Any:
        return self._call("stream_stream", "Write")(iter(requests), timeout=TIMEOUT)

    def put(self, ref: str, data: bytes, **commit: Any) -> str:
        """Write and commit `data`; its digest."""
        answers = list(
            self.write([request("WRITE", ref=ref, data=data), request("COMMIT", offset=len(data), **commit)])
        )
        return str(answers[-1].digest)

    def read(self, digest: str, offset: int = 0, size: int = 0) -> bytes:
        call = self.many("Read", messages.ReadContentRequest(digest=digest, offset=offset, size=size))
        return b"".join(answer.data for answer in call)

    def _call(self, kind: str, method: str) -> Callable[..., Any]:
        made: Callable[..., Any] = getattr(self.channel, kind)(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_ANSWERS[method].FromString,
        )
        return made


def request(action: str, **fields: Any) -> Any:
    return messages.WriteContentRequest(action=action, **fields)


def digest_of(data: bytes) -> str:
    return str(Digest.of(data))


def code(call: Callable[[], object]) -> str:
    """The name of the status that `call` ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@contextmanager
def serving(store: Store, path: Path, observer: Observer = SILENT) -> Iterator[Client]:
    with serving_at(path, ContentService(store, observer)):
        client = Client(path)
        try:
            yield client
        finally:
            client.channel.close()


@contextmanager
def serving_at(path: Path, *services: Service, max_calls: int = 1000, **limits: Any) -> Iterator[Serving]:
    """A server of `services` on the socket `path`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(100)
    served = Serving(**limits)
    served.add(listener, services, max_calls)
    served.start()
    try:
        yield served
    finally:
        served.stop(0)
