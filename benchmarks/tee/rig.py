"""The rig as the measuring process has it: a registry that counts, slow links to it, and blobs to read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from benchmarks.tee.origin import REPOSITORY
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Hosts, NoCredentials, Registry, Repository


@dataclass(frozen=True)
class Count:
    """What the registry saw. `nbytes` are body bytes, `layers` those of layers alone."""

    requests: int
    nbytes: int
    layers: int
    connections: int


@dataclass
class Link:
    """A slow way to the registry. `host` is what goes into references."""

    rig: Rig
    host: str
    port: int

    @property
    def moved(self) -> int:
        """Bytes that came down it."""
        return int(self.rig.do("moved", port=self.port)["nbytes"])


class Rig:
    """Context manager; the registry's process ends with it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.tee.origin"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.host: str = self.do("hello")["host"]
        self.registry = client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.registry.close()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        """See `origin.Origin`."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def blob(self, size: int, seed: int = 0) -> Descriptor:
        return Descriptor("application/octet-stream", Digest(self.do("blob", size=size, seed=seed)["digest"]), size)

    def link(self, *, delay: float = 0.0, rate: float | None = None) -> Link:
        """`delay` seconds each way, `rate` bytes a second."""
        answer = self.do("link", delay=delay, rate=rate)
        return Link(self, answer["host"], answer["port"])

    def repository(self) -> Repository:
        return self.registry.repository(f"{self.host}/{REPOSITORY}")

    def reset(self) -> None:
        self.do("reset")

    def count(self) -> Count:
        """Since the last `reset`; exact for answers that were read."""
        entries = self.do("log")["entries"]
        return Count(
            len(entries),
            sum(sent for _, sent, _ in entries),
            sum(sent for kind, sent, _ in entries if kind == "blob"),
            len({connection for *_, connection in entries}),
        )


def client() -> Registry:
    """A client that reads no file of this machine."""
    return Registry(hosts=Hosts(()), credentials=NoCredentials(), environ={})
