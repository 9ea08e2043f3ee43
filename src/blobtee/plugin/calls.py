"""What every RPC of every service shares: its errors become status codes, its end is told, a defect stays inside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from blobtee import tasks
from blobtee.content.api import ReaderAt
from blobtee.content.files import FileReader
from blobtee.core import H2Call
from blobtee.errors import BlobteeError, Cancelled, InvalidArgument
from blobtee.plugin.observer import Observer
from blobtee.wire.status import NUMBERS, code_of

_logger = logging.getLogger(__name__)
Handler: TypeAlias = Callable[[H2Call], None]


class Service:
    """The handlers of one service by their paths, `/package.Service/Method`, and the paths of those that are light: see
    `H2Server.method`."""

    def __init__(self, name: str, handlers: Mapping[str, Handler], light: Collection[str] = ()) -> None:
        self.handlers = {f"/{name}/{method}": handler for method, handler in handlers.items()}
        self.light = {f"/{name}/{method}" for method in light}


@dataclass(frozen=True, slots=True)
class Part:
    """An answer of `head` and the bytes [offset, offset + nbytes) of a blob. With `last` nothing follows it."""

    head: bytes
    reader: ReaderAt
    offset: int
    nbytes: int
    last: bool

    def send(self, call: H2Call) -> None:
        if isinstance(self.reader, FileReader):
            call.send_file(self.head, self.reader.fileno(), self.offset, self.nbytes, last=self.last)
        else:
            call.send(self.head + self.reader.read_at(self.offset, self.nbytes), last=self.last)


def unary(method: str, observer: Observer, request: Any, work: Callable[[Any, H2Call], Any]) -> Handler:
    """One request, one answer."""

    def run(call: H2Call) -> None:
        begun = time.perf_counter()
        try:
            answer = _serialized(work(_first(call, request), call))
        except Exception as error:
            _end(method, observer, begun, call, error)
            return
        observer.rpc(method, "OK", time.perf_counter() - begun)
        with suppress(Cancelled):
            call.send(answer, last=True)

    return run


def stream(
    method: str, observer: Observer, request: Any, work: Callable[[Any, H2Call], Generator[Any, None, None]]
) -> Handler:
    """One request, many answers."""
    return _streaming(method, observer, lambda call: work(_first(call, request), call))


def duplex(
    method: str,
    observer: Observer,
    request: Any,
    work: Callable[[Iterator[Any], H2Call], Generator[Any, None, None]],
) -> Handler:
    """Many requests, many answers. The requests end when the client has sent all; they raise `Cancelled` when it has
    gone. An answer is sent when the next request is asked for, or the next answer made."""

    def begin(call: H2Call) -> Generator[Any, None, None]:
        requests = _Requests(call, request)
        with closing(work(requests, call)) as answers:
            for answer in answers:
                if requests.answer is not None:
                    yield requests.answer
                requests.answer = _serialized(answer)
        if requests.answer is not None:
            yield requests.answer

    return _streaming(method, observer, begin)


@contextmanager
def ending_with(call: H2Call) -> Iterator[None]:
    """Do the block's work for as long as somebody waits for it: `Cancelled` when the client has gone."""
    with tasks.scope() as cancellation:
        if not call.on_end(lambda: cancellation.cancel("the client has gone")):
            raise Cancelled("the client has gone")
        yield


def _streaming(method: str, observer: Observer, begin: Callable[[H2Call], Generator[Any, None, None]]) -> Handler:
    def run(call: H2Call) -> None:
        begun = time.perf_counter()
        told = False
        try:
            with closing(begin(call)) as answers:
                for answer in answers:
                    if isinstance(answer, Part):
                        if answer.last:
                            # Before the client can know, as everywhere.
                            told = True
                            observer.rpc(method, "OK", time.perf_counter() - begun)
                        answer.send(call)
                    else:
                        call.send(_serialized(answer))
            if not told:
                told = True
                observer.rpc(method, "OK" if call.active else "CANCELLED", time.perf_counter() - begun)
            call.finish(0)
        except Exception as error:
            _end(method, observer if not told else None, begun, call, error)

    return run


def _first(call: H2Call, request: Any) -> Any:
    data = call.take()
    if data is None:
        raise InvalidArgument("a request without a message")
    return _parsed(data, request)


class _Requests(Iterator[Any]):
    """Those of a call, as they come; `answer` is sent first, by the same call of the core."""

    def __init__(self, call: H2Call, request: Any) -> None:
        self.answer: bytes | None = None
        self._call = call
        self._request = request

    def __next__(self) -> Any:
        answer, self.answer = self.answer, None
        data = self._call.take() if answer is None else self._call.exchange(answer)
        if data is None:
            raise StopIteration
        return _parsed(data, self._request)


def _parsed(data: bytes, request: Any) -> Any:
    try:
        return request.FromString(data)
    except Exception as error:  # a DecodeError, which is another class in each implementation of protobuf
        raise InvalidArgument(f"a message that is no {request.DESCRIPTOR.name}: {error}") from None


def _serialized(answer: Any) -> bytes:
    """An answer that is bytes was made by hand."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _end(method: str, observer: Observer | None, begun: float, call: H2Call, error: Exception) -> None:
    """End the RPC with the status for `error`."""
    # Without a client nobody is there to be told, and what broke is most often that it went.
    code = code_of(error) if call.active else Cancelled.code
    if observer is not None:
        observer.rpc(method, code, time.perf_counter() - begun)
    detail = str(error)
    if not isinstance(error, BlobteeError):
        _logger.error("a defect of blobtee in %s", method, exc_info=error)
        detail = f"a defect of blobtee: {type(error).__name__}: {error}"
    elif code == Cancelled.code and not isinstance(error, Cancelled):
        _logger.info("%s of a client that has gone: %s", method, error)
    call.finish(NUMBERS[code], detail)
