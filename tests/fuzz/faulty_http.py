"""The same over HTTP: a registry whose answers are wrong in the ways that those of real ones have been."""

from __future__ import annotations

import random
import threading

from blobtee.registry import Registry, Settings
from blobtee.tee import Source
from blobtee.testing import Answer, MemoryRegistry, Request
from tests.fuzz.faulty import DATA, DESC

REPOSITORY = "a/b"
HASTY = Settings(stall=0.1, backoff=0.002, patience=1.0, attempts=3, takeover=200_000)
"""For a client that gives up soon, and takes connections over in some of what is read."""


class HostileRegistry:
    """`registry` has the blob from now on, and its answers are what `seed` says; `client` asks."""

    def __init__(self, registry: MemoryRegistry, client: Registry, seed: int) -> None:
        self.asked = 0
        self._repository = client.repository(f"{registry.host}/{REPOSITORY}")
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        registry.add_blob(REPOSITORY, DATA)
        registry.fault(self._fault)

    def source(self) -> Source:
        return self._repository.source(DESC)

    def _fault(self, request: Request) -> Answer | None:
        with self._lock:
            self.asked += 1
            draw = random.Random(self._draw.random())
        start, end = _range(request)
        within = draw.randrange(end - start)
        last = end - 1
        return draw.choices(
            [
                None,
                Answer(cut=within),
                Answer(cut=within, stall=True),
                Answer(status=draw.choice((429, 500, 502, 503))),
                Answer(status=draw.choice((401, 403, 404, 416, 501))),
                Answer(ignore_range=True),
                Answer(headers={"Content-Range": f"bytes {start + 1}-{last}/{len(DATA)}"}),
                Answer(headers={"Content-Range": f"bytes {start}-{last}/*"}),
                Answer(headers={"Content-Range": None}),
                Answer(headers={"Content-Encoding": "gzip"}),
                Answer(headers={"ETag": f'"{draw.random()}"'}),
                Answer(body=DATA[start:last]),
                Answer(body=DATA[start:end] + b"more"),
                Answer(body=_spoiled(DATA[start:end], within)),
                Answer(delay=draw.random() * 0.01),
            ],
            [60, 12, 1, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1, 4, 6],
        )[0]


def _range(request: Request) -> tuple[int, int]:
    """Half-open; the whole blob without one."""
    first, _, last = request.headers.get("range", f"bytes=0-{len(DATA) - 1}").removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1


def _spoiled(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
