"""Hands the connections of a socket that systemd holds on to the server's own.

grpcio opens its listening sockets itself and takes none that is open. So who connects to systemd's is passed on, byte
by byte: each connection costs two threads and a copy in each direction. Without socket activation nobody pays for that.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from contextlib import suppress
from pathlib import Path

_logger = logging.getLogger(__name__)
_PIECE = 256 << 10


class Bridge:
    """Accepts on `listener`, which it owns, and connects each to the socket at `target`."""

    def __init__(self, listener: socket.socket, target: Path) -> None:
        self._listener = listener
        self._target = target
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="blobtee-accept", daemon=True)

    def start(self) -> None:
        self._listener.setblocking(False)
        self._thread.start()

    def stop(self) -> None:
        """Accept no more: who connects from now on waits at systemd's socket for the next server. Connections that are
        open go on until either side ends them."""
        os.close(self._waker)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._wake)
        self._listener.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._wake], [], [])
            if self._wake in ready:
                return
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    _logger.error("cannot accept a connection: %s", error)
                    select.select([self._wake], [], [], 1)  # out of descriptors, most likely
                continue
            self._join(client)

    def _join(self, client: socket.socket) -> None:
        client.setblocking(True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.connect(str(self._target))
            pair = _Pair(client, server)
            threading.Thread(target=pair.pass_on, args=(client, server), daemon=True).start()
            threading.Thread(target=pair.pass_on, args=(server, client), daemon=True).start()
        except (OSError, RuntimeError) as error:
            _logger.error("a connection is refused: %s", error)
            client.close()
            server.close()


class _Pair:
    """Two connections that are passed on to each other; closed when both directions have ended."""

    def __init__(self, *ends: socket.socket) -> None:
        self._ends = ends
        self._lock = threading.Lock()
        self._open = 2

    def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = bytearray(_PIECE)
        with suppress(OSError), memoryview(buffer) as view:
            while n := source.recv_into(view):
                sink.sendall(view[:n])
        for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with suppress(OSError):
                end.shutdown(how)
        with self._lock:
            self._open -= 1
            last = not self._open
        if last:
            for end in self._ends:
                end.close()
