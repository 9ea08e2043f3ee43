"""Asking a server that runs, from another process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blobtee.content.proxy.connection import Connection, Methods
from blobtee.oci import Descriptor, Digest
from blobtee.wire import content, health
from blobtee.wire.control import SERVICE, messages

_METHODS = Methods(SERVICE, unary={"Pull": messages.PullResponse})
_HEALTH = Methods(health.SERVICE, unary={"Check": health.messages.HealthCheckResponse})
_SECONDS = 600.0
"""For a manifest and a config, from a registry that asks for patience."""


@dataclass(frozen=True)
class Pulled:
    """An image that a server knows: its manifest's digest and media type. `platform` is empty where it names none."""

    name: str
    digest: Digest
    media_type: str
    platform: str
    layers: Sequence[Descriptor]


def pull_lazily(socket: str | os.PathLike[str], image: str, platform: str = "") -> Pulled:
    """Make an image of a registry known to the `blobtee serve` at `socket`; its tenants then find its blobs present.

    The server signs in as its own files say. `ConnectionFailed`: nobody serves there. `Unimplemented`: it is not
    blobtee. The rest is as for `transfer.pull`, each error as its kind.
    """
    connection = Connection(Path(socket).absolute(), _METHODS, _SECONDS)
    try:
        request = messages.PullRequest(image=image, platform=platform)
        answer = connection.ask("Pull", request, f"make {image} known to the server")
    finally:
        connection.close()
    layers = [Descriptor(layer.media_type, Digest(layer.digest), layer.size) for layer in answer.layers]
    return Pulled(answer.name, Digest(answer.digest), answer.media_type, answer.platform, layers)


def is_serving(socket: str | os.PathLike[str], timeout: float = 3.0) -> bool:
    """Whether a content service answers at `socket` and takes calls; False also while it drains.

    `ConnectionFailed`: nobody serves there. `Unimplemented`: it has no health service, so it is not blobtee.
    `DeadlineExceeded` after `timeout` seconds.
    """
    connection = Connection(Path(socket).absolute(), _HEALTH, timeout)
    try:
        request = health.messages.HealthCheckRequest(service=content.SERVICE)
        answer = connection.ask("Check", request, "ask for its health")
    finally:
        connection.close()
    return bool(answer.status == health.SERVING)
