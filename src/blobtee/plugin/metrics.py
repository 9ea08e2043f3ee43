"""Counters for Prometheus (text format 0.0.4), and the small server that hands them out on loopback."""

from __future__ import annotations

import http.server
import ipaddress
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from blobtee._version import __version__
from blobtee.core import Counts
from blobtee.errors import InvalidArgument, ResourceExhausted, from_os_error

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from an `Info` to a layer that is pushed over a slow line."""


class Metrics:
    """What all tenants have done. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rpcs: Counter[tuple[str, str, str]] = Counter()
        self._seconds: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._sums: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._opened: Counter[tuple[str, str]] = Counter()
        self._fetched: Counter[str] = Counter()
        self._evicted: Counter[str] = Counter()
        self._asked: Counter[tuple[str, str]] = Counter()
        self.on_arrival: Callable[[int], None] = lambda nbytes: None
        """Called with the bytes of blobs that came, from clients and from registries."""
        self._counted: dict[str, Callable[[], Mapping[str, Counts]]] = {}
        begun = time.time()
        self._gauges: dict[str, tuple[str, Callable[[], Mapping[str, float]]]] = {
            "process_open_fds": ("Open descriptors.", lambda: {"": len(os.listdir("/proc/self/fd"))}),
            "process_threads": ("Threads.", lambda: {"": len(os.listdir("/proc/self/task"))}),
            "process_resident_memory_bytes": ("Memory in use.", lambda: {"": _resident()}),
            "process_start_time_seconds": ("When it began, since the epoch.", lambda: {"": begun}),
            "blobtee_build_info": ("Which version it is.", lambda: {f'version="{__version__}"': 1}),
        }

    def of(self, tenant: str) -> Tally:
        """The observer for one tenant's service."""
        return Tally(self, tenant)

    def gauge(self, name: str, text: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Something that is read when it is asked for: values by their labels, as text, such as `tenant="a"`."""
        self._gauges[name] = (text, read)

    def counted_by(self, tenant: str, read: Callable[[], Mapping[str, Counts]]) -> None:
        """RPCs of the tenant that are counted elsewhere too, by method, with times by `BOUNDS`."""
        self._counted[tenant] = read

    def count_rpc(self, tenant: str, method: str, code: str, seconds: float) -> None:
        with self._lock:
            self._rpcs[tenant, method, code] += 1
            self._seconds[tenant, method][bisect_left(BOUNDS, seconds)] += 1
            self._sums[tenant, method] += seconds  # type: ignore[assignment]  # a counter adds floats as well

    def count_bytes(self, tenant: str, direction: str, nbytes: int) -> None:
        with self._lock:
            self._bytes[tenant, direction] += nbytes
        if direction == "received":
            self.on_arrival(nbytes)

    def count_opened(self, tenant: str, *, was_here: bool) -> None:
        with self._lock:
            self._opened[tenant, "hit" if was_here else "miss"] += 1

    def fetched(self, source: str, nbytes: int) -> None:
        """See `plugin.lazy.Fetching`."""
        with self._lock:
            self._fetched[source] += nbytes
        self.on_arrival(nbytes)

    def count_evicted(self, blobs: int, nbytes: int) -> None:
        """Blobs gave so many bytes back, and are lazy again."""
        with self._lock:
            self._evicted["blobs"] += blobs
            self._evicted["bytes"] += nbytes

    def count_asked(self, registry: str, answer: str) -> None:
        """See `transfer.obtaining.Told`."""
        with self._lock:
            self._asked[registry, answer] += 1

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        with self._lock:
            rpcs, sums, nbytes = Counter(self._rpcs), Counter(self._sums), Counter(self._bytes)
            opened, fetched, evicted = Counter(self._opened), dict(self._fetched), self._evicted.copy()
            asked = self._asked.copy()
            seconds = {key: list(counts) for key, counts in self._seconds.items()}
        for tenant, of_tenant in self._counted.items():
            for method, more in of_tenant().items():
                if not any(more.within):
                    continue
                rpcs.update({(tenant, method, "OK"): more.ok, (tenant, method, "CANCELLED"): more.cancelled})
                sums[tenant, method] += more.seconds  # type: ignore[assignment]
                before = seconds.get((tenant, method), [0] * len(more.within))
                seconds[tenant, method] = [a + b for a, b in zip(before, more.within, strict=True)]
                nbytes[tenant, "sent"] += more.sent
                opened[tenant, "hit"] += more.opened
        yield from _head("blobtee_rpcs_total", "RPCs that have ended, by gRPC status.", "counter")
        for (tenant, method, code), count in sorted(rpcs.items()):
            yield f'blobtee_rpcs_total{{tenant="{tenant}",method="{method}",code="{code}"}} {count}'
        yield from _head("blobtee_rpc_seconds", "How long RPCs took.", "histogram")
        for (tenant, method), counts in sorted(seconds.items()):
            labels = f'tenant="{tenant}",method="{method}"'
            below = 0
            for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
                below += count
                yield f'blobtee_rpc_seconds_bucket{{{labels},le="{bound}"}} {below}'
            yield f"blobtee_rpc_seconds_sum{{{labels}}} {sums[tenant, method]:.6f}"
            yield f"blobtee_rpc_seconds_count{{{labels}}} {below}"
        yield from _head("blobtee_bytes_total", "Bytes of blobs, read by and written by clients.", "counter")
        for (tenant, direction), count in sorted(nbytes.items()):
            yield f'blobtee_bytes_total{{tenant="{tenant}",direction="{direction}"}} {count}'
        yield from _head("blobtee_blobs_opened_total", "Blobs opened: here already, or lazy and brought.", "counter")
        for (tenant, result), count in sorted(opened.items()):
            yield f'blobtee_blobs_opened_total{{tenant="{tenant}",result="{result}"}} {count}'
        yield from _head(
            "blobtee_fetched_bytes_total", "Bytes of lazy blobs that were brought, by registry.", "counter"
        )
        for source, count in sorted(fetched.items()):
            yield f'blobtee_fetched_bytes_total{{source="{source}"}} {count}'
        yield from _head("blobtee_evictions_total", "Blobs, whole or partial, that made room.", "counter")
        yield f"blobtee_evictions_total {evicted['blobs']}"
        yield from _head("blobtee_evicted_bytes_total", "Bytes that they gave back.", "counter")
        yield f"blobtee_evicted_bytes_total {evicted['bytes']}"
        yield from _head(
            "blobtee_eviction_checks_total", "Questions to registries whether they still have a blob.", "counter"
        )
        for (registry, answer), count in sorted(asked.items()):
            yield f'blobtee_eviction_checks_total{{registry="{registry}",answer="{answer}"}} {count}'
        for name, (text, read) in list(self._gauges.items()):
            yield from _head(name, text, "gauge")
            for labels, value in read().items():
                yield f"{name}{{{labels}}} {value:.15g}" if labels else f"{name} {value:.15g}"


class Tally:
    """`plugin.observer.Observer` for one tenant."""

    def __init__(self, metrics: Metrics, tenant: str) -> None:
        self._metrics = metrics
        self._tenant = tenant

    def rpc(self, method: str, code: str, seconds: float) -> None:
        self._metrics.count_rpc(self._tenant, method, code, seconds)

    def sent(self, nbytes: int) -> None:
        self._metrics.count_bytes(self._tenant, "sent", nbytes)

    def received(self, nbytes: int) -> None:
        self._metrics.count_bytes(self._tenant, "received", nbytes)

    def opened(self, *, was_here: bool) -> None:
        self._metrics.count_opened(self._tenant, was_here=was_here)


MAX_SCRAPES = 16
"""Connections at once: anybody on the machine may open more, and the descriptors are for blobs."""

_NO_DESCRIPTOR_SECONDS = 0.2


class MetricsServer:
    """Answers `GET /metrics` until it is closed."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """`InvalidArgument`: not a loopback address, since anybody who reaches it may read it. Port 0: any free one.
        `ResourceExhausted`: there is no thread for it. Then errors of the system."""
        try:
            is_loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise InvalidArgument(f"metrics are for loopback alone (127.0.0.1 or ::1), not {host!r:.100}")

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                body = metrics.text().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        free = threading.BoundedSemaphore(MAX_SCRAPES)

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True
            address_family = 10 if ":" in host else 2

            def get_request(self) -> Any:
                try:
                    return super().get_request()
                except OSError:
                    # Without descriptors whoever waits is seen again at once, and again: all threads would feel it.
                    time.sleep(_NO_DESCRIPTOR_SECONDS)
                    raise

            def process_request(self, request: Any, client_address: Any) -> None:
                if not free.acquire(blocking=False):
                    self.shutdown_request(request)
                    return
                try:
                    super().process_request(request, client_address)
                except BaseException:
                    free.release()
                    raise

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    free.release()

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that went away

        try:
            self._server = Listener((host, port), Handler)
        except OSError as error:
            raise from_os_error(error, f"serve metrics on {host}:{port}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="blobtee-metrics", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._server.server_close()
            raise ResourceExhausted(f"no thread to be had for metrics: {error}") from error

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
