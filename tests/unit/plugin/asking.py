"""A server with services that are as simple as they get, and who asks it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from blobtee import tasks
from blobtee.core import H2Call
from blobtee.errors import Cancelled, InvalidArgument
from blobtee.plugin import calls
from blobtee.plugin.observer import SILENT
from blobtee.plugin.serving import Serving
from tests.unit.plugin.contentclient import serving_at

ECHO, HANG, TALK, SINK, FAIL, FLOW = (f"/test.Test/{name}" for name in ("Echo", "Hang", "Talk", "Sink", "Fail", "Flow"))


class Bytes:
    """A message that is any bytes."""

    DESCRIPTOR = type("Descriptor", (), {"name": "Bytes"})

    def __init__(self, data: bytes) -> None:
        self.data = data

    @staticmethod
    def FromString(data: bytes) -> Bytes:
        if data == b"no message":
            raise ValueError("unwanted")
        return Bytes(data)


class Test(calls.Service):
    __test__ = False

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.hanging = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.taken = 0
        self.metadata: list[tuple[str, str | bytes]] = []
        self.places: list[set[int]] = []
        super().__init__(
            "test.Test",
            {
                "Echo": calls.unary("Echo", SILENT, Bytes, self._echo),
                "Hang": calls.unary("Hang", SILENT, Bytes, self._hang),
                "Fail": calls.unary("Fail", SILENT, Bytes, self._fail),
                "Talk": calls.duplex("Talk", SILENT, Bytes, self._talk),
                "Sink": calls.duplex("Sink", SILENT, Bytes, self._sink),
                "Flow": calls.stream("Flow", SILENT, Bytes, self._flow),
            },
            light=("Hang",),
        )

    def _echo(self, asked: Bytes, call: H2Call) -> bytes:
        self.metadata = call.metadata()
        return asked.data

    def _fail(self, asked: Bytes, _: H2Call) -> bytes:
        raise InvalidArgument(asked.data.decode())

    def _hang(self, _: Bytes, call: H2Call) -> bytes:
        try:
            with calls.ending_with(call):
                self.places.append(os.sched_getaffinity(0))
                self.hanging.release()
                while not self.go_on.is_set():
                    tasks.sleep(0.01)
        except Cancelled:
            self.ended.release()
            raise
        return b"late"

    def _talk(self, requests: Iterator[Bytes], _: H2Call) -> Generator[bytes, None, None]:
        try:
            for asked in requests:
                yield asked.data
        finally:
            self.ended.release()

    def _sink(self, requests: Iterator[Bytes], _: H2Call) -> Generator[bytes, None, None]:
        """Takes messages when it may, and says at the end how many bytes came."""
        self.places.append(os.sched_getaffinity(0))
        for asked in requests:
            self.hanging.release()
            self.go_on.wait(20)
            self.taken += len(asked.data)
        yield str(self.taken).encode()

    def _flow(self, asked: Bytes, _: H2Call) -> Generator[bytes, None, None]:
        try:
            for _number in range(int(asked.data)):
                yield b"x" * (1 << 20)
        finally:
            self.ended.release()


class Asker:
    def __init__(self, path: Path, **options: Any) -> None:
        self.channel: Any = grpc.insecure_channel(
            f"unix:{path}",
            options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), *options.items()],
        )

    def ask(self, path: str, data: bytes = b"", **how: Any) -> bytes:
        return bytes(self.channel.unary_unary(path)(data, timeout=120, **how))

    def talk(self, path: str, requests: Iterator[bytes]) -> Any:
        return self.channel.stream_stream(path)(requests, timeout=120)

    def status(self, path: str, data: bytes = b"", **how: Any) -> tuple[str, str]:
        try:
            self.ask(path, data, **how)
        except grpc.RpcError as error:
            return error.code().name, str(error.details())
        return "OK", ""


@contextmanager
def asking(path: Path, **limits: Any) -> Iterator[tuple[Asker, Test, Serving]]:
    test = Test()
    with serving_at(path, test, **limits) as served:
        asker = Asker(path)
        try:
            yield asker, test, served
        finally:
            test.go_on.set()
            asker.channel.close()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
