"""What a client's flow control windows may be like (RFC 9113 section 5.2), and what of them a failing disk costs."""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.plugin.server import Listen, Server
from blobtee.wire.content import SERVICE, messages
from tests.unit.plugin.contentclient import serving
from tests.unit.plugin.http2 import (
    ACK,
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Raw,
    frame,
    message,
    raw,
    request,
)

READ = f"/{SERVICE}/Read"
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
WINDOW = 65535
"""What a stream and a connection begin with."""
PLENTY = (1 << 31) - 1


def ask(connection: Raw, stream: int, digest: str, size: int = 0) -> None:
    asked = messages.ReadContentRequest(digest=digest, size=size).SerializeToString()
    connection.send(request(stream, READ), frame(DATA, stream, message(asked), END_STREAM))


def grant(nbytes: int, *streams: int) -> bytes:
    return b"".join(frame(WINDOW_UPDATE, stream, struct.pack(">I", nbytes)) for stream in streams)


def read(connection: Raw, stream: int) -> tuple[int, bool]:
    """Bytes of DATA that came for the stream, each granted anew as it comes; and whether it ended as it should."""
    total = 0
    for kind, flags, at, payload in connection.frames():
        if kind == DATA and payload:
            total += len(payload) if at == stream else 0
            connection.send(grant(len(payload), 0, stream))
        elif at == stream and (kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM)):
            return total, kind == HEADERS
    raise ConnectionError(f"the server hung up after {total} bytes")


def put(store: LocalStore, name: str, nbytes: int) -> str:
    """A blob of zeros, which take no room."""
    with store.writer(name) as writer:
        for _ in range(nbytes >> 20):
            writer.write(bytes(1 << 20))
        return str(writer.commit().digest)


def test_who_says_often_that_it_has_read_is_no_flood(tmp_path: Path) -> None:
    nbytes = 320 << 20
    with LocalStore(tmp_path / "store") as store, serving(store, tmp_path / "socket"):
        digest = put(store, "long", nbytes)
        with raw(tmp_path / "socket") as connection:
            ask(connection, 1, digest)
            total, ended = read(connection, 1)
    assert ended
    assert total > nbytes


def make_roomy(nbytes: int) -> None:
    """Let the sockets that servers of this process have accepted take so much before anybody reads it."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as found, suppress(OSError):
                if found.family == socket.AF_UNIX and found.getsockname() and found.getpeername() is not None:
                    found.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, nbytes)


def answered_after(client: Raw, stream: int) -> int:
    """Bytes that came after the beginning of the answer to `stream` until a ping was answered."""
    client.until(DATA, stream)
    client.send(frame(PING, 0, b"anybody?"))
    answer, tail, came = frame(PING, 0, b"anybody?", ACK), b"", 0
    while answer not in tail:
        data = client.socket.recv(1 << 20)
        assert data
        came += len(data)
        tail = tail[-len(answer) :] + data
    return came


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have a socket with so much room")
def test_a_window_for_everything_keeps_nobody_from_being_heard(tmp_path: Path) -> None:
    """Of a client whose socket takes all of a remembered answer, as that of one that reads as fast as it comes."""
    with LocalStore(tmp_path / "store") as store:
        digest = put(store, "long", 192 << 20)
        with Server(store, [Listen("one", tmp_path / "socket")]) as server:
            remembered = server._remembered
            assert remembered is not None
            best = 1 << 30
            for _ in range(10):  # a test that is kept waiting between two lines says nothing
                with raw(tmp_path / "socket") as client:
                    client.send(frame(SETTINGS, 0, struct.pack(">HI", 4, PLENTY)), grant(PLENTY - WINDOW, 0))
                    ask(client, 1, digest, size=1)
                    client.end(1)
                    make_roomy(64 << 20)
                    before = remembered.counts(0)()["Read"].opened
                    ask(client, 3, digest)
                    came = answered_after(client, 3)
                    if remembered.counts(0)()["Read"].opened > before:
                        best = min(best, came)
                if best < 32 << 20:
                    break
            assert best < 32 << 20


def test_a_disk_that_fails_costs_the_connection_nothing(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "store") as store, serving(store, tmp_path / "socket"):
        bad, good = put(store, "bad", 2 << 20), put(store, "good", 3 << 20)
        path = tmp_path / "store" / "blobs" / "sha256" / bad.removeprefix("sha256:")
        with raw(tmp_path / "socket") as connection:
            for stream in (1, 3, 5):
                ask(connection, stream, bad)
                came = 0
                for kind, _, _, payload in connection.frames():
                    came += len(payload) if kind == DATA else 0
                    if came == WINDOW:
                        break
                os.chmod(path, 0o600)
                os.truncate(path, WINDOW)
                connection.send(grant(came, 0, stream))
                _, ended = read(connection, stream)
                assert not ended
                os.truncate(path, 2 << 20)
            ask(connection, 7, good)
            total, ended = read(connection, 7)
    assert ended
    assert total > 3 << 20
