"""An image that a store knows: its documents, and the ref of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from blobtee.cache import Ref
from blobtee.content.api import Provider, Store
from blobtee.image.index import Node
from blobtee.image.tree import ContentFile, Tree
from blobtee.oci import Config, Descriptor, Manifest, Platform


@dataclass(frozen=True)
class Image:
    """One platform's image. `descriptor` is the manifest's; `ref` has its layers (None for an image without any).

    Reading files unlazies the layers that are needed, from the top, and no others. Release it with `close()` or as a
    context manager.
    """

    name: str
    descriptor: Descriptor
    manifest: Manifest
    config: Config
    ref: Ref | None
    store: Store
    platform: Platform | None = None

    @cached_property
    def tree(self) -> Tree:
        """The merged tree of all layers. What it learns of a layer is kept as long as the image."""
        if self.ref is None:
            return Tree(self.manifest.layers, self.store)
        remote = self.ref.get_remote()
        provider: Provider = remote.provider
        return Tree(remote.descriptors, provider)

    def lookup(self, path: str) -> Node:
        """See `Tree.lookup`."""
        return self.tree.lookup(path)

    def walk(self, path: str = "/") -> Iterator[Node]:
        """See `Tree.walk`."""
        return self.tree.walk(path)

    def open(self, path: str) -> ContentFile:
        """See `Tree.open`."""
        return self.tree.open(path)

    def close(self) -> None:
        """Release the ref. A second call does nothing."""
        if self.ref is not None:
            self.ref.release()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
