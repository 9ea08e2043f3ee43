"""Clients that mean harm, or are something else: the server goes on serving others, and gives back what they took."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.wire.content import MAX_DATA, SERVICE, messages
from tests.unit.plugin.asking import ECHO, HANG, SINK, TALK, Asker, Test, asking, eventually
from tests.unit.plugin.contentclient import Client, serving, serving_at
from tests.unit.plugin.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Raw,
    block,
    frame,
    literal,
    message,
    raw,
    request,
)

CANCEL = struct.pack(">I", 8)
INFO = f"/{SERVICE}/Info"


def memory() -> int:
    """Bytes that are resident."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def pour(connection: Raw, data: bytes, times: int) -> None:
    """Send it so often, or until the server has had enough and closes."""
    with suppress(TimeoutError, ConnectionError):
        for _ in range(times):
            connection.socket.sendall(data)


@contextmanager
def known(asker: Asker, path: Path) -> Iterator[Raw]:
    """A connection that has said nothing yet. `asker`, who has as little time for its own hello, has said it."""
    eventually(lambda: asker.status(ECHO)[0] == "OK")
    with raw(path, begun=False) as connection:
        yield connection


NO_HTTP2 = {
    "nothing": b"",
    "zeros": bytes(5000),
    "http/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "half a preface": PREFACE[:-1] + b"!",
    "no settings": PREFACE + frame(PING, 0, bytes(8)),
}


@pytest.mark.parametrize("what", NO_HTTP2)
def test_what_does_not_speak_http2(path: Path, what: str) -> None:
    with asking(path, handshake_seconds=0.3) as (asker, _, served), known(asker, path) as connection:
        pour(connection, NO_HTTP2[what], 1)
        assert connection.is_closed()
        assert asker.ask(ECHO, b"well") == b"well"
        eventually(lambda: served.stats().connections == 1)


def test_who_says_its_hello_slowly_has_until_then_and_no_longer(path: Path) -> None:
    begun = time.monotonic()
    with asking(path, handshake_seconds=0.5) as (asker, _, served), known(asker, path) as connection:
        with suppress(ConnectionError):
            for byte in PREFACE * 10:
                connection.socket.sendall(bytes([byte]))
                time.sleep(0.05)
        assert 0.5 <= time.monotonic() - begun < 15
        assert asker.ask(ECHO, b"well") == b"well"
        eventually(lambda: served.stats().connections == 1)


def resets() -> Iterator[bytes]:
    stream = 1
    while True:
        pieces = b""
        for _ in range(50):
            pieces += request(stream, ECHO) + frame(DATA, stream, message(b"x"), END_STREAM)
            pieces += frame(RST_STREAM, stream, CANCEL)
            stream += 2
        yield pieces


FLOODS = {
    "pings": frame(PING, 0, bytes(8)) * 1000,
    "acknowledged pings": frame(PING, 0, bytes(8), ACK) * 1000,
    "settings": frame(SETTINGS) * 1000,
    "large settings": frame(SETTINGS, 0, bytes([0, 1, 0, 0, 16, 0]) * 30) * 100,
    "acknowledged settings": frame(SETTINGS, 0, b"", ACK) * 1000,
    "window updates": frame(WINDOW_UPDATE, 0, b"\0\0\0\1") * 1000,
    "priorities": frame(PRIORITY, 1, bytes([0, 0, 0, 3, 1])) * 1000,
    "frames of no kind": frame(99, 0, b"x") * 1000,
    "resets": frame(RST_STREAM, 1, CANCEL) * 1000,
}


@pytest.mark.parametrize("what", FLOODS)
def test_floods_end_in_a_closed_connection(path: Path, what: str) -> None:
    with asking(path) as (asker, _, served), raw(path) as connection:
        asker.ask(ECHO, b"warm")
        before = memory()
        if what in ("resets", "priorities"):
            connection.send(request(1, SINK))
        pour(connection, FLOODS[what], 1000)
        assert asker.ask(ECHO, b"meanwhile") == b"meanwhile"
        assert connection.is_closed()
        assert memory() - before < 32 << 20
        eventually(lambda: served.stats().connections == 1)
        assert asker.ask(ECHO, b"after") == b"after"


@pytest.mark.parametrize(("empty", "flags"), [(b"", 0), (bytes([200]) + bytes(200), 8)])
def test_empty_data_is_a_flood_too(path: Path, empty: bytes, flags: int) -> None:
    with asking(path) as (asker, _, served), raw(path) as connection:
        asker.ask(ECHO, b"warm")
        connection.send(request(1, SINK))
        pour(connection, frame(DATA, 1, empty, flags) * 1000, 1000)
        assert connection.is_closed()
        eventually(lambda: served.stats()[:2] == (1, 0))
        assert asker.ask(ECHO, b"after") == b"after"


