"""A call of the gRPC server, as its handler has it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blobtee.core import H2Call, H2Server
from blobtee.errors import Closed
from tests.unit.plugin.http2 import DATA, END_STREAM, frame, message, raw, request

METHOD = "/test.Test/Method"


@contextmanager
def serving(path: Path, handle: Callable[[H2Call], object]) -> Iterator[None]:
    server = H2Server(message_nbytes=1 << 20, buffered_nbytes=1 << 24, connections=4)
    server.method(METHOD)
    with closing(server), closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        server.listen(listener, 0, 10)
        thread = threading.Thread(
            target=server.serve, args=(handle, lambda: True), kwargs={"idle_seconds": 1, "keep": 1}
        )
        thread.start()
        try:
            yield
        finally:
            server.stop()
            thread.join()


@pytest.mark.parametrize("end", [H2Call.close, lambda call: call.finish(5, "it is not there")])
@pytest.mark.parametrize(
    "use",
    [
        H2Call.take,
        H2Call.metadata,
        lambda call: call.exchange(b"message"),
        lambda call: call.send(b"message"),
        lambda call: call.send_file(b"", 0, 0, 1),
        lambda call: call.on_end(lambda: None),
    ],
)
def test_a_call_that_is_over_is_of_no_more_use(
    tmp_path: Path, end: Callable[[H2Call], object], use: Callable[[H2Call], object]
) -> None:
    told: list[object] = []

    def handle(call: H2Call) -> None:
        end(call)
        try:
            told.append(use(call))
        except Closed as error:
            told.append(str(error))
        told.append(call.active)
        end(call)

    with serving(path := tmp_path / "socket", handle), raw(path) as connection:
        connection.send(request(1, METHOD), frame(DATA, 1, message(b"asked"), END_STREAM))
        assert connection.end(1)
    assert told == ["the call is over", False]
