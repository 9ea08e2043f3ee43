from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from blobtee.plugin.health import HealthService
from blobtee.wire.health import NOT_SERVING, SERVICE, SERVICE_UNKNOWN, SERVING, messages
from tests.unit.plugin.contentclient import code, serving_at


@pytest.fixture
def health() -> HealthService:
    return HealthService(["one"])


@pytest.fixture
def channel(health: HealthService, tmp_path: Path) -> Iterator[grpc.Channel]:
    with serving_at(tmp_path / "socket", health), grpc.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel:
        yield channel


def ask(channel: grpc.Channel, kind: str, method: str, service: str) -> Any:
    call = getattr(channel, kind)(
        f"/{SERVICE}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=messages.HealthCheckResponse.FromString,
    )
    return call(messages.HealthCheckRequest(service=service), timeout=20)


def test_check(health: HealthService, channel: grpc.Channel) -> None:
    for service in ("", "one"):
        assert ask(channel, "unary_unary", "Check", service).status == SERVING
    assert code(lambda: ask(channel, "unary_unary", "Check", "two")) == "NOT_FOUND"
    health.stop()
    assert ask(channel, "unary_unary", "Check", "").status == NOT_SERVING


def test_watch_tells_of_the_end(health: HealthService, channel: grpc.Channel) -> None:
    watch = ask(channel, "unary_stream", "Watch", "one")
    unknown = ask(channel, "unary_stream", "Watch", "two")
    assert next(watch).status == SERVING
    assert next(unknown).status == SERVICE_UNKNOWN
    health.stop()
    assert [answer.status for answer in watch] == [NOT_SERVING]
    assert list(unknown) == []


def test_a_watch_that_is_cancelled_ends_its_thread(channel: grpc.Channel) -> None:
    for _ in range(20):  # more than the pool has threads
        watch = ask(channel, "unary_stream", "Watch", "")
        assert next(watch).status == SERVING
        watch.cancel()
