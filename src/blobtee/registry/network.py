"""Sockets under the HTTP library: cancellable, quick with large bodies, and open to being read directly.

The HTTP library asks for 64 KiB at a time. Reading 1 MiB instead (64 KiB under TLS, where a record has 16 KiB at most)
and handing the rest of a large body straight from the socket to the caller is what makes downloads run at wire speed
(`performance.md`, paragraph httpx).
"""

from __future__ import annotations

import contextvars
import errno
import ipaddress
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import httpcore

from blobtee import tasks

T = TypeVar("T")

_PLAIN_READ = 1 << 20
_TLS_READ = 64 << 10
_TICK = 0.05
SLOWEST = 1 << 10
"""Bytes a second below which a body, down or up, counts as standing still."""

_answer_time: contextvars.ContextVar[float | None] = contextvars.ContextVar("blobtee_answer_time", default=None)


@contextmanager
def awaiting_answer(seconds: float) -> Iterator[None]:
    """While the block runs, reads must have what they want `seconds` after the last write, all of them together."""
    token = _answer_time.set(seconds)
    try:
        yield
    finally:
        _answer_time.reset(token)


class Stream(httpcore.NetworkStream):
    """One connection. For one thread at a time, except that a cancellation may shut it from another."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._read_size = _TLS_READ if isinstance(sock, ssl.SSLSocket) else _PLAIN_READ
        self._asked = time.monotonic()
        self._retired = False
        self._lock = threading.Lock()
        self._busy = False
        self._closed = False
        self.tail = b""
        """The last bytes, four at most, that `read` gave since the last write."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # More than `max_bytes` is welcome: the parser above takes whatever it is given.
        def receive() -> bytes:
            return self._sock.recv(self._read_size)

        data = self._io(receive, self._read_timeout(timeout), httpcore.ReadTimeout, httpcore.ReadError)
        self.tail = data[-4:] if len(data) >= 4 else (self.tail + data)[-4:]
        return data

    def fill(self, view: memoryview, timeout: float) -> int:
        """Read into `view` until it is full, the connection ends, or `timeout` seconds are over and something came.

        An error after the first piece is kept for the next call, which meets it again.
        """
        got = 0
        end = time.monotonic() + timeout

        def receive() -> int:
            nonlocal got
            while got < len(view) and (n := self._sock.recv_into(view[got:])):
                got += n
                if time.monotonic() >= end:
                    break
            return got

        # One registration for the whole of it: under TLS a piece has 16 KiB at most.
        try:
            return self._io(receive, timeout, httpcore.ReadTimeout, httpcore.ReadError)
        except (httpcore.ReadTimeout, httpcore.ReadError):
            if got:
                return got
            raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        since, moved = time.monotonic(), 0
        while view:

            def send(piece: memoryview = view) -> int:
                return self._sock.send(piece)

            n = self._io(send, timeout, httpcore.WriteTimeout, httpcore.WriteError)
            view = view[n:]
            moved += n
            now = time.monotonic()
            if timeout is not None and now - since >= timeout:
                if view and moved < timeout * SLOWEST:
                    raise httpcore.WriteTimeout("timed out")  # Who takes a byte now and then stands still too.
                since, moved = now, 0
        self._asked = time.monotonic()
        self.tail = b""

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Stream:
        if isinstance(self._sock, ssl.SSLSocket):
            self.close()
            raise httpcore.UnsupportedProtocol("a proxy that is itself spoken to over TLS cannot tunnel TLS here")
        try:
            secure = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname, do_handshake_on_connect=False)
            stream = Stream(secure)
            try:
                stream._io(secure.do_handshake, timeout, httpcore.ConnectTimeout, httpcore.ConnectError)
            except BaseException:
                stream.close()
                raise
        except BaseException:
            self.close()
            raise
        return stream

    def close(self) -> None:
        """Close; a thread that waits in the connection wakes up and fails, and closes it then.

        Closing under its hands would leave it waiting, and might hand it the next file of the same number.
        """
        with self._lock:
            self._closed = True
            busy = self._busy
        if busy:
            self._interrupt()
        else:
            self._sock.close()

    def retire(self) -> None:
        """Keep this connection from being used for another request: there may be left-overs in it."""
        self._retired = True

    def get_extra_info(self, info: str) -> Any:
        if info == "socket":
            return self._sock
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        if info == "is_readable":
            return self._retired or _readable(self._sock)
        return None

    def _read_timeout(self, timeout: float | None) -> float | None:
        answer = _answer_time.get()
        return timeout if answer is None else self._asked + answer - time.monotonic()

    def _io(
        self,
        call: Callable[[], T],
        timeout: float | None,
        timed_out: type[Exception],
        failed: type[Exception],
    ) -> T:
        """Run one blocking call so that a cancellation ends it; errors become those of the HTTP library."""
        cancellation = tasks.current()
        if timeout is not None and timeout <= 0:
            raise timed_out("timed out")
        with self._lock:
            if self._closed:
                raise failed("closed")
            self._busy = True
        forget = cancellation.on_cancel(self._interrupt)
        try:
            self._sock.settimeout(timeout)
            result = call()
        except TimeoutError as error:
            cancellation.check()
            raise timed_out("timed out") from error
        except OSError as error:
            cancellation.check()
            raise failed(_reason(error)) from error
        finally:
            forget()
            self._rest()
        cancellation.check()  # A socket that was shut reads as ended.
        return result

    def _rest(self) -> None:
        with self._lock:
            self._busy = False
            if self._closed:
                self._sock.close()

    def _interrupt(self) -> None:
        # Not SSLSocket.shutdown, which takes the TLS state from under the thread that uses it.
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)


