"""Where images come from and go to, as `transfer` sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from blobtee import tasks
from blobtee.content import Provider, ReaderAt, digester
from blobtee.content.digester import digest_of
from blobtee.errors import DigestMismatch, InvalidDocument, SizeMismatch
from blobtee.oci import Descriptor, Digest, Index, Manifest, Platform

_PIECE = 1 << 20
MAX_DEPTH = 4
"""Indexes within indexes that are followed."""


@dataclass(frozen=True)
class Moved:
    """What became of one blob: `exists`, `mounted` (from repository `source`), `uploaded`, `copied` or `skipped`
    (a foreign layer, which no registry holds). `nbytes` were moved for it."""

    descriptor: Descriptor
    how: str
    nbytes: int = 0
    source: str = ""


@dataclass(frozen=True)
class Report:
    """What a push or copy did. `name` is where the image is now, `descriptor` its manifest's or index's.

    `dropped`: what a conversion left out of indexes, because it speaks of an image that is another now.
    """

    name: str
    descriptor: Descriptor
    blobs: tuple[Moved, ...]
    dropped: tuple[Descriptor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of blobs that were moved; mounted ones are none."""
        return sum(blob.nbytes for blob in self.blobs)

    def count(self, how: str) -> int:
        return sum(blob.how == how for blob in self.blobs)


class Documents(Protocol):
    """Manifests and indexes by their descriptors."""

    def document(self, desc: Descriptor) -> Manifest | Index:
        """A manifest or index, its bytes checked. `NotFound`, `DigestMismatch`."""
        ...


class Source(Provider, Documents, AbstractContextManager["Source"], Protocol):
    """An image to be read. Thread-safe. `reader_at` (see `Provider`) reads blobs and promises nothing of their bytes:
    who takes them checks them."""

    @property
    def name(self) -> str:
        """The name under which the image is known there; "" when it has none."""
        ...

    def root(self) -> Descriptor:
        """The manifest or index that the address names. `NotFound`."""
        ...

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        """Repositories of the registry `host` that are known to hold a blob."""
        ...


class Sink(AbstractContextManager["Sink"], Protocol):
    """Where an image goes. What was put is only seen under its name after `finish`; leaving the block before that
    throws away what can be thrown away."""

    @property
    def at_once(self) -> int:
        """Blobs that may be put at the same time."""
        ...

    @property
    def single(self) -> bool:
        """Holds images of one platform only, never an index."""
        ...

    def blob(self, desc: Descriptor, source: Source) -> Moved: ...

    def document(self, document: Manifest | Index) -> None:
        """Keep a document that is not the root; what it names is there already."""
        ...

    def finish(self, document: Manifest | Index, source: Source) -> str:
        """Keep the root document and give it its name; where it is now."""
        ...


def whole(documents: Documents, root: Descriptor, platform: Platform | None) -> list[Manifest | Index]:
    """The root document and all below it, each before those that name it: the root is last.

    With `platform`, an index stands for its one image. `NotFound` when there is none.
    """
    document = documents.document(root)
    if platform is not None:
        return [select(documents, document, platform)]
    found: dict[Digest, Manifest | Index] = {}
    _collect(documents, document, found, depth=0)
    return list(found.values())


def select(documents: Documents, document: Manifest | Index, platform: Platform) -> Manifest:
    """The image for `platform`: an index, and an index in it, is looked through."""
    for _ in range(MAX_DEPTH):
        if isinstance(document, Manifest):
            return document
        document = documents.document(document.select(platform))
    raise too_deep()


def _collect(
    documents: Documents, document: Manifest | Index, found: dict[Digest, Manifest | Index], depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise too_deep()
    if isinstance(document, Index):
        for member in document.manifests:
            tasks.check()
            if member.digest not in found:
                _collect(documents, documents.document(member), found, depth + 1)
    found[document.digest] = document


def too_deep() -> InvalidDocument:
    """For documents that go deeper than anything real does."""
    return InvalidDocument(f"indexes within indexes, more than {MAX_DEPTH} deep")


def pieces(reader: ReaderAt, desc: Descriptor) -> Iterator[memoryview]:
    """The bytes of a blob in order, in pieces of at most 1 MiB that are valid until the next; counted and hashed.

    The last thing that happens is the check: `SizeMismatch`, `DigestMismatch`. So nothing may be made of the bytes
    before the iterator has ended. Counts progress, and ends with `Cancelled` between two pieces.
    """
    hasher = digester(desc.digest.algorithm)
    total = 0
    buffer = bytearray(min(_PIECE, desc.size + 1))
    with tasks.meter(desc.digest, "copy", desc.size) as progress, reader.open() as stream, memoryview(buffer) as view:
        while True:
            tasks.check()
            n = stream.readinto(buffer) or 0
            total += n
            if not n or total > desc.size:
                break
            with view[:n] as piece:
                hasher.update(piece)
                yield piece
            progress.advance(n)
        if total != desc.size:
            raise SizeMismatch(f"blob {desc.digest}", desc.size, total)
        actual = digest_of(desc.digest.algorithm, hasher)
        if actual != desc.digest:
            raise DigestMismatch(f"blob {desc.digest}", desc.digest, actual)


def run(source: Source, sink: Sink, documents: Sequence[Manifest | Index]) -> Report:
    """Bring everything that `documents` (of `whole`) need from `source` to `sink`: blobs first, the root last.

    The first error cancels what else is under way and is raised.
    """
    blobs = {blob.digest: blob for document in documents if isinstance(document, Manifest) for blob in document.blobs}
    with tasks.Group(sink.at_once, name="blobtee-transfer") as group:
        moved = [group.spawn(sink.blob, blob, source) for blob in blobs.values()]
    for document in documents[:-1]:
        tasks.check()
        sink.document(document)
    root = documents[-1]
    name = sink.finish(root, source)
    return Report(name, root.descriptor, tuple(task.result() for task in moved))
