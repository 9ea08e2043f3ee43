"""The standard health check of gRPC, which systemd units, probes and `blobtee doctor` ask."""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator
from typing import Any

from blobtee.core import H2Call
from blobtee.errors import NotFound
from blobtee.plugin import calls
from blobtee.plugin.observer import SILENT
from blobtee.wire.health import NOT_SERVING, SERVICE, SERVICE_UNKNOWN, SERVING, messages


class HealthService(calls.Service):
    """Says `SERVING` for the server ("") and each of `services`, until `stop()`."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = {"", *services}
        self._changed = threading.Condition()
        self._serving = True
        super().__init__(
            SERVICE,
            {
                "Check": calls.unary("Check", SILENT, messages.HealthCheckRequest, self._check),
                "Watch": calls.stream("Watch", SILENT, messages.HealthCheckRequest, self._watch),
            },
        )

    def stop(self) -> None:
        """Say `NOT_SERVING` from now on, and end the watches after telling them."""
        with self._changed:
            self._serving = False
            self._changed.notify_all()

    def _state(self) -> int:
        return SERVING if self._serving else NOT_SERVING

    def _check(self, request: Any, _: H2Call) -> Any:
        if request.service not in self._services:
            raise NotFound(f"no service {request.service[:200]!r} here")
        return messages.HealthCheckResponse(status=self._state())

    def _watch(self, request: Any, call: H2Call) -> Generator[Any, None, None]:
        if not call.on_end(self._wake):
            return
        known = request.service in self._services
        yield messages.HealthCheckResponse(status=self._state() if known else SERVICE_UNKNOWN)
        with self._changed:
            self._changed.wait_for(lambda: not self._serving or not call.active)
        if known and call.active:
            yield messages.HealthCheckResponse(status=NOT_SERVING)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
