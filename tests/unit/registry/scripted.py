"""An HTTP server that says exactly what a test wants said, proper HTTP or not."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request as it came. Header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @property
    def range(self) -> tuple[int, int] | None:
        """Half-open, None without one."""
        value = self.headers.get("range")
        if value is None:
            return None
        start, _, last = value.removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1


class Broken(Exception):
    """Raised by a script: the connection is to be dropped."""


class Wire:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, stopped: threading.Event) -> None:
        self.sock = sock
        self.stopped = stopped

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """A proper answer; a Content-Length is added unless `headers` have a framing of their own."""
        fields = dict(headers or {})
        names = {name.lower() for name in fields}
        if not names & {"content-length", "transfer-encoding"}:
            fields["Content-Length"] = str(len(body))
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields.items())]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def drop(self) -> None:
        """End the connection with what was sent; the script must return after this."""
        raise Broken

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Broken

    def silence(self) -> None:
        """Say nothing until the server is stopped or the client goes away."""
        self.sock.settimeout(0.05)
        while not self.stopped.is_set():
            try:
                if not self.sock.recv(65536):
                    break
            except TimeoutError:
                continue
        raise Broken


Script = Callable[[Asked, Wire], None]


class Server:
    """Runs `script` for each request, each connection in a thread. A failing script fails the test at the end."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.script = script
        self.requests: list[Asked] = []
        self.connections = 0
        self._tls = tls
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._failure: BaseException | None = None
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def asked(self, method: str = "", part: str = "") -> list[Asked]:
        """The requests so far, of one method, with `part` in their target."""
        with self._lock:
            return [r for r in self.requests if (not method or r.method == method) and part in r.target]

    def close(self) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._accepting.join()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._sockets.add(sock)
                thread = threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        raw = sock
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._sockets.discard(raw)
                    self._sockets.add(sock)
            with sock, sock.makefile("rb") as incoming:
                wire = Wire(sock, self._stopped)
                while (asked := self._read(incoming, number)) is not None:
                    with self._lock:
                        self.requests.append(asked)
                    self.script(asked, wire)
        except (OSError, Broken):
            pass
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    @staticmethod
    def _read(incoming: io.BufferedReader, number: int) -> Asked | None:
        if incoming.peek(1)[:1] == b"\x16":
            return None  # a TLS greeting, refused as real servers do: it need not hold the end of a line
        line = incoming.readline().decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while (field := incoming.readline().decode("latin-1").strip()) != "":
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        body = incoming.read(length)
        if len(body) < length:
            return None
        return Asked(line[0], line[1], headers, body, number)


def blob_script(data: bytes, **extra: str) -> Script:
    """A well-behaved blob: ranges, lengths."""

    def script(asked: Asked, wire: Wire) -> None:
        part = asked.range
        if part is None:
            wire.answer(200, extra, data if asked.method == "GET" else b"")
            return
        start, end = part
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}", **extra}
        wire.answer(206, headers, data[start:end])

    return script
