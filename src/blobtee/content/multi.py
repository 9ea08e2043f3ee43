"""Several providers as one."""

from __future__ import annotations

import threading

from blobtee.content.api import Info, InfoProvider, Provider, ReaderAt
from blobtee.errors import NotFound
from blobtee.oci import Descriptor, Digest


class MultiProvider:
    """`Provider` and `InfoProvider` over others: a digest's own provider first, then the common ones in their order.

    The next is asked only after `NotFound`; any other error of one is the answer. Thread-safe. Owns none of them.
    """

    def __init__(self, *providers: Provider) -> None:
        self._lock = threading.Lock()
        self._providers = providers
        self._own: dict[Digest, tuple[Provider, ...]] = {}

    def add(self, digest: str, provider: Provider) -> None:
        """Ask `provider` for `digest`, before those added earlier and before the common ones."""
        key = Digest(digest)
        with self._lock:
            self._own[key] = (provider, *self._own.get(key, ()))

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        for provider in self._for(desc.digest):
            try:
                return provider.reader_at(desc)
            except NotFound:
                continue
        raise NotFound(f"nobody here brings blob {desc.digest}")

    def info(self, digest: str) -> Info:
        """What the first that knows the blob says; providers that cannot say anything are passed over."""
        for provider in self._for(digest):
            if isinstance(provider, InfoProvider):
                try:
                    return provider.info(digest)
                except NotFound:
                    continue
        raise NotFound(f"nobody here knows blob {digest}")

    def _for(self, digest: str) -> tuple[Provider, ...]:
        with self._lock:
            return (*self._own.get(Digest(digest), ()), *self._providers)