class Backend(httpcore.NetworkBackend):
    """Opens connections. Every wait in it ends soon after the running work is cancelled."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Stream:
        deadline = time.monotonic() + (timeout if timeout is not None else 60.0)
        addresses = _look_up(host, port, deadline)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for position, (family, address) in enumerate(addresses):
            # One dead address must not use up the time of the others.
            share = (deadline - time.monotonic()) / (len(addresses) - position)
            try:
                sock = _connect(family, address, time.monotonic() + share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Stream(sock)
        raise failure

    def sleep(self, seconds: float) -> None:
        tasks.sleep(seconds)


_Address = tuple[socket.AddressFamily, Any]


def _look_up(host: str, port: int, deadline: float) -> list[_Address]:
    """Addresses of `host`. The system's look-up cannot be interrupted: its thread may be left behind."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.version == 4:
            return [(socket.AF_INET, (host, port))]
        return [(socket.AF_INET6, (host, port, 0, 0))]
    answers: queue.SimpleQueue[list[_Address] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([(family, address) for family, _, _, _, address in found])
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="blobtee-lookup", daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=_TICK)
        except queue.Empty:
            tasks.check()
            if time.monotonic() >= deadline:
                raise httpcore.ConnectTimeout(f"looking up {host} took too long") from None
            continue
        if isinstance(answer, Exception):
            reason = _reason(answer) if isinstance(answer, OSError) else "not a host name"
            raise httpcore.ConnectError(f"looking up {host}: {reason}") from answer
        return answer


def _connect(family: socket.AddressFamily, address: Any, deadline: float) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(_reason(error)) from error
    try:
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code in (errno.EINPROGRESS, errno.EALREADY, errno.EINTR):
            code = _wait_connected(sock, deadline)
        if code:
            raise httpcore.ConnectError(_reason(OSError(code, "")))
    except OSError as error:
        sock.close()
        raise httpcore.ConnectError(_reason(error)) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _wait_connected(sock: socket.socket, deadline: float) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while not poll.poll(_TICK * 1000):
        tasks.check()
        if time.monotonic() >= deadline:
            raise httpcore.ConnectTimeout("timed out")
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _readable(sock: socket.socket) -> bool:
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _reason(error: OSError) -> str:
    """What happened, in the system's words but without Python's decoration."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return error.strerror or "name not known"
    if error.errno is None:
        return str(error) or type(error).__name__
    return os.strerror(error.errno).lower()
