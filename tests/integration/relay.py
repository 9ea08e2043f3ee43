"""A relay between a client and a server: it counts what really crossed the wire, and breaks connections off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Direction = Literal["up", "down"]


class Relay:
    """Passes connections on to a port of loopback. `moved` counts bytes: up to the server, down to clients.

    Numbers put into `cuts` break connections off: the first that would pass the first number of bytes in that
    direction, then the first that would pass the second, and so on. `then` is called once, when `at` bytes went down,
    in the thread that passes them on.
    """

    def __init__(self, target: int, at: int = 0, then: Callable[[], object] | None = None) -> None:
        self.moved: dict[Direction, int] = {"up": 0, "down": 0}
        self.cuts: dict[Direction, list[int]] = {"up": [], "down": []}
        self._target = target
        self._at = at
        self._then = then
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=30)
            except OSError:
                client.shutdown(socket.SHUT_RDWR)
                continue
            self._sockets.append(server)
            ways: tuple[tuple[Direction, socket.socket, socket.socket], ...] = (
                ("up", client, server),
                ("down", server, client),
            )
            for way in ways:
                thread = threading.Thread(target=self._pass_on, args=way)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(64 << 10):
                if self._breaks(direction, passed + len(data)):
                    break
                sink.sendall(data)
                passed += len(data)
                self._count(direction, len(data))
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        # A sender that waits for room in our buffer would not hear of it: once that is empty, it is refused.
        with suppress(OSError):
            while source.recv(64 << 10):
                pass

    def _breaks(self, direction: Direction, passed: int) -> bool:
        with self._lock:
            places = self.cuts[direction]
            if not places or passed < places[0]:
                return False
            places.pop(0)
            return True

    def _count(self, direction: Direction, nbytes: int) -> None:
        with self._lock:
            self.moved[direction] += nbytes
            due = self._then is not None and self.moved["down"] >= self._at
            then, self._then = (self._then, None) if due else (None, self._then)
        if then is not None:
            then()
