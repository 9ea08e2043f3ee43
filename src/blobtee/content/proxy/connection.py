"""Calls of a service on a socket: bounded in time, ended by a cancellation, failing in errors of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from blobtee import tasks
from blobtee.errors import BlobteeError, Closed, ConnectionFailed, DeadlineExceeded, ProtocolViolation
from blobtee.wire.content import MAX_MESSAGE
from blobtee.wire.status import error_of

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # A server that comes back is found at once, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Two stores with one address are two connections: closing one is nothing to the other.
    ("grpc.use_local_subchannel_pool", 1),
]

_UNHURRIED = [
    *_OPTIONS,
    # What has not been asked for stays with the server, but for the first window: gRPC would widen it for all calls of
    # a connection once one of them has moved much.
    ("grpc.http2.bdp_probe", 0),
]

_MOST_MS = 2**31 - 1


@dataclass(frozen=True)
class Methods:
    """The methods of a service and the messages they answer with: one, many, or one for each request."""

    service: str
    unary: Mapping[str, Any]
    streamed: Mapping[str, Any] = field(default_factory=dict)
    duplex: Mapping[str, Any] = field(default_factory=dict)


class Connection:
    """One service of one server. Thread-safe. `timeout` is how many seconds it may leave a question unanswered."""

    def __init__(
        self, address: Path, methods: Methods, timeout: float, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._metadata = tuple((metadata or {}).items())
        # By this name gRPC has how long a server may take to say hello, which on a busy machine is not at once.
        hello = ("grpc.min_reconnect_backoff_ms", min(int(timeout * 1000) + 1, _MOST_MS))
        self._channel = channel = grpc.insecure_channel(f"unix:{address}", options=[*_OPTIONS, hello])
        self._patience = _Patience()
        self._closed = False
        self._unary = _opened(channel.unary_unary, methods.service, methods.unary)
        self._streamed = _opened(channel.unary_stream, methods.service, methods.streamed)
        self._duplex = _opened(channel.stream_stream, methods.service, methods.duplex)
        self._unhurried_channel = grpc.insecure_channel(f"unix:{address}", options=[*_UNHURRIED, hello])
        self._unhurried = _opened(self._unhurried_channel.unary_stream, methods.service, methods.streamed)

    def ask(self, method: str, request: Any, doing: str) -> Any:
        """The answer to one request. `doing` completes the sentence "cannot …"."""
        self.check_open()
        with self._beginning():
            call = self._unary[method].future(request, timeout=self.timeout, metadata=self._metadata)
        with self.failing(call, doing), _cancelled_with_the_task(call):
            return call.result()

    def stream(self, method: str, request: Any, *, unhurried: bool = False) -> Any:
        """The running call of a method that answers with many messages: take them by `next`, then cancel it. Of an
        `unhurried` one no more than 64 KiB are on their way before they are asked for."""
        self.check_open()
        with self._beginning():
            return (self._unhurried if unhurried else self._streamed)[method](request, metadata=self._metadata)

    def converse(self, method: str, requests: Iterator[Any]) -> Any:
        """The running call of a method that answers each of `requests`."""
        self.check_open()
        with self._beginning():
            return self._duplex[method](requests, metadata=self._metadata)

    def next(self, call: Any, doing: str) -> Any | None:
        """The next message of a running call; None when the server has ended it, with success."""
        with self._waiting(call, doing):
            return next(call, None)

    def begun(self, call: Any, doing: str) -> None:
        """Return when the server has begun to answer; raise when it refused."""
        with self._waiting(call, doing):
            call.initial_metadata()
            if call.done() and call.code() is not grpc.StatusCode.OK:
                raise call

    @contextmanager
    def failing(self, call: Any, doing: str) -> Iterator[None]:
        """Turn what gRPC raises for `call` into errors of ours."""
        try:
            yield
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self._error(call, doing) from error
        except ValueError as error:
            self.check_open()
            raise ProtocolViolation(f"cannot {doing}: {error}") from error

    def check_open(self) -> None:
        if self._closed:
            raise Closed("the store is closed")

    def close(self) -> None:
        """Calls that run are cancelled."""
        self._closed = True
        self._patience.stop()
        self._channel.close()
        self._unhurried_channel.close()

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """The block begins a call; the channel may have been closed since somebody looked."""
        try:
            yield
        except ValueError:
            self.check_open()
            raise

    @contextmanager
    def _waiting(self, call: Any, doing: str) -> Iterator[None]:
        """The block waits for the server's next word in a running call."""
        watching = self._patience.watching(call, self.timeout, f"cannot {doing}: {self._late()}")
        with self.failing(call, doing), _cancelled_with_the_task(call), watching:
            yield

    def _late(self) -> str:
        return f"no answer at {self.address} for {self.timeout:g} s"

    def _error(self, call: Any, doing: str) -> BlobteeError:
        code, detail = call.code(), str(call.details() or "")
        if self._closed:
            return Closed(f"cannot {doing}: the store is closed")
        if code is grpc.StatusCode.CANCELLED:
            tasks.check()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"cannot {doing}: {self._late()}")
        if code is grpc.StatusCode.CANCELLED:  # not by us: by a server that ends
            return ConnectionFailed(f"cannot {doing}: the server at {self.address} ended the call")
        if code is grpc.StatusCode.UNAVAILABLE:
            # Either from gRPC itself, which cannot reach the server, or from the server, which means a locked ref by
            # it: the two look the same. Who can meet a locked ref asks what it is (`ProxyStore`).
            return ConnectionFailed(f"cannot {doing}: {detail} (at {self.address})")
        return error_of(code.name, f"cannot {doing}: {detail}")


class _Wait:
    """One wait for one message of a call."""

    def __init__(self, call: Any, deadline: float) -> None:
        self.call = call
        self.deadline = deadline
        self.given_up = False


class _Patience:
    """Cancels the calls that waited too long for a message: gRPC knows deadlines of whole calls alone."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._waits: set[_Wait] = set()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @contextmanager
    def watching(self, call: Any, seconds: float, late: str) -> Iterator[None]:
        """Cancel `call` when the block takes longer: it ends with `DeadlineExceeded(late)` then, also if the message
        came all the same. `Closed`: nobody watches any more."""
        wait = _Wait(call, time.monotonic() + seconds)
        with self._lock:
            if self._stopped:
                raise Closed("the store is closed")
            self._waits.add(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="blobtee-proxy", daemon=True)
                self._thread.start()
        try:
            yield
        except grpc.RpcError as error:
            if wait.given_up:
                raise DeadlineExceeded(late) from error
            raise
        finally:
            with self._lock:
                self._waits.discard(wait)
        if wait.given_up:
            raise DeadlineExceeded(late)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            thread, self._thread = self._thread, None
            self._lock.notify_all()
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._stopped:
                    return
                now = time.monotonic()
                late = [wait for wait in self._waits if wait.deadline < now]
                for wait in late:
                    wait.given_up = True
                self._waits.difference_update(late)
                # Coarse on purpose: a message that comes in time never wakes this thread.
                if not late:
                    self._lock.wait(1.0)
            for wait in late:
                wait.call.cancel()


@contextmanager
def _cancelled_with_the_task(call: Any) -> Iterator[None]:
    leave = tasks.current().on_cancel(call.cancel)
    try:
        yield
    finally:
        leave()


def _opened(kind: Callable[..., Any], service: str, answers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: kind(f"/{service}/{name}", _serialized, answer.FromString) for name, answer in answers.items()}


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
