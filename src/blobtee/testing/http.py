"""A small HTTP/1.1 server for tests: a thread for each connection, bodies of any size, faults on demand.

The standard library's server is not used because it hides what tests must control: when a connection is cut, how
many bytes really went out, and which connections are open.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

from blobtee.testing.bodies import Body, Bytes

_MAX_LINE = 64 << 10
_MAX_HEADERS = 200
_TLS_GREETING = b"\x16"


class Headers(dict[str, str]):
    """Header fields by lower-case name; a repeated field keeps its last value."""

    def __init__(self, fields: Mapping[str, str] | None = None) -> None:
        super().__init__({name.lower(): value for name, value in (fields or {}).items()})


@dataclass
class Request:
    """What a client asked. `path` and `query` are decoded; `body` must be read by who answers.

    `kind`, `repository` and `identifier` are filled in by the registry: see `MemoryRegistry`.
    """

    method: str
    target: str
    headers: Headers
    body: io.BufferedReader = field(repr=False)
    connection: int = 0
    kind: str = "other"
    repository: str = ""
    identifier: str = ""

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(self.query_pairs)

    @property
    def query_pairs(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)


@dataclass
class Response:
    """What goes back: the bytes [start, stop) of `body`. Content-Length is theirs unless `headers` says otherwise."""

    status: int
    headers: Headers = field(default_factory=Headers)
    body: Body = field(default_factory=lambda: Bytes(b""))
    start: int = 0
    stop: int | None = None
    cut: int | None = None
    stall: bool = False

    @property
    def length(self) -> int:
        return (self.body.size if self.stop is None else self.stop) - self.start


Handler = Callable[[Request], Response]
Observer = Callable[[Request, int, int], Callable[[int], object]]
"""Called before an answer goes out, with its status and the body bytes received; takes what is sent of its body.
Status 0: the connection broke before there was an answer."""


class _Incoming(io.RawIOBase):
    """A request's body: `Content-Length` or chunked. `nbytes` counts what was read of it."""

    def __init__(self, stream: io.BufferedReader, headers: Headers, proceed: Callable[[], None]) -> None:
        super().__init__()
        self._stream = stream
        self._chunked = "chunked" in headers.get("transfer-encoding", "")
        self._left = 0 if self._chunked else int(headers.get("content-length") or 0)
        self._ended = not self._chunked and not self._left
        self._proceed: Callable[[], None] | None = proceed if headers.get("expect") == "100-continue" else None
        self.nbytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._proceed is not None:
            self._proceed()
            self._proceed = None
        if not self._left and not self._ended:
            self._next_chunk()
        if self._ended:
            return 0
        data = self._stream.read1(min(len(buffer), self._left))
        if not data:
            raise ConnectionResetError("the client stopped in the middle of its body")
        buffer[: len(data)] = data
        self._left -= len(data)
        self._ended = not self._chunked and not self._left
        self.nbytes += len(data)
        if self._chunked and not self._left:
            self._stream.readline(_MAX_LINE)
        return len(data)

    def _next_chunk(self) -> None:
        self._left = int(self._stream.readline(_MAX_LINE).split(b";")[0], 16)
        if not self._left:
            self._ended = True
            while self._stream.readline(_MAX_LINE).strip():
                pass


class CutShort(io.RawIOBase):
    """The first `nbytes` of a request's body; then the connection breaks."""

    def __init__(self, body: io.BufferedReader, nbytes: int) -> None:
        super().__init__()
        self._body = body
        self._left = nbytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._body.read1(min(len(buffer), self._left))
        if not data:
            raise ConnectionAbortedError("hung up by a fault")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


class Server:
    """Serves `handler` on loopback from `start()` to `stop()`; may be started again, on the same port."""

    def __init__(
        self, handler: Handler, observer: Observer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._handler = handler
        self._observer = observer
        self._tls = tls
        self._host = host
        self.port = 0
        self.opened = 0
        """Connections accepted so far."""
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._acceptor: threading.Thread | None = None

    @property
    def open(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._connections)

    def start(self) -> None:
        listener = socket.create_server((self._host, self.port), backlog=256)
        self.port = listener.getsockname()[1]
        self.stopping = threading.Event()
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name="test-registry", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Refuse new connections, break the open ones off, and wait for their threads. Twice is once."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self.stopping.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        if self._acceptor is not None:
            self._acceptor.join()
        listener.close()
        while True:
            with self._lock:
                if not self._connections:
                    return
                connection, thread = next(iter(self._connections.items()))
                _shut(connection)
            thread.join()

    def break_connections(self) -> None:
        """Break all open connections off, as a restarted proxy would; the server goes on."""
        with self._lock:
            for connection in self._connections:
                _shut(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.opened += 1
                number = self.opened
                thread = threading.Thread(
                    target=self._serve, args=(connection, number), name=f"test-registry-{number}", daemon=True
                )
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        link = connection
        try:
            if self._tls is not None:
                # The wrapped socket owns the descriptor; the plain one stays the key under which `stop` finds it.
                link = self._tls.wrap_socket(connection.dup(), server_side=True)
            with link.makefile("rb") as stream:
                while not self.stopping.is_set() and self._one(link, stream, number):
                    pass
        except (OSError, ValueError):
            pass  # The client went away, or does not speak HTTP: its business.
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            _shut(connection)
            connection.close()
            if link is not connection:
                link.close()

    def _one(self, link: socket.socket, stream: io.BufferedReader, number: int) -> bool:
        """Serve one request; whether another may follow on this connection."""
        if stream.peek(1)[:1] == _TLS_GREETING:
            return False  # as real servers do: it need not hold the end of a line, and its client waits for an answer
        line = stream.readline(_MAX_LINE)
        if not line.strip():
            return False
        method, target, _ = line.decode("latin-1").split(None, 2)
        headers = Headers(dict(_fields(stream)))
        incoming = _Incoming(stream, headers, lambda: link.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"))
        request = Request(method, target, headers, io.BufferedReader(incoming, 1 << 20), number)
        try:
            response = self._handler(request)
        except OSError:
            self._observer(request, 0, incoming.nbytes)
            raise
        keep = headers.get("connection", "").lower() != "close"
        # What a refused request still sends is read away, so that the connection can go on.
        while keep and request.body.read(1 << 20):
            pass
        count = self._observer(request, response.status, incoming.nbytes)
        link.sendall(_head(response, keep))
        if method != "HEAD":
            stop = response.start + response.length
            if response.cut is not None:
                stop = min(stop, response.start + response.cut)
            response.body.send(link, response.start, stop, count)
        if response.stall:
            self.stopping.wait()
        return keep and response.cut is None and not response.stall


def _fields(stream: io.BufferedReader) -> Iterator[tuple[str, str]]:
    for _ in range(_MAX_HEADERS):
        line = stream.readline(_MAX_LINE).decode("latin-1").strip()
        if not line:
            return
        name, _, value = line.partition(":")
        yield name, value.strip()
    raise ValueError("too many header fields")


def _head(response: Response, keep: bool) -> bytes:
    fields = Headers(response.headers)
    if response.status not in (204, 304):
        fields.setdefault("content-length", str(response.length))
    fields.setdefault("connection", "keep-alive" if keep else "close")
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {response.status} {phrase}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
