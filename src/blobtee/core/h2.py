"""The gRPC server's sockets, connections and calls. Which thread runs what is `plugin.serving`'s."""

from __future__ import annotations

import base64
import binascii
import logging
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote_to_bytes

from blobtee.core.answers import Answers
from blobtee.core.native import BYTES, fail, ffi, lib, os_error
from blobtee.errors import Cancelled, Closed, DataLoss, Internal, ResourceExhausted, from_os_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_logger = logging.getLogger(__name__)

_PLAIN = "".join(chr(c) for c in range(0x20, 0x7F) if c != ord("%"))
"""What grpc-message says as it is; the rest of its UTF-8 is percent-encoded (gRPC over HTTP2, Status-Message)."""

_LONGEST_TEXT = 4 << 10
"""Bytes of grpc-message: a client ends a call whose headers are too large (gRPC's C core from 8 KiB on) as one of
`RESOURCE_EXHAUSTED`, and the code that was meant is lost."""

_OK = lib.BT_OK
_ENDED = lib.BT_H2_ENDED


class H2Stats(NamedTuple):
    """`buffered` is bytes of messages that are coming, wait, or are in hand; `refused` counts calls above a limit."""

    connections: int
    calls: int
    buffered: int
    refused: int


class H2Server:
    """Takes connections from listening sockets and gives their calls to the threads that `serve`. Thread-safe."""

    def __init__(
        self,
        *,
        message_nbytes: int,
        buffered_nbytes: int,
        connections: int,
        handshake_seconds: float = 20.0,
        stall_seconds: float = 15.0,
    ) -> None:
        """The limits are those of `bt_h2_limits` in blobtee.h. `ResourceExhausted`: no descriptors, or no memory."""
        limits = ffi.new("bt_h2_limits *")
        limits.message_nbytes = message_nbytes
        limits.buffered_nbytes = buffered_nbytes
        limits.connections = connections
        limits.handshake_ms = int(handshake_seconds * 1000)
        limits.stall_ms = int(stall_seconds * 1000)
        self._server = lib.bt_h2_new(limits)
        if self._server == ffi.NULL:
            raise ResourceExhausted("no descriptors or no memory for a server")
        self._answers: Answers | None = None
        self._callbacks: dict[int, Callable[[], object]] = {}

    def method(self, path: str, *, is_light: bool = False) -> int:
        """The number that calls of `path` ("/package.Service/Method") have. Before `listen`. Handlers that are light do
        little outside of the interpreter: many at once run on one processor (`bt_huddle` in blobtee.h)."""
        number: int = lib.bt_h2_method(self._server, path.encode(), is_light)
        if number < 0:
            fail(number, "H2Server.method")
        return number

    def answer(self, answers: Answers, info: int, read: int, piece_nbytes: int) -> None:
        """Answer calls of the methods `info` and `read` from `answers` where they are known, reads in messages of at
        most `piece_nbytes` of data. Before `listen`; see `bt_h2_answer`."""
        self._answers = answers
        lib.bt_h2_answer(self._server, answers._answers, info, read, piece_nbytes)

    def listen(self, listener: socket.socket, place: int, max_calls: int) -> None:
        """Take connections from `listener`, which stays the caller's and open until `drain`. Calls of it have `place`;
        more than `max_calls` at once are `RESOURCE_EXHAUSTED`."""
        listener.setblocking(False)
        _check(lib.bt_h2_listen(self._server, listener.fileno(), place, max_calls), "listen on a socket")

    def serve(
        self, handle: Callable[[H2Call], object], another: Callable[[], bool], *, idle_seconds: float, keep: int
    ) -> None:
        """Handle calls, one after another, until the server has stopped, or nothing has come for `idle_seconds` and
        more than `keep` threads wait. What `handle` raises is a defect: it is logged.

        When no other thread waits any more, or is expected, `another` has to bring one before this one may run a
        handler. If it says that it cannot, the call ends with `RESOURCE_EXHAUSTED`.
        """
        server, event, timeout = self._server, ffi.new("bt_h2_event *"), int(idle_seconds * 1000)
        take_next = lib.bt_h2_next
        while take_next(server, timeout, keep, event) == _OK:
            if event.kind == _ENDED:
                self._tell(event.call)
                continue
            call = H2Call(self, event.call, event.place, event.method)
            try:
                if event.waiting or another():
                    handle(call)
                else:
                    call.finish(8, "no more threads can be started")
            except BaseException:
                _logger.exception("a defect of blobtee in a call")
            finally:
                call.close()

    def expect(self, threads: int) -> None:
        """So many more threads, or fewer, are on their way to `serve`."""
        lib.bt_h2_expect(self._server, threads)

    def drain(self) -> None:
        """Take no more connections, and tell clients to go elsewhere with new calls."""
        lib.bt_h2_drain(self._server)

    def wait_idle(self, seconds: float, *, and_connections: bool = False) -> bool:
        """Whether no call is left, and no connection if that is asked, within `seconds`."""
        result: int = lib.bt_h2_wait_idle(self._server, int(seconds * 1000), and_connections)
        return bool(result == _OK)

    def stop(self) -> None:
        """Drain, end every call with `UNAVAILABLE` and close all connections. `serve` returns when handlers have."""
        lib.bt_h2_stop(self._server)

    def stats(self) -> H2Stats:
        stats = ffi.new("bt_h2_stats *")
        lib.bt_h2_stat(self._server, stats)
        return H2Stats(stats.connections, stats.calls, stats.buffered_nbytes, stats.refused)

    def close(self) -> None:
        """Free it. No thread may be in it, and it must have been stopped."""
        server, self._server = self._server, ffi.NULL
        lib.bt_h2_free(server)

    def _tell(self, call: Any) -> None:
        callback = self._callbacks.pop(int(ffi.cast("uintptr_t", call)), None)
        try:
            if callback is not None:
                callback()
        except Exception:
            _logger.exception("a callback of a call's end failed")
        finally:
            lib.bt_h2_told(call)


