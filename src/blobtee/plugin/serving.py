"""The threads that run the handlers of calls.

An RPC never waits for another: a thread that begins one while no other waits for calls starts another first. Threads
that have nothing to do wait in the C core, which reads the sockets; the one that reads a call runs its handler.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence

from blobtee.core import Answers, H2Call, H2Server, H2Stats
from blobtee.plugin.calls import Handler, Service
from blobtee.wire.content import MAX_DATA, MAX_MESSAGE, SERVICE

_logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
BUFFERED_NBYTES = 256 << 20
"""Bytes of messages that the server holds at once: 16 of the largest, and a quarter more for small ones."""

_FIRST_THREADS = 2
_KEPT_THREADS = 8
_IDLE_SECONDS = 10.0
_LAST_SECONDS = 10.0
_GOODBYE_SECONDS = 1.5


class Serving:
    """Serves services on sockets, from `start` to `stop`."""

    def __init__(
        self, *, buffered_nbytes: int = BUFFERED_NBYTES, connections: int = MAX_CONNECTIONS, **seconds: float
    ) -> None:
        """See `H2Server` for the limits."""
        self._server = H2Server(
            message_nbytes=MAX_MESSAGE, buffered_nbytes=buffered_nbytes, connections=connections, **seconds
        )
        self._listeners: list[tuple[socket.socket, int]] = []
        self._methods: dict[str, int] = {}
        self._handlers: list[list[Handler | None]] = []
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._stopped = False
        self._closed = False
        self._ended = False

    def add(self, listener: socket.socket, services: Sequence[Service], max_calls: int) -> None:
        """Serve `services` on a listening socket, which is closed by `stop`. Before `start`."""
        handlers: dict[int, Handler] = {}
        for service in services:
            for path, handler in service.handlers.items():
                if path not in self._methods:
                    self._methods[path] = self._server.method(path, is_light=path in service.light)
                handlers[self._methods[path]] = handler
        self._handlers.append([handlers.get(number) for number in range(len(self._methods))])
        self._listeners.append((listener, max_calls))

    def answer(self, answers: Answers) -> None:
        """Answer `Info` and `Read` of the content service from `answers`, where they are known, without a handler.
        After `add`, before `start`."""
        info, read = (self._methods[f"/{SERVICE}/{method}"] for method in ("Info", "Read"))
        self._server.answer(answers, info, read, MAX_DATA)

    def start(self) -> None:
        """`ResourceExhausted` and errors of the system; RuntimeError when no thread can be started."""
        for place, (listener, max_calls) in enumerate(self._listeners):
            self._server.listen(listener, place, max_calls)
        for _ in range(_FIRST_THREADS):
            self._start_thread()

    def drain(self) -> None:
        """Take no more connections, and tell clients to go elsewhere with new calls."""
        self._server.drain()
        for listener, _ in self._listeners:
            listener.close()

    def stop(self, grace: float) -> None:
        """Drain, wait up to `grace` seconds for the calls under way, end those that are left. Once is enough."""
        if self._stopped:
            return
        self._stopped = True
        self.drain()
        end = time.monotonic() + grace
        if self._server.wait_idle(grace):
            # Connections close as soon as their clients have heard of it.
            self._server.wait_idle(max(0.0, min(_GOODBYE_SECONDS, end - time.monotonic())), and_connections=True)
        self._server.stop()
        end = time.monotonic() + _LAST_SECONDS
        with self._lock:
            self._ended = True
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in threads) or not self._server.wait_idle(1.0, and_connections=True):
            _logger.warning("some calls did not end and are left behind")
            return
        with self._lock:
            self._closed = True
            self._server.close()

    def stats(self) -> H2Stats:
        """Nothing at all after `stop`."""
        with self._lock:  # it must not be freed meanwhile
            return H2Stats(0, 0, 0, 0) if self._closed else self._server.stats()

    def _run(self) -> None:
        try:
            self._server.serve(self._handle, self._another, idle_seconds=_IDLE_SECONDS, keep=_KEPT_THREADS)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _handle(self, call: H2Call) -> None:
        handlers = self._handlers[call.place]
        handler = handlers[call.method] if call.method < len(handlers) else None
        if handler is None:
            call.finish(12, "there is no such method on this socket")
        else:
            handler(call)

    def _another(self) -> bool:
        try:
            self._start_thread()
        except RuntimeError as error:
            _logger.warning("an RPC is refused: %s", error)
            return False
        return True

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="blobtee-rpc", daemon=True)
        with self._lock:  # `stop` waits for all that are known, which have all begun, and none comes later
            if self._ended:
                raise RuntimeError("the server has ended")
            self._server.expect(1)
            try:
                thread.start()
            except BaseException:
                self._server.expect(-1)
                raise
            self._threads.add(thread)
