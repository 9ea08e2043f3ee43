"""Servers that keep a connection just alive enough to hold whoever waits on it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import httpcore
import pytest

from blobtee import tasks
from blobtee.errors import Closed, ConnectionFailed, PermissionDenied
from blobtee.oci import Descriptor, Digest
from blobtee.registry.network import Stream
from tests.unit.registry.conftest import QUICK, Connect, Serve
from tests.unit.registry.scripted import Asked, Script, Wire
from tests.unit.registry.test_auth import Known, tags

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SIZE = 3 << 20
DESC = Descriptor("application/octet-stream", Digest.of(b"never compared"), SIZE)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Cancel what hangs: its error is then none that a test here wants."""
    with tasks.scope() as scope:
        timer = threading.Timer(seconds, scope.cancel)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def trickling(head: str) -> Script:
    """Sends `head`, then a byte every 50 ms: a tenth of what `QUICK.stall` allows between two pieces."""

    def script(asked: Asked, wire: Wire) -> None:
        wire.send(head.encode() + b"\r\n\r\n")
        while not wire.stopped.wait(0.05):
            wire.send(b"x")
        wire.drop()

    return script


def test_a_document_that_trickles_is_given_up(serve: Serve, connect: Connect) -> None:
    server = serve(trickling("HTTP/1.1 200 X\r\nContent-Length: 60000"))
    with within(8), pytest.raises(ConnectionFailed, match="too slowly"):
        connect().repository(f"{server.host}/a/b:c").document()


def test_a_document_is_bounded_in_all_however_steadily_it_comes(serve: Serve, connect: Connect) -> None:
    server = serve(trickling("HTTP/1.1 200 X\r\nContent-Length: 60000"))
    settings = replace(QUICK, stall=60.0, document=0.3, attempts=1)
    with within(8), pytest.raises(ConnectionFailed, match="too slowly"):
        connect(settings=settings).repository(f"{server.host}/a/b:c").document()


def test_an_error_page_that_trickles_is_given_up(serve: Serve, connect: Connect) -> None:
    server = serve(trickling("HTTP/1.1 403 X\r\nContent-Length: 60000"))
    with within(8), pytest.raises(PermissionDenied):
        connect().repository(f"{server.host}/a/b:c").document()


def test_a_token_that_trickles_is_given_up(serve: Serve, connect: Connect) -> None:
    tokens = serve(trickling("HTTP/1.1 200 X\r\nContent-Length: 60000"))
    challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/t"'}
    server = serve(lambda asked, wire: wire.answer(401, challenge))
    with within(8), pytest.raises(ConnectionFailed, match="too slowly"):
        tags(connect(credentials=Known()), server)


@pytest.mark.parametrize("takeover", [1 << 10, 1 << 30])
def test_a_blob_that_trickles_is_given_up(serve: Serve, connect: Connect, takeover: int) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        start, _ = asked.range or (0, SIZE)
        head = f"HTTP/1.1 {206 if start else 200} X\r\nContent-Length: {SIZE - start}"
        trickling(f"{head}\r\nContent-Range: bytes {start}-{SIZE - 1}/{SIZE}")(asked, wire)

    server = serve(script)
    registry = connect(settings=replace(QUICK, takeover=takeover))
    with (
        within(8),
        registry.repository(f"{server.host}/a/b").reader_at(DESC) as reader,
        reader.open() as file,
        pytest.raises(ConnectionFailed),
    ):
        file.readall()


class Narrow(socket.socket):
    """Takes a byte at a time, and its time for each."""

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        time.sleep(0.02)
        return super().send(memoryview(data)[:1], flags)


def test_an_upload_that_is_taken_byte_by_byte_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Narrow(fileno=ours.detach()) as narrow, pytest.raises(httpcore.WriteTimeout):
        Stream(narrow).write(bytes(40), timeout=0.1)


# Closing the client under a waiting thread


def test_closing_the_client_wakes_who_waits_for_a_body(serve: Serve, connect: Connect) -> None:
    registry = connect(settings=replace(QUICK, stall=60.0, patience=60.0))

    def script(asked: Asked, wire: Wire) -> None:
        wire.send(f"HTTP/1.1 200 X\r\nContent-Length: {SIZE}\r\n\r\n".encode() + bytes(1000))
        registry.close()
        wire.silence()

    server = serve(script)
    with within(8), registry.repository(f"{server.host}/a/b").reader_at(DESC) as reader, reader.open() as file:
        with pytest.raises(Closed):
            file.readall()


def test_closing_the_client_wakes_who_waits_for_an_answer(serve: Serve, connect: Connect) -> None:
    registry = connect(settings=replace(QUICK, answer=60.0))

    def script(asked: Asked, wire: Wire) -> None:
        registry.close()
        wire.silence()

    server = serve(script)
    with within(8), pytest.raises(Closed):
        registry.repository(f"{server.host}/a/b:c").document()
