"""Bringing the contents of files before somebody reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from blobtee.errors import NotFound
from blobtee.image.index import Node
from blobtee.image.reading import Layer, LayerReader
from blobtee.layers import Entry, EntryType
from blobtee.seeking import Extent
from blobtee.tasks import Group, check

if TYPE_CHECKING:
    from blobtee.image.tree import Tree

GAP_NBYTES = 256 << 10
"""Bytes between two files' contents that are rather brought too than asked for apart."""

_AT_ONCE = 4
_PIECE = 4 << 20


def prefetch(tree: Tree, readers: Sequence[LayerReader], paths: Iterable[str]) -> int:
    """See `Tree.prefetch`."""
    wanted: dict[int, list[Entry]] = {}
    for node in _nodes(tree, paths):
        if node.type is EntryType.FILE and node.layer is not None:
            wanted.setdefault(node.layer, []).append(node.entry)
    with Group(_AT_ONCE, name="blobtee-prefetch") as group:
        tasks = [
            group.spawn(_bring, layer, extent)
            for number in sorted(wanted, reverse=True)
            for layer in [readers[number].layer()]
            for extent in layer.contents.extents(wanted[number], gap=GAP_NBYTES)
        ]
    return sum(task.result() for task in tasks)


def _nodes(tree: Tree, paths: Iterable[str]) -> Iterator[Node]:
    for path in paths:
        try:
            yield from tree.walk(path)
        except NotFound:
            continue


def _bring(layer: Layer, extent: Extent) -> int:
    buffer = memoryview(bytearray(min(_PIECE, extent.end - extent.start)))
    with layer.reader() as reader:
        position = extent.start
        while position < extent.end:
            check()
            position += reader.readinto_at(position, buffer[: extent.end - position]) or extent.end - position
    return extent.end - extent.start
