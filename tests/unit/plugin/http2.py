"""HTTP/2 by hand (RFC 9113), for clients that no library would be: a frame at a time, right or wrong."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header that no table keeps (RFC 7541 section 6.2.2), not Huffman-coded."""
    return b"\0" + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, coded = len(text) - 127, bytearray([127])
    while rest > 127:
        coded.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*coded, rest]) + text


def block(path: str, *more: tuple[bytes, bytes], method: bytes = b"POST", kind: bytes = b"application/grpc") -> bytes:
    """The headers of a gRPC request."""
    headers = [(b":method", method), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost")]
    headers += [(b"content-type", kind), (b"te", b"trailers"), *more]
    return b"".join(literal(name, value) for name, value in headers)


def request(stream: int, path: str, *more: tuple[bytes, bytes], flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, stream, block(path, *more), flags)


def message(data: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(data)) + data


class Raw:
    """One connection. What the server sends is read frame by frame, and its settings and pings are left unanswered."""

    def __init__(self, path: Path, begun: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        if begun:
            # Without a table for its headers the server spells out each of them.
            self.send(PREFACE, frame(SETTINGS, 0, bytes([0, 1, 0, 0, 0, 0])))

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame, until the server closes the connection."""
        while len(head := self._read(9)) == 9:
            nbytes, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], head[5:]
            yield kind, flags, int.from_bytes(stream, "big"), self._read(nbytes)

    def until(self, kind: int, stream: int = 0, flags: int = 0) -> bytes:
        """The payload of the next such frame; what comes before is dropped."""
        for found, set_, at, payload in self.frames():
            if found == kind and at == stream and set_ & flags == flags:
                return payload
        raise ConnectionError("the server has closed the connection")

    def end(self, stream: int) -> bytes:
        """The trailers of the stream, as they are coded."""
        return self.until(HEADERS, stream, END_STREAM)

    def is_closed(self) -> bool:
        """Whether the server closes the connection within 20 seconds."""
        try:
            for _ in self.frames():
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()

    def _read(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            piece = self.socket.recv(nbytes - len(data))
            if not piece:
                break
            data += piece
        return data


@contextmanager
def raw(path: Path, begun: bool = True) -> Iterator[Raw]:
    connection = Raw(path, begun)
    try:
        yield connection
    finally:
        connection.close()
