"""Remotes: descriptors together with a provider that brings what is not in the store yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobtee.cache import converting, labels, unlazy
from blobtee.cache.handlers import Means
from blobtee.compression import Compression, Type, from_media_type
from blobtee.content.api import Info, ReaderAt
from blobtee.content.trust import Trust
from blobtee.errors import DataLoss, InvalidArgument, NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.tasks import Group

if TYPE_CHECKING:
    from blobtee.cache.ref import Ref

MAX_REMOTES = 256
"""Remotes that `get_remotes(all=True)` gives at most: the combinations of variants multiply with each layer."""

AT_ONCE = 16
"""Blobs that one `unlazy()` brings at a time; the registry has limits of its own for each host."""


@dataclass(frozen=True)
class RefConfig:
    """How the layers of a remote are wanted.

    `prefer_nondistributable` leaves foreign layers foreign, and with urls, unless a forced compression has to convert
    them. `epoch` (Unix seconds, as `SOURCE_DATE_EPOCH`): no file is younger in blobs that are made of directories;
    blobs that are there already, those of images above all, stay as they are.
    """

    compression: Compression = field(default_factory=Compression)
    prefer_nondistributable: bool = False
    epoch: int | None = None

    def __post_init__(self) -> None:
        if self.epoch is not None and (type(self.epoch) is not int or not 0 <= self.epoch < 2**63):
            raise InvalidArgument(f"an epoch is a whole number of seconds since 1970, not {self.epoch!r:.40}")


@dataclass(frozen=True)
class Remote:
    """`descriptors` are base to top; `provider` reads each of them."""

    descriptors: tuple[Descriptor, ...]
    provider: LazyMultiProvider

    def unlazy(self, *, at_once: int = AT_ONCE) -> None:
        """Bring every blob that is not in the store, `at_once` at a time.

        The first error cancels the others and is raised; what was brought so far stays, and a partial blob is resumed
        by the next attempt. Errors are those of `LazyProvider.unlazy`.
        """
        self.provider.unlazy(at_once=at_once)


class LazyProvider:
    """Brings one blob: from the store, or from where it is. Thread-safe.

    `origin` is given for variants: the layer's own blob, of which the variant is made again when it is gone.
    """

    def __init__(self, ref: Ref, desc: Descriptor, means: Means, origin: LazyProvider | None = None) -> None:
        self.ref = ref
        self.desc = desc
        self.means = means
        self.origin = origin

    def reader_at(self, desc: Descriptor, trust: Trust = Trust.BLOB) -> ReaderAt:
        """A reader of the blob, whose bytes satisfy `trust`. `NotFound` for any other digest.

        A blob that somebody can bring is not waited for: its reads bring what they need (`tee.TeeReader`). One that has
        to be made again is made first.
        """
        self._require(desc.digest)
        store = self.ref.manager.store
        reader = unlazy.reader_at(self.ref, self.desc, self.means, trust)
        if reader is None:
            self.unlazy()
            try:
                reader = store.reader_at(desc)
            except NotFound:  # somebody made room between the two
                reader = unlazy.reader_at(self.ref, self.desc, self.means, trust) or store.reader_at(desc)
        return reader

    def info(self, digest: str) -> Info:
        """What the store knows; of a lazy blob, digest and size only. Nothing is fetched."""
        self._require(digest)
        try:
            return self.ref.manager.store.info(digest)
        except (NotFound, DataLoss):
            brought = self.desc.digest in self.means.handlers or self.ref.can_make(self.desc.digest)
            if not brought and self.origin is None:
                raise
            return Info(self.desc.digest, self.desc.size)

    def unlazy(self) -> None:
        """Bring the blob into the store unless it is there (`unlazy.unlazy`).

        A variant that is gone, and that no handler brings, is made again; `NotFound` when that gives other bytes.
        """
        if self.origin is None or self.desc.digest in self.means.handlers:
            unlazy.unlazy(self.ref, self.desc, self.means)
        elif not self.ref.manager.has_all_of(self.desc):
            self._make_again(self.origin)

    def _make_again(self, origin: LazyProvider) -> None:
        kind = Type.ESTARGZ if labels.TOC_DIGEST in self.desc.annotations else from_media_type(self.desc.media_type)
        made = converting.variant(self.ref, origin.desc, Compression(kind), True, self.means)
        if made.digest != self.desc.digest:
            raise NotFound(f"variant {self.desc.digest} of layer {origin.desc.digest} is not in the store any more")

    def _require(self, digest: str) -> None:
        if digest != self.desc.digest:
            raise NotFound(f"{digest} is not here, only {self.desc.digest} is")


class LazyMultiProvider:
    """The providers of a remote's layers, by digest."""

    def __init__(self, providers: Sequence[LazyProvider]) -> None:
        self._all = tuple(providers)
        self._by_digest: dict[Digest, LazyProvider] = {provider.desc.digest: provider for provider in self._all}

    def reader_at(self, desc: Descriptor, trust: Trust = Trust.BLOB) -> ReaderAt:
        """A reader of one of the blobs (`LazyProvider.reader_at`). `NotFound`: not one of them."""
        return self._find(desc.digest).reader_at(desc, trust)

    def info(self, digest: str) -> Info:
        """What is known of one of the blobs, without fetching it. `NotFound`: not one of them."""
        return self._find(digest).info(digest)

    def unlazy(self, *, at_once: int = AT_ONCE) -> None:
        """See `Remote.unlazy`."""
        with Group(at_once, name="unlazy") as group:
            for provider in self._all:
                group.spawn(provider.unlazy)

    def _find(self, digest: str) -> LazyProvider:
        provider = self._by_digest.get(Digest(digest))
        if provider is None:
            raise NotFound(f"{digest} is none of the remote's blobs")
        return provider
