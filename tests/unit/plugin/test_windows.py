"""What a client's flow control windows may be like (RFC 9113 section 5.2), and what of them a failing disk costs."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from blobtee.content import LocalStore
from blobtee.wire.content import SERVICE, messages
from tests.unit.plugin.contentclient import serving
from tests.unit.plugin.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    WINDOW_UPDATE,
    Raw,
    frame,
    message,
    raw,
    request,
)

READ = f"/{SERVICE}/Read"
WINDOW = 65535
"""What a stream and a connection begin with."""


def ask(connection: Raw, stream: int, digest: str) -> None:
    asked = messages.ReadContentRequest(digest=digest).SerializeToString()
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
