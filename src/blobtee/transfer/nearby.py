"""A source whose blobs are read from a store where that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blobtee.cache import MetadataStore
from blobtee.cache import labels as cache_labels
from blobtee.content import ReaderAt
from blobtee.errors import DataLoss, NotFound, SizeMismatch
from blobtee.oci import Descriptor, Digest, Index, Manifest
from blobtee.transfer.places import Source


class Nearby:
    """`source` stays open when this is left."""

    def __init__(self, source: Source, store: MetadataStore) -> None:
        self._source = source
        self._store = store

    @property
    def name(self) -> str:
        return self._source.name

    def root(self) -> Descriptor:
        return self._source.root()

    def document(self, desc: Descriptor) -> Manifest | Index:
        return self._source.document(desc)

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        try:
            return self._store.reader_at(desc)
        except (NotFound, DataLoss, SizeMismatch):
            return self._source.reader_at(desc)

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        known = labels_of(self._store, desc.digest)
        return [*self._source.repositories(desc, host), *cache_labels.repositories(known, host)]

    def __enter__(self) -> Nearby:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def labels_of(store: MetadataStore, digest: Digest) -> Mapping[str, str]:
    """The labels of a blob; none when it is not there."""
    try:
        return store.info(digest).labels
    except (NotFound, DataLoss):
        return {}
