from __future__ import annotations

import errno
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress

import pytest

from blobtee._version import __version__
from blobtee.errors import InvalidArgument, ResourceExhausted, StorageError
from blobtee.plugin.metrics import _NO_DESCRIPTOR_SECONDS, MAX_SCRAPES, Metrics, MetricsServer


def test_counters_in_the_form_that_prometheus_reads() -> None:
    metrics = Metrics()
    tally = metrics.of("one")
    tally.rpc("Info", "OK", 0.002)
    tally.rpc("Info", "NOT_FOUND", 100.0)
    tally.sent(5)
    tally.sent(6)
    tally.received(7)
    tally.opened(was_here=True)
    tally.opened(was_here=False)
    metrics.fetched("registry.example", 8)
    metrics.gauge("of_mine", "Mine.", lambda: {'tenant="one"': 3})
    lines = metrics.text().splitlines()
    for line in (
        'blobtee_rpcs_total{tenant="one",method="Info",code="OK"} 1',
        'blobtee_rpcs_total{tenant="one",method="Info",code="NOT_FOUND"} 1',
        'blobtee_rpc_seconds_bucket{tenant="one",method="Info",le="0.001"} 0',
        'blobtee_rpc_seconds_bucket{tenant="one",method="Info",le="0.0025"} 1',
        'blobtee_rpc_seconds_bucket{tenant="one",method="Info",le="30.0"} 1',
        'blobtee_rpc_seconds_bucket{tenant="one",method="Info",le="+Inf"} 2',
        'blobtee_rpc_seconds_count{tenant="one",method="Info"} 2',
        'blobtee_rpc_seconds_sum{tenant="one",method="Info"} 100.002000',
        'blobtee_bytes_total{tenant="one",direction="sent"} 11',
        'blobtee_bytes_total{tenant="one",direction="received"} 7',
        'blobtee_blobs_opened_total{tenant="one",result="hit"} 1',
        'blobtee_blobs_opened_total{tenant="one",result="miss"} 1',
        'blobtee_fetched_bytes_total{source="registry.example"} 8',
        'of_mine{tenant="one"} 3',
        "# TYPE blobtee_rpc_seconds histogram",
        "# TYPE process_open_fds gauge",
        f'blobtee_build_info{{version="{__version__}"}} 1',
    ):
        assert line in lines
    (begun,) = (float(line.split()[1]) for line in lines if line.startswith("process_start_time_seconds "))
    assert time.time() - 60 < begun <= time.time()


def test_who_only_connects_takes_few_threads_and_descriptors() -> None:
    """Anybody on the machine reaches loopback."""
    server = MetricsServer(Metrics(), "127.0.0.1", 0)
    with closing(server), ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            for _ in range(MAX_SCRAPES + 20)
        ]
        # Those that are one too many are closed at once; the rest may say what they want.
        assert [client.recv(1) for client in clients[MAX_SCRAPES:]] == [b""] * 20
        for client in clients[:MAX_SCRAPES]:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.0 200"
            while client.recv(1 << 16):
                pass
        # A thread is through a moment after its client has heard all.
        deadline = time.monotonic() + 20
        answer = b""
        while not answer and time.monotonic() < deadline:
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client, suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = client.recv(12)
        assert answer == b"HTTP/1.0 200"


def test_without_descriptors_it_asks_for_one_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits to be accepted would be seen again at once, and again, with nothing else to be done by anybody."""
    tries = 0

    def refuse(_: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "Too many open files")

    with closing(MetricsServer(Metrics(), "127.0.0.1", 0)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", refuse)
            begun = time.monotonic()
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            while tries < 5 and time.monotonic() - begun < 20:
                time.sleep(0.01)
            taken = time.monotonic() - begun
        assert tries >= 5
        assert taken >= 4 * _NO_DESCRIPTOR_SECONDS
        with client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.0 200"


def test_they_are_served_on_loopback() -> None:
    server = MetricsServer(Metrics(), "127.0.0.1", 0)
    try:
        address = f"http://127.0.0.1:{server.port}"
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"process_threads" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as failure:
            urllib.request.urlopen(f"{address}/", timeout=10)
        assert failure.value.code == 404
        failure.value.close()
        with pytest.raises(StorageError, match="serve metrics"):
            MetricsServer(Metrics(), "127.0.0.1", server.port)
    finally:
        server.close()


def test_a_thread_that_cannot_be_started_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = count_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(ResourceExhausted, match="no thread"):
            MetricsServer(Metrics(), "127.0.0.1", 0)
    assert count_descriptors() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "localhost", ""])
def test_no_other_address_will_do(host: str) -> None:
    with pytest.raises(InvalidArgument, match="loopback"):
        MetricsServer(Metrics(), host, 0)
