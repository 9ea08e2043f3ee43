"""`blobtee.control.v1.Control`: making an image known to a server that runs."""

from __future__ import annotations

import logging
from typing import Any

from blobtee import transfer
from blobtee.content import LocalStore
from blobtee.core import H2Call
from blobtee.plugin import calls
from blobtee.plugin.lazy import LazyBlobs
from blobtee.plugin.observer import Observer
from blobtee.registry import Registry
from blobtee.wire.control import SERVICE, messages
from blobtee.wording import counted

_logger = logging.getLogger(__name__)


class ControlService(calls.Service):
    """Serves `store`, with what `registry` is told of hosts and credentials. Both stay the caller's."""

    def __init__(self, store: LocalStore, lazy: LazyBlobs, registry: Registry, observer: Observer) -> None:
        self._store = store
        self._lazy = lazy
        self._registry = registry
        pull = calls.unary("Pull", observer, messages.PullRequest, self._pull)
        super().__init__(SERVICE, {"Pull": pull})

    def _pull(self, request: Any, call: H2Call) -> Any:
        """Fetch the image's documents, give it its name, and make its layers known."""
        with calls.ending_with(call):
            known = transfer.know(
                request.image, self._store, platform=request.platform or None, registry=self._registry
            )
        layers = known.manifest.layers
        self._lazy.know(layers, known.source)
        _logger.info("knows %s, %s", known.name, counted(len(layers), "layer"))
        return messages.PullResponse(
            name=known.name,
            digest=known.descriptor.digest,
            media_type=known.descriptor.media_type,
            platform=str(known.platform or ""),
            layers=[
                messages.Layer(digest=layer.digest, size=layer.size, media_type=layer.media_type) for layer in layers
            ],
        )