def test_messages_without_a_byte_are_bounded_by_the_window(path: Path) -> None:
    with asking(path, buffered_nbytes=1 << 20) as (asker, test, served), raw(path) as connection:
        connection.send(request(1, SINK))
        pour(connection, frame(DATA, 1, message(b"") * 3000), 10)
        assert served.stats().buffered <= 1 << 20
        test.go_on.set()
        connection.close()
        eventually(lambda: served.stats()[1:3] == (0, 0))
        assert asker.ask(ECHO, b"after") == b"after"


def test_rapid_resets_have_no_more_handlers_than_there_may_be(path: Path) -> None:
    test = Test()
    with serving_at(path, test, max_calls=50) as served, raw(path) as connection:
        asker = Asker(path)
        most, sent = 0, resets()
        connection.socket.settimeout(0.5)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(400):
                connection.socket.sendall(next(sent))
                most = max(most, sum(thread.name == "blobtee-rpc" for thread in threading.enumerate()))
        assert most <= 110  # one that runs and one that is being started, for each
        connection.close()
        eventually(lambda: served.stats()[1:3] == (0, 0))
        assert asker.ask(ECHO, b"after") == b"after"
        asker.channel.close()


HEADER_BOMBS = {
    "one that is too large": [frame(HEADERS, 1, block(ECHO, (b"a", b"b" * 16100)), END_HEADERS)],
    "many": [
        frame(HEADERS, 1, block(ECHO)),
        *(frame(CONTINUATION, 1, literal(b"name%d" % i, b"x" * 8000)) for i in range(5)),
        frame(CONTINUATION, 1, b"", END_HEADERS),
    ],
    "continuations without end": [frame(HEADERS, 1, block(ECHO)), *([frame(CONTINUATION, 1)] * 100000)],
    "one that a table holds, again and again": [
        frame(HEADERS, 1, block(ECHO) + b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 12000, END_HEADERS)
    ],
    "a table of other sizes": [frame(HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x7f" + block(ECHO), END_HEADERS)],
    "an index of nothing": [frame(HEADERS, 1, b"\xff\xff\xff\xff\x7f", END_HEADERS)],
    "names in capitals": [frame(HEADERS, 1, block(ECHO, (b"Upper", b"x")), END_HEADERS)],
    "no path": [frame(HEADERS, 1, literal(b":method", b"POST"), END_HEADERS)],
    "two paths": [frame(HEADERS, 1, block(ECHO, (b":path", b"/other")), END_HEADERS)],
    "values with ends of lines": [frame(HEADERS, 1, block(ECHO, (b"a", b"b\r\nc: d")), END_HEADERS)],
    "no end": [frame(HEADERS, 1, block(ECHO)), frame(PING, 0, bytes(8))],
}


@pytest.mark.parametrize("what", HEADER_BOMBS)
def test_headers_that_no_client_sends(path: Path, what: str) -> None:
    with asking(path) as (asker, _, served), raw(path) as connection:
        asker.ask(ECHO, b"warm")
        before = memory()
        for piece in HEADER_BOMBS[what]:
            pour(connection, piece, 1)
        pour(connection, frame(PING, 0, b"are you "), 1)
        # Told, reset, or sent away, perhaps before it has read all: what may not be is that the call runs.
        with suppress(ConnectionResetError):
            for kind, _, stream, _payload in connection.frames():
                assert kind != DATA
                if kind in (GOAWAY, RST_STREAM) or (kind == HEADERS and stream == 1):
                    break
        assert memory() - before < 16 << 20
        assert asker.ask(ECHO, b"after") == b"after"
        connection.close()
        eventually(lambda: served.stats()[:2] == (1, 0))


BROKEN = {
    "a frame that is too long": frame(DATA, 1, bytes(20000)),
    "data on no stream": frame(DATA, 0, b"x"),
    "data on a stream that never was": frame(DATA, 7, b"x"),
    "data on a stream that has ended": request(1, ECHO, flags=END_HEADERS | END_STREAM) + frame(DATA, 1, b"x"),
    "a stream with an even number": request(2, ECHO),
    "streams that go backwards": request(5, ECHO) + request(3, ECHO),
    "a window that overflows": frame(WINDOW_UPDATE, 0, b"\x7f\xff\xff\xff") * 2,
    "a window of nothing": frame(WINDOW_UPDATE, 0, bytes(4)),
    "a promise": frame(PUSH_PROMISE, 1, bytes(4) + block(ECHO), END_HEADERS),
    "settings of a wrong length": frame(SETTINGS, 0, b"12345"),
    "settings that cannot be": frame(SETTINGS, 0, b"\0\4\xff\xff\xff\xff"),
    "a ping of a wrong length": frame(PING, 0, b"1234567"),
    "more padding than frame": request(1, ECHO) + frame(DATA, 1, b"\xff123", 8),
    "a stream that needs itself": frame(HEADERS, 1, bytes([0, 0, 0, 1, 1]) + block(ECHO), END_HEADERS | 32),
    "a goodbye": frame(GOAWAY, 0, bytes(8)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_frames_that_break_the_rules(path: Path, what: str) -> None:
    with asking(path) as (asker, _, served), raw(path) as connection:
        connection.send(BROKEN[what])
        time.sleep(0.05)
        connection.socket.close()
        assert asker.ask(ECHO, b"after") == b"after"
        eventually(lambda: served.stats()[:2] == (1, 0))


@pytest.mark.parametrize("what", [HANG, TALK])
def test_who_breaks_the_rules_and_stays_has_no_call_and_no_connection(path: Path, what: str) -> None:
    with asking(path) as (asker, test, served), raw(path) as connection:
        asker.ask(ECHO, b"warm")
        connection.send(request(1, what), frame(DATA, 1, message(b"x"), END_STREAM if what == HANG else 0))
        if what == HANG:
            assert test.hanging.acquire(timeout=10)
        else:
            connection.until(DATA, 1)
        connection.send(BROKEN["a frame that is too long"])
        connection.until(GOAWAY)
        assert connection.is_closed()
        assert test.ended.acquire(timeout=10)
        eventually(lambda: served.stats()[:2] == (1, 0))


def test_connections_above_the_limit_take_the_place_of_idle_ones(path: Path) -> None:
    with asking(path, connections=5) as (asker, test, served), ExitStack() as stack:
        hanging = asker.talk(SINK, iter([b"x"]))
        assert test.hanging.acquire(timeout=10)
        others = [stack.enter_context(raw(path)) for _ in range(30)]
        assert others[0].is_closed(), "it was the first to come, and is idle"
        assert served.stats().connections <= 5
        other = Asker(path)
        assert other.ask(ECHO, b"there is a place") == b"there is a place"
        test.go_on.set()
        assert list(hanging) == [b"1"]
        other.channel.close()


def test_who_reads_no_answers_is_not_asked_for_more(path: Path) -> None:
    with asking(path) as (asker, _, served), raw(path) as connection:
        asker.ask(ECHO, b"warm")
        before = memory()
        stream = 1
        connection.socket.settimeout(0.5)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(20000):
                connection.socket.sendall(b"".join(request(stream + 2 * i, "/no/Method") for i in range(50)))
                stream += 100
        assert stream < 1000000
        assert memory() - before < 32 << 20
        assert asker.ask(ECHO, b"meanwhile") == b"meanwhile"
        connection.close()
        eventually(lambda: served.stats().connections == 1)


def test_a_hundred_readers_that_do_not_read(
    store: LocalStore, path: Path, count_descriptors: Callable[[], int]
) -> None:
    """Their bytes stay in the file."""
    with serving(store, path) as client:
        digest = client.put("a", os.urandom(16 * MAX_DATA))
        before, descriptors = memory(), count_descriptors()
        asked = messages.ReadContentRequest(digest=digest).SerializeToString()
        with raw(path) as connection:
            # With a window for all of it, and a socket that takes none of it.
            connection.send(frame(SETTINGS, 0, b"\0\4\x7f\xff\xff\xff"), frame(WINDOW_UPDATE, 0, b"\x7f\xff\0\0"))
            for stream in range(1, 201, 2):
                connection.send(request(stream, f"/{SERVICE}/Read"), frame(DATA, stream, message(asked), END_STREAM))
            time.sleep(0.5)
            assert memory() - before < 24 << 20  # most of it stacks of threads
            assert client.read(digest, 5, 100) == client.read(digest, 5, 100)
        eventually(lambda: count_descriptors() < descriptors + 50)
        assert isinstance(client, Client)


def test_descriptors_that_come_with_the_bytes_are_not_kept(path: Path, count_descriptors: Callable[[], int]) -> None:
    with asking(path) as (asker, _, _), raw(path, begun=False) as connection:
        asker.ask(ECHO, b"warm")
        before = count_descriptors()
        data = PREFACE + frame(SETTINGS) + request(1, ECHO) + frame(DATA, 1, message(b"x"), END_STREAM)
        for byte in data:
            socket.send_fds(connection.socket, [bytes([byte])], [0, 1, 2])
        assert connection.until(DATA, 1) == message(b"x")
        assert count_descriptors() == before
