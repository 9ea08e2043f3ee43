"""A slow link in front of a port of loopback, for machines whose kernel has no netem."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress

_PIECE = 16 << 10
_BUFFER = 256 << 10
"""Bytes that the kernel may hold for the link on each side: what waits there has not crossed. A few segments of
loopback, which are of 64 KiB: with less, sender and receiver wait for each other."""


class Link:
    """Passes connections on to `target`: each byte comes `delay` seconds later, and at most `rate` bytes a second go
    each way, all connections together (None: as fast as it goes). A connection is open a round trip after it was asked
    for. `moved` counts the bytes that came down to clients, heads of answers included.
    """

    def __init__(self, target: int, *, delay: float = 0.0, rate: float | None = None) -> None:
        self.moved = 0
        self._target = target
        self._delay = delay
        self._rate = rate
        self._lock = threading.Lock()
        self._free = {"up": 0.0, "down": 0.0}
        self._listener = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._listener.setsockopt(socket.SOL_SOCKET, option, _BUFFER)  # accepted sockets have it from here
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._join, args=(client, time.monotonic() + 2 * self._delay), daemon=True).start()

    def _join(self, client: socket.socket, ready: float) -> None:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        server.connect(("127.0.0.1", self._target))
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [self._way("up", client, server, ready), self._way("down", server, client, ready)]
        for thread in ways:
            thread.join()
        client.close()
        server.close()

    def _way(self, direction: str, source: socket.socket, sink: socket.socket, ready: float) -> threading.Thread:
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def enter() -> None:
            """Take bytes in as fast as the link takes them."""
            with suppress(OSError):
                while data := source.recv(_PIECE):
                    sent = self._slot(direction, len(data), ready)
                    if (pause := sent - time.monotonic()) > 0:
                        time.sleep(pause)
                    under_way.put((sent + self._delay, data))
            under_way.put((time.monotonic() + self._delay, b""))

        def leave() -> None:
            with suppress(OSError):
                while True:
                    due, data = under_way.get()
                    if (pause := due - time.monotonic()) > 0:
                        time.sleep(pause)
                    if not data:
                        break
                    if direction == "down":
                        with self._lock:  # before they go: who has read them finds them counted
                            self.moved += len(data)
                    sink.sendall(data)
            for sock in (source, sink):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=enter, daemon=True).start()
        thread = threading.Thread(target=leave, daemon=True)
        thread.start()
        return thread

    def _slot(self, direction: str, nbytes: int, ready: float) -> float:
        """When so many bytes have gone into the link."""
        with self._lock:
            begin = max(self._free[direction], time.monotonic(), ready)
            self._free[direction] = begin + (nbytes / self._rate if self._rate else 0.0)
            return self._free[direction]
