"""An image that a store knows: its documents, and the ref of its layers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from blobtee.cache import LazyMultiProvider, Ref, RefConfig, Remote
from blobtee.content import LocalStore, Store, Trust
from blobtee.image.filling import Filling
from blobtee.image.index import Node
from blobtee.image.prefetch import Prefetched, several
from blobtee.image.tree import ContentFile, Tree
from blobtee.oci import Config, Descriptor, Manifest, Platform
from blobtee.seeking.kept import Shelf
from blobtee.tasks import bandwidth_of


@dataclass(frozen=True)
class Image:
    """One platform's image. `descriptor` is the manifest's; `ref` has its layers (None for an image without any).

    Reading files unlazies the layers that are needed, from the top, and no others; with a `trust` of less than `BLOB`
    it brings only the parts that are needed, where that can be (`docs/formats.md`). Release it with `close()` or as a
    context manager.
    """

    name: str
    descriptor: Descriptor
    manifest: Manifest
    config: Config
    ref: Ref | None
    store: Store
    platform: Platform | None = None

    _trees: dict[Trust, Tree] = field(default_factory=dict, init=False, repr=False, compare=False)
    _fillings: list[Filling] = field(default_factory=list, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def get_remote(self, create_if_needed: bool = False, config: RefConfig | None = None) -> Remote:
        """The layers as descriptors, base to top, with a provider that brings what is lazy: see `Ref.get_remote`. Of an
        image without layers it has none."""
        if self.ref is None:
            return Remote((), LazyMultiProvider(()))
        return self.ref.get_remote(create_if_needed, config)

    @property
    def tree(self) -> Tree:
        """The merged tree of all layers, with the trust that is the default."""
        return self.tree_of(Trust.BLOB)

    def tree_of(self, trust: Trust | str) -> Tree:
        """The merged tree of all layers; what it gives satisfies `trust`. What it learns of a layer is kept as long as
        the image. `InvalidArgument`: no such trust."""
        trust = Trust.parse(trust)
        with self._lock:
            if trust not in self._trees:
                self._trees[trust] = self._new_tree(trust)
            return self._trees[trust]

    def _new_tree(self, trust: Trust) -> Tree:
        shelf = Shelf(self.store.root) if isinstance(self.store, LocalStore) else None
        remote = self.get_remote()
        # What the store knows of a blob may come from the manifest of some other image.
        told = {layer.digest: layer.annotations for layer in self.manifest.layers}
        layers = [replace(desc, annotations=told.get(desc.digest, {})) for desc in remote.descriptors]
        return Tree(layers, remote.provider, trust, shelf)

    def lookup(self, path: str, *, trust: Trust | str = Trust.BLOB) -> Node:
        """See `Tree.lookup`."""
        return self.tree_of(trust).lookup(path)

    def walk(self, path: str = "/", *, trust: Trust | str = Trust.BLOB) -> Iterator[Node]:
        """See `Tree.walk`."""
        return self.tree_of(trust).walk(path)

    def open(self, path: str, *, trust: Trust | str = Trust.BLOB) -> ContentFile:
        """See `Tree.open`. With `"attested"` only what the file is made of is brought, from layers with a table of
        contents that the manifest knows; `ContentFile.trust` says what it came to."""
        return self.tree_of(trust).open(path)

    def prefetch(self, paths: Iterable[str], *, trust: Trust | str = Trust.ATTESTED) -> Prefetched:
        """See `Tree.prefetch`."""
        return self.tree_of(trust).prefetch(paths)

    def fill(
        self,
        first: Iterable[str] = (),
        *,
        rest: bool = True,
        bandwidth: float | str | None = None,
        trust: Trust | str = Trust.ATTESTED,
    ) -> Filling:
        """Have the layers come in the background, for as long as the image is open: what is at the paths `first` as
        `prefetch` brings it, and then everything, unless `rest` is False. Returns at once.

        Whoever reads the same store goes first, in any process, and so does who waits for a whole layer. It takes at
        most `bandwidth` of the line (`tasks.bandwidth_of`), but for what somebody waits for. `InvalidArgument`: no such
        bandwidth, or trust; a single path.
        """
        rate = bandwidth_of(bandwidth)
        filling = Filling(self.tree_of(trust), self.get_remote(), self.descriptor.digest, several(first), rest, rate)
        with self._lock:
            self._fillings.append(filling)
        return filling

    def close(self) -> None:
        """End what fills it and release the ref. A second call does nothing."""
        with self._lock:
            fillings = list(self._fillings)
            self._fillings.clear()
        for filling in fillings:
            filling.stop()
        if self.ref is not None:
            self.ref.release()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
