"""What every RPC of every service shares: its errors become status codes, its end is told, a defect stays inside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import grpc

from blobtee import tasks
from blobtee.errors import BlobteeError, Cancelled
from blobtee.plugin.observer import Observer
from blobtee.wire.status import code_of

_logger = logging.getLogger(__name__)
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_LONGEST_DETAIL = 4 << 10
"""Characters. Details travel in a header, and a client refuses headers that are too large."""


class Service(grpc.GenericRpcHandler):
    """The handlers of one service by their paths, `/package.Service/Method`."""

    def __init__(self, name: str, handlers: Mapping[str, Handler]) -> None:
        self._handlers = {f"/{name}/{method}": handler for method, handler in handlers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handlers.get(handler_call_details.method)


def unary(method: str, observer: Observer, request: Any, work: Callable[[Any, Any], Any]) -> Handler:
    """One request, one answer."""

    def run(message: Any, context: grpc.ServicerContext) -> Any:
        begun = time.perf_counter()
        try:
            answer = work(message, context)
        except Exception as error:
            _end(method, observer, begun, context, error)
        observer.rpc(method, "OK", time.perf_counter() - begun)
        return answer

    return grpc.unary_unary_rpc_method_handler(run, request.FromString, _serialized)


def stream(method: str, observer: Observer, request: Any, work: Callable[[Any, Any], Iterator[Any]]) -> Handler:
    """One request, many answers."""
    return grpc.unary_stream_rpc_method_handler(_streaming(method, observer, work), request.FromString, _serialized)


def duplex(method: str, observer: Observer, request: Any, work: Callable[[Any, Any], Iterator[Any]]) -> Handler:
    """Many requests, many answers."""
    return grpc.stream_stream_rpc_method_handler(_streaming(method, observer, work), request.FromString, _serialized)


@contextmanager
def ending_with(context: grpc.ServicerContext) -> Iterator[None]:
    """Do the block's work for as long as somebody waits for it: `Cancelled` when the client has gone."""
    with tasks.scope() as cancellation:
        if not context.add_callback(lambda: cancellation.cancel("the client has gone")):
            raise Cancelled("the client has gone")
        yield


def _streaming(
    method: str, observer: Observer, work: Callable[[Any, Any], Iterator[Any]]
) -> Callable[[Any, Any], Iterator[Any]]:
    def run(message: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        begun = time.perf_counter()
        try:
            yield from work(message, context)
        except GeneratorExit:
            # The client has gone: it has what it wanted, or gave up. Both are ordinary.
            observer.rpc(method, grpc.StatusCode.CANCELLED.name, time.perf_counter() - begun)
            raise
        except Exception as error:
            _end(method, observer, begun, context, error)
        observer.rpc(method, "OK" if context.is_active() else "CANCELLED", time.perf_counter() - begun)

    return run


def _serialized(answer: Any) -> Any:
    """An answer that is bytes was made by hand."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _end(method: str, observer: Observer, begun: float, context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End the RPC with the status for `error`."""
    # Without a client nobody is there to be told, and what broke is most often that it went.
    code = code_of(error) if context.is_active() else grpc.StatusCode.CANCELLED
    observer.rpc(method, code.name, time.perf_counter() - begun)
    detail = str(error)
    if not isinstance(error, BlobteeError):
        _logger.error("a defect of blobtee in %s", method, exc_info=error)
        detail = f"a defect of blobtee: {type(error).__name__}: {error}"
    context.abort(code, detail[:_LONGEST_DETAIL])
