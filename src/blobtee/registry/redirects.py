"""Where a host has sent us for a blob: the signed address of storage, good for some minutes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from blobtee.registry.transport import Url

MOST = 1000
"""Blobs of one host that are remembered; those that were asked for last."""


class Redirects:
    """Of one host, for all its readers: each would otherwise ask the way anew. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Url, Url] = OrderedDict()

    def get(self, url: Url) -> Url | None:
        """Where `url` led to last; None when it leads nowhere else, or nobody knows."""
        with self._lock:
            target = self._known.get(url)
            if target is not None:
                self._known.move_to_end(url)
            return target

    def remember(self, url: Url, target: Url) -> None:
        with self._lock:
            self._known[url] = target
            self._known.move_to_end(url)
            if len(self._known) > MOST:
                self._known.popitem(last=False)

    def forget(self, url: Url, target: Url) -> None:
        """`target` works no more; a newer one than that is left alone."""
        with self._lock:
            if self._known.get(url) == target:
                del self._known[url]
