"""One layer of a tree: how its contents are known, and with how little of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blobtee.content import PartialProvider, Provider, ReaderAt, Trust
from blobtee.content.partial import reader_at
from blobtee.errors import TooLarge
from blobtee.image.index import bounded
from blobtee.layers import Entry
from blobtee.oci import Compressed, Descriptor, layer_compression
from blobtee.seeking import Contents, tables, whole
from blobtee.seeking.kept import Shelf
from blobtee.tasks import SingleFlight


@dataclass(frozen=True)
class Layer:
    """What is known of a layer, and the trust that a reader has to be opened with to read its files."""

    desc: Descriptor
    provider: Provider | PartialProvider
    contents: Contents
    needs: Trust

    def reader(self) -> ReaderAt:
        """A reader for `contents`; the caller closes it."""
        return reader_at(self.provider, self.desc, self.needs)


class LayerReader:
    """Finds out what a layer holds, once. Thread-safe.

    With `Trust.BLOB` its tar alone says so, or what was kept of it when it was read before. With less, a table of
    contents does whose digest the layer's annotations have; one that is broken counts as none. With `RAW`, the headers
    of a tar that is not packed are walked before anything is proven.
    """

    def __init__(
        self, desc: Descriptor, provider: Provider | PartialProvider, trust: Trust, shelf: Shelf | None = None
    ) -> None:
        """`shelf` is where what is found out is kept, and looked for first."""
        self.desc = desc
        self._provider = provider
        self._trust = trust
        self._shelf = shelf
        self._layer: Layer | None = None
        self._finding: SingleFlight[None, Layer] = SingleFlight()

    def layer(self) -> Layer:
        """Errors as for `seeking.whole.contents`, and the provider's."""
        return self._layer if self._layer is not None else self._finding.do(None, self._find)

    def _find(self) -> Layer:
        if self._layer is None:
            kept = self._kept()
            if kept is not None and kept.needs is Trust.RAW:
                self._layer = kept  # proves all that is read with it, and more than a table does
            else:
                self._layer = self._by_table() or kept or self._by_tar()
        return self._layer

    def _kept(self) -> Layer | None:
        if self._shelf is None or (contents := self._shelf.load(self.desc)) is None:
            return None
        try:
            _check(contents)
        except TooLarge:
            return None
        needs = Trust.RAW if contents.stream.proof is Trust.BLOB else Trust.BLOB
        return Layer(self.desc, self._provider, contents, needs)

    def _by_table(self) -> Layer | None:
        if not Trust.ATTESTED.satisfies(self._trust) or not tables.is_told(self.desc):
            return None
        try:
            with reader_at(self._provider, self.desc, Trust.RAW) as reader:
                contents = tables.contents(self.desc, reader)
            _check(contents)
        except tables.UNUSABLE:
            return None  # the layer itself is proven by another digest
        return Layer(self.desc, self._provider, contents, Trust.RAW)

    def _by_tar(self) -> Layer:
        plain = layer_compression(self.desc.media_type) is Compressed.NONE
        needs = Trust.RAW if plain and self._trust is Trust.RAW else Trust.BLOB
        with reader_at(self._provider, self.desc, needs) as reader:
            contents = whole.contents(reader, self.desc.media_type, _taken)
        if self._shelf is not None and contents.told is Trust.BLOB:
            self._shelf.keep(self.desc, contents)
        return Layer(self.desc, self._provider, contents, needs)


def _check(contents: Contents) -> None:
    for _ in bounded(contents.entries):
        pass


def _taken(entries: Iterator[Entry]) -> Iterator[Entry]:
    return (entry.detached() for entry in bounded(entries))
