"""The servers of one store: a socket for each tenant, all starting and ending together."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blobtee.content import LocalStore
from blobtee.errors import BlobteeError, InvalidArgument, ResourceExhausted
from blobtee.plugin.calls import Service
from blobtee.plugin.control import ControlService
from blobtee.plugin.health import HealthService
from blobtee.plugin.lazy import LazyBlobs
from blobtee.plugin.limiting import Limiter
from blobtee.plugin.metrics import Metrics
from blobtee.plugin.references import References
from blobtee.plugin.remembered import FILES, NOTHING, Remembered
from blobtee.plugin.service import ContentService
from blobtee.plugin.serving import Serving
from blobtee.plugin.sockets import SocketFile
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from blobtee.registry import Registry
from blobtee.transfer.obtaining import HASTY, Obtaining
from blobtee.transfer.remote import default_registry
from blobtee.wire import content, control

_logger = logging.getLogger(__name__)

DEFAULT_TENANT = "default"

DRAIN_SECONDS = 30.0
LINGER_SECONDS = 10.0

_FDS_OF_A_STREAM = 3
"""Descriptors: a writer has its data, the file of its offset, and for a moment a directory that is synced."""

_FDS_OF_OURS = 128 + FILES
_MOST_STREAMS = 20_000
_THREADS_OF_OURS = 32
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Listen:
    """Where a tenant is served: on a socket of ours at `path`, or on one that systemd holds."""

    tenant: str
    path: Path | None = None
    inherited: socket.socket | None = None
    mode: int = 0o600
    group: int | None = None


@dataclass
class _Place:
    """One socket and what answers on it."""

    listener: socket.socket
    services: Sequence[Service]
    health: HealthService
    file: SocketFile | None


class Server:
    """Serves `store`, which stays the caller's, from `start` to `stop`. A context manager that stops at once."""

    def __init__(
        self,
        store: LocalStore,
        listens: Sequence[Listen],
        *,
        registry: Registry | None = None,
        max_streams: int | None = None,
        max_size: int | None = None,
    ) -> None:
        """`max_streams` is how many RPCs may run at once; more are `RESOURCE_EXHAUSTED`, until some have ended. By
        default it follows from the limit on descriptors, which is raised as far as it goes. Lazy blobs come through
        `registry` (one for the process by default), which stays the caller's. What is above `max_size` bytes makes room
        (`plugin.limiting`), as far as it can be had again: whether it can, is asked with the hosts and credentials of
        `registry`.

        `InvalidArgument`: a tenant's name or a path that cannot be, or one that is there twice; no such size.
        """
        if not listens:
            raise InvalidArgument("a server needs a socket")
        if max_size is not None and (not isinstance(max_size, int) or max_size < 0):
            raise InvalidArgument(f"a store cannot be kept below {max_size!r:.40} bytes")
        names = [*(listen.tenant for listen in listens), *(str(listen.path) for listen in listens if listen.path)]
        for name, count in Counter(names).items():
            if count > 1:
                raise InvalidArgument(f"{name} is named {count} times: each socket is a tenant of its own")
        self.metrics = Metrics()
        self.max_streams = max_streams if max_streams is not None else _streams_that_fit()
        self._store = store
        self._listens = listens
        self._references = References(store.metadata)
        self._registry = registry or default_registry()
        self._lazy = LazyBlobs(store, self._registry, self.metrics, linger=LINGER_SECONDS)
        self._remembered = Remembered.of(store)
        self._sweeper = Sweeper(store, self._references, self._lazy)
        self._asking: Registry | None = None
        self._limiter: Limiter | None = None
        if max_size is not None:
            self._asking = self._registry.with_settings(HASTY)
            obtaining = Obtaining(self._asking, told=self.metrics.count_asked)
            self._limiter = Limiter(store, max_size, self._lazy, self.metrics, obtaining)
        self._places: list[_Place] = []
        self._serving: Serving | None = None
        self._started = False

    def start(self) -> None:
        """Listen on every socket, or on none. `AlreadyExists`: another server does; `ResourceExhausted`: no thread is
        to be had; errors of the file system."""
        self._store.metadata.reserve()
        try:
            self._serving = serving = Serving()
            for number, listen in enumerate(self._listens):
                place = self._place(listen)
                if self._remembered is not None:
                    self.metrics.counted_by(listen.tenant, self._remembered.counts(number))
                self._places.append(place)
                serving.add(place.listener, place.services, max(1, self.max_streams // len(self._listens)))
            if self._remembered is not None:
                serving.answer(self._remembered.answers)
            serving.start()
            for place in self._places:
                if place.file is not None:
                    place.file.publish()
            self._started = True
            self._sweeper.start()
            if self._limiter is not None:
                self._limiter.start()
        except BaseException as error:
            try:
                self.stop(0)
            except Exception:  # of what had half begun; the first error is the one to tell
                _logger.warning("what had started could not be ended", exc_info=True)
            if type(error) is RuntimeError:  # of a thread that does not start
                raise ResourceExhausted(f"no thread to be had: {error}") from error
            raise
        self.metrics.gauge("blobtee_ingests", "Unfinished blobs.", self._ingests)
        self.metrics.gauge("blobtee_connections", "Connections of clients.", lambda: {"": serving.stats().connections})
        self.metrics.gauge(
            "blobtee_message_bytes", "Bytes of requests in memory.", lambda: {"": serving.stats().buffered}
        )
        self.metrics.gauge(
            "blobtee_refused_rpcs", "RPCs above the limit so far.", lambda: {"": serving.stats().refused}
        )

    def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Take no more RPCs, give those under way `grace` seconds, then cancel them. A second call does nothing.

        What a cancelled write brought is kept and can be resumed.
        """
        for place in self._places:
            if place.file is not None:
                place.file.remove()
            place.health.stop()
        self._places.clear()
        if self._serving is not None:
            self._serving.stop(grace)
            self._serving = None
        if self._remembered is not None:
            self._remembered.answers.clear()
        if self._started:
            self._started = False
            self._sweeper.stop()
            if self._limiter is not None:
                self._limiter.stop()
        if self._asking is not None:
            self._asking.close()
        self._lazy.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(0)

    def _place(self, listen: Listen) -> _Place:
        tally = self.metrics.of(listen.tenant)
        tenant = Tenant(
            listen.tenant, self._store, self._references, self._lazy, observer=tally, on_delete=self._sweeper.wake
        )
        health = HealthService([content.SERVICE, control.SERVICE])
        services = (
            ContentService(tenant, tally, tenant.is_here, self._remembered or NOTHING),
            health,
            ControlService(self._store, self._lazy, self._registry, tally),
        )
        if listen.inherited is not None:
            return _Place(listen.inherited, services, health, None)
        assert listen.path is not None
        file = SocketFile(listen.path, mode=listen.mode, group=listen.group)
        return _Place(file.listen(), services, health, file)

    def _ingests(self) -> dict[str, float]:
        try:
            counts = {listen.tenant: 0 for listen in self._listens}
            for status in self._store.statuses():
                tenant = status.ref.split("/")[1] if status.ref.startswith("tenant/") else ""
                if tenant in counts:
                    counts[tenant] += 1
        except BlobteeError:
            return {}
        return {f'tenant="{tenant}"': count for tenant, count in counts.items()}


def _streams_that_fit() -> int:
    """Raise the soft limit on descriptors to the hard one, and say how many streams that and the limits on threads are
    enough for."""
    return max(16, min(_by_descriptors(), *(limit - _THREADS_OF_OURS for limit in _limits_on_threads())))


def _limits_on_threads() -> Iterator[int]:
    """Those of the user (getrlimit(2)) and of the control group, version 1 or 2 (kernel, cgroup-v2.rst)."""
    yield _MOST_STREAMS
    if (own := resource.getrlimit(resource.RLIMIT_NPROC)[0]) != resource.RLIM_INFINITY and os.geteuid() != 0:
        yield own
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "pids"):
                with suppress(OSError, ValueError):  # "max" is no number
                    yield int((_CGROUPS / controllers / group.lstrip("/") / "pids.max").read_text())


def _by_descriptors() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if hard == resource.RLIM_INFINITY:
        return _MOST_STREAMS
    return (hard - _FDS_OF_OURS) // _FDS_OF_A_STREAM