class H2Call:
    """One call, for the thread that handles it. What is done once its client has gone raises `Cancelled`, and after
    `finish` or `close`, `Closed`."""

    __slots__ = ("_call", "_message", "_nbytes", "_server", "_watched", "method", "place")

    def __init__(self, server: H2Server, call: Any, place: int, method: int) -> None:
        self._server = server
        self._call = call
        self._watched = False
        self._message, self._nbytes = ffi.new("const uint8_t **"), ffi.new("size_t *")
        self.place = place
        self.method = method

    @property
    def active(self) -> bool:
        """Whether somebody still waits for the answer: the client has not cancelled, nor its deadline passed."""
        return self._call != ffi.NULL and bool(lib.bt_h2_is_active(self._call))

    def on_end(self, callback: Callable[[], object]) -> bool:
        """Have `callback` called, once and in another thread, when the call ends before its answer. It must be quick.
        False when it has ended already."""
        call = self._call or _over()
        self._server._callbacks[int(ffi.cast("uintptr_t", call))] = callback
        self._watched = True
        return bool(lib.bt_h2_watch(call) == _OK)

    def metadata(self) -> list[tuple[str, str | bytes]]:
        """What the client sent with the call, names in lower case. Values of names in `-bin` are bytes; one that is no
        base64 is left out."""
        pointer = ffi.new("const char **")
        nbytes = lib.bt_h2_metadata(self._call or _over(), pointer)
        data, at = bytes(ffi.buffer(pointer[0], nbytes)) if nbytes else b"", 0
        found: list[tuple[str, str | bytes]] = []
        while at < len(data):
            middle = at + 4 + int.from_bytes(data[at : at + 2], "big")
            end = middle + int.from_bytes(data[at + 2 : at + 4], "big")
            name, value = data[at + 4 : middle].decode("latin-1"), data[middle:end]
            at = end
            if not name.endswith("-bin"):
                found.append((name, value.decode("latin-1")))
                continue
            for part in value.split(b","):
                text = part.strip()
                try:
                    found.append((name, base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)))
                except binascii.Error:
                    continue
        return found

    def take(self) -> bytes | None:
        """The next message; None when the client has sent all. Waits."""
        return self._taken(lib.bt_h2_take(self._call or _over(), self._message, self._nbytes))

    def exchange(self, message: bytes) -> bytes | None:
        """`send` a message that is not the last, and `take` the next. What goes into the core once comes out of it
        once: each return has to wait for the interpreter."""
        call = self._call or _over()
        return self._taken(lib.bt_h2_exchange(call, message, len(message), self._message, self._nbytes))

    def _taken(self, result: int) -> bytes | None:
        if result == _OK:
            return bytes(ffi.buffer(self._message[0], self._nbytes[0])[:])
        if result == lib.BT_END:
            return None
        _check(result, "send a message")
        raise _gone()

    def send(self, message: ReadableBuffer, *, last: bool = False) -> None:
        """Send a message, and the status OK behind it if it is the last. Waits until the client has room for it."""
        with ffi.from_buffer(BYTES, message) as view:
            result = lib.bt_h2_send(self._call or _over(), view, len(view), last)
        if result != _OK:
            _check(result, "send a message")

    def send_file(self, head: bytes, fd: int, offset: int, nbytes: int, *, last: bool = False) -> None:
        """Send a message of `head` and `nbytes` of the file from `offset` on; they do not come through Python.

        `DataLoss` when the file ends before, errors of the file system; the call is gone then, and the client has not
        got the message.
        """
        result = lib.bt_h2_send_file(self._call or _over(), head, len(head), fd, offset, nbytes, last)
        if result == lib.BT_TRUNCATED:
            raise DataLoss(f"a file ends before byte {offset + nbytes}")
        if result != _OK:
            _check(result, "read a file")

    def finish(self, code: int, text: str = "") -> None:
        """End the call with gRPC's status `code` and as much of `text` as a header has room for, and `close` it."""
        encoded = _percent_encoded(text) if text else ffi.NULL
        if (call := self._given_back()) != ffi.NULL:
            lib.bt_h2_end(call, code, encoded)

    def close(self) -> None:
        """The handler is through with it. A second call does nothing."""
        if (call := self._given_back()) != ffi.NULL:
            lib.bt_h2_release(call)

    def _given_back(self) -> Any:
        if self._watched:
            self._server._callbacks.pop(int(ffi.cast("uintptr_t", self._call)), None)
        call, self._call = self._call, ffi.NULL  # which the core must not get
        return call


def _percent_encoded(text: str) -> bytes:
    encoded = quote(text, safe=_PLAIN, errors="replace")
    if len(encoded) > _LONGEST_TEXT:
        # Neither half an escape at the end, nor half a character.
        cut = re.sub(r"%[0-9A-F]?\Z", "", encoded[:_LONGEST_TEXT])
        encoded = quote(unquote_to_bytes(cut).decode("utf-8", "ignore"), safe=_PLAIN)
    return encoded.encode("ascii")


def _check(result: int, doing: str) -> None:
    if result == lib.BT_GONE:
        raise _gone()
    if result <= lib.BT_ERRNO:
        raise from_os_error(os_error(result), doing)
    if result != _OK:
        raise Internal(f"cannot {doing}: {ffi.string(lib.bt_strerror(result)).decode()}")


def _over() -> NoReturn:
    raise Closed("the call is over")


def _gone() -> Cancelled:
    return Cancelled("the client has gone")
