"""Registries as source and sink."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence

from blobtee.content import Provider, ReaderAt
from blobtee.errors import InvalidArgument, NotFound
from blobtee.oci import Descriptor, Index, Manifest, Reference, mediatypes
from blobtee.registry import BlobSource, Registry
from blobtee.transfer.places import Moved, Source

_lock = threading.Lock()
_default: Registry | None = None


def default_registry() -> Registry:
    """The client that is used when the caller brings none: one for the process, closed when that ends."""
    global _default
    with _lock:
        if _default is None:
            _default = Registry()
            atexit.register(_default.close)
        return _default


class RemoteSource:
    """An image in a registry."""

    def __init__(self, registry: Registry, reference: Reference) -> None:
        self.reference = reference
        self._repository = registry.repository(reference)
        self._root: Manifest | Index | None = None

    @property
    def name(self) -> str:
        return str(self.reference)

    def fetch_root(self) -> None:
        """Have the root document at once, not first its digest: a round trip less, for who has not got it already."""
        self._root = self._repository.resolved()

    def root(self) -> Descriptor:
        return self._repository.resolve() if self._root is None else self._root.descriptor

    def document(self, desc: Descriptor) -> Manifest | Index:
        if self._root is not None and self._root.digest == desc.digest:
            return self._root
        return self._repository.document(desc)

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        return self._repository.reader_at(desc)

    def source(self, desc: Descriptor) -> BlobSource:
        return self._repository.source(desc)

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        return [self.reference.repository] if host == self.reference.host else []

    def __enter__(self) -> RemoteSource:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class RemoteSink:
    """A repository to push to, under the reference's tag; its digest, when there is one, must come out."""

    at_once = 8
    single = False

    def __init__(self, registry: Registry, reference: Reference) -> None:
        self.reference = reference
        self._repository = registry.repository(reference)

    def blob(self, desc: Descriptor, source: Source) -> Moved:
        if desc.urls and mediatypes.is_nondistributable(desc.media_type):
            return Moved(desc, "skipped")
        sources = source.repositories(desc, self.reference.host)
        pushed = self._repository.push(desc, source, mount_from=sources)
        return Moved(desc, pushed.how, pushed.nbytes, pushed.source)

    def document(self, document: Manifest | Index) -> None:
        self._repository.push_document(document)

    def finish(self, document: Manifest | Index, source: Source) -> str:
        wanted = self.reference.digest
        if wanted is not None and wanted != document.digest:
            raise InvalidArgument(f"{self.reference}: the image to push is {document.digest}; leave the digest away")
        self._repository.push_document(document, self.reference.tag or None)
        return str(self.reference if self.reference.tag else self.reference.with_digest(document.digest))

    def __enter__(self) -> RemoteSink:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Repositories:
    """A `Provider` over several repositories that may hold a blob: the first that has it brings it."""

    def __init__(self, registry: Registry, references: Sequence[Reference]) -> None:
        self._open = [registry.repository(reference) for reference in references]

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        *others, last = self._open
        for repository in others:
            # A reader asks nothing before its first read, so whether the blob is there has to be asked for.
            try:
                if repository.stat(desc.digest) is not None:
                    return repository.reader_at(desc)
            except NotFound:
                continue
        return last.reader_at(desc)

    def source(self, desc: Descriptor) -> BlobSource:
        """The blob at all of them, asked in their order."""
        first, *others = [repository.source(desc) for repository in self._open]
        return first.joined(others)


def opener(registry: Registry | None, references: Sequence[Reference]) -> Callable[[object], Provider]:
    """The `provider` of a `Handler`: nothing is opened before the first blob is asked for."""

    def provider(session: object) -> Provider:
        return Repositories(registry or default_registry(), references)

    return provider
