"""Download speed: ours against a bare socket and against the HTTP library used plainly, side by side.

One server process sends the same bytes for each; the figures are ratios of medians, taken in turns.
Run `python -m benchmarks.test_registry` for the table.
"""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from blobtee.oci import Descriptor, Digest
from blobtee.registry import Hosts, NoCredentials, Registry

SIZE = 256 << 20
_BLOCK = bytes(range(256)) * 4096
_DESC = Descriptor("application/octet-stream", Digest.of(b""), SIZE)
_PATH = f"/v2/a/b/blobs/{_DESC.digest}"


def _serve(listener: socket.socket, certificate: str) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_answer, args=(sock, context), daemon=True).start()


def _answer(sock: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        with sock if context is None else context.wrap_socket(sock, server_side=True) as stream:
            while b"\r\n\r\n" in stream.recv(65536):
                stream.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode())
                for _ in range(SIZE // len(_BLOCK)):
                    stream.sendall(_BLOCK)
    except OSError:
        pass


@contextmanager
def server(authority: trustme.CA | None, folder: Path) -> Iterator[int]:
    certificate = ""
    if authority is not None:
        certificate = str(folder / "server.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, certificate), daemon=True)
        process.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            process.kill()
            process.join()
            process.close()


def _bare(port: int, context: ssl.SSLContext | None) -> int:
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_connection(("127.0.0.1", port)) as plain:
        with plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(f"GET {_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = sock.recv(1 << 16)
            total = len(head) - head.index(b"\r\n\r\n") - 4
            while total < SIZE:
                total += sock.recv_into(buffer)
    return total


def _library(port: int, context: ssl.SSLContext | None) -> int:
    scheme = "http" if context is None else "https"
    total = 0
    with httpx.Client(verify=True if context is None else context, trust_env=False) as client:
        with client.stream("GET", f"{scheme}://127.0.0.1:{port}{_PATH}") as response:
            for chunk in response.iter_bytes():
                total += len(chunk)
    return total


def _ours(port: int, ca: str) -> int:
    host = f"127.0.0.1:{port}"
    hosts = Hosts((), https=[host] if ca else [])
    buffer = memoryview(bytearray(1 << 20))
    total = 0
    with Registry(hosts=hosts, credentials=NoCredentials(), environ={"SSL_CERT_FILE": ca} if ca else {}) as registry:
        with registry.repository(f"{host}/a/b").reader_at(_DESC) as reader, reader.open() as file:
            while n := file.readinto(buffer):
                total += n
    return total


@contextmanager
def contestants(tls: bool) -> Iterator[dict[str, Callable[[], int]]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = trustme.CA() if tls else None
        ca, context = "", None
        if authority is not None:
            ca = str(folder / "ca.pem")
            authority.cert_pem.write_to_path(ca)
            context = ssl.create_default_context(cafile=ca)
        with server(authority, folder) as port:
            yield {
                "bare socket": lambda: _bare(port, context),
                "httpx": lambda: _library(port, context),
                "blobtee": lambda: _ours(port, ca),
            }


def compare(tls: bool, rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each way, the ways taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {}
    with contestants(tls) as ways:
        for number in range(rounds + 1):
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                assert way() == SIZE
                if number:  # The first round warms up.
                    times.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(w for w, _ in taken), statistics.median(c for _, c in taken))
        for name, taken in times.items()
    }


@pytest.mark.benchmark(group="download")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", ["bare socket", "httpx", "blobtee"])
def test_download(benchmark: Callable[[Callable[[], int]], int], tls: bool, name: str) -> None:
    with contestants(tls) as ways:
        assert benchmark(ways[name]) == SIZE


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for tls in (False, True):
        found = compare(tls, rounds)
        bare = found["bare socket"]
        print(f"{'TLS' if tls else 'plain'}, {SIZE >> 20} MiB over one connection")
        for name, (wall, cpu) in found.items():
            print(
                f"  {name:12} {SIZE / wall / 1e6:8.0f} MB/s  speed {bare[0] / wall:5.2f} of the bare socket,"
                f"  {SIZE / cpu / 1e6:8.0f} MB per CPU second ({bare[1] / cpu:5.2f})"
            )


if __name__ == "__main__":
    main()
