"""The registry of the rig, in a process of its own: what it costs must not be in anybody's ratios.

It does what lines of JSON on standard input say, answers each with a line, and ends with its input.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.tee.link import Link
from blobtee.testing import Generated, MemoryRegistry

REPOSITORY = "bench/tee"


class Origin:
    """Each public method is a command; its arguments and its answer are JSON."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._registry = registry
        self._links: dict[int, Link] = {}

    def hello(self) -> dict[str, Any]:
        return {"host": self._registry.host}

    def blob(self, size: int, seed: int) -> dict[str, Any]:
        """Have a blob of bytes that are the same for the same seed; it takes no room."""
        return {"digest": self._registry.add_blob(REPOSITORY, Generated(size, seed=seed))}

    def link(self, delay: float, rate: float | None) -> dict[str, Any]:
        """Another way to the registry: a slow one."""
        link = Link(int(self._registry.host.rpartition(":")[2]), delay=delay, rate=rate)
        self._links[link.port] = link
        return {"host": f"127.0.0.1:{link.port}", "port": link.port}

    def moved(self, port: int) -> dict[str, Any]:
        """Bytes that came down a link so far."""
        return {"nbytes": self._links[port].moved}

    def log(self) -> dict[str, Any]:
        """Every request since the last `reset`: kind, body bytes sent, number of its connection."""
        return {"entries": [(each.kind, each.sent, each.connection) for each in self._registry.entries()]}

    def reset(self) -> dict[str, Any]:
        self._registry.reset()
        return {}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="blobtee-origin-") as folder, MemoryRegistry(root=folder) as registry:
        origin = Origin(registry)
        for line in sys.stdin:
            command = json.loads(line)
            do: Callable[..., dict[str, Any]] = getattr(origin, command.pop("do"))
            print(json.dumps(do(**command)), flush=True)


if __name__ == "__main__":
    main()
