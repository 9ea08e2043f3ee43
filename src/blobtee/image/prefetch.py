"""Bringing the contents of files before somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobtee.errors import InvalidArgument, NotFound
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
_BATCH_NBYTES, _BATCH_FILES = 16 << 20, 4096
"""What is looked at together for what is near each other. The files behind it wait."""


@dataclass(frozen=True)
class Prefetched:
    """`nbytes` of blobs is what the files are made of, whether they were here before or not; those `missing` are not in
    the image."""

    nbytes: int
    missing: tuple[str, ...]


def several(paths: Iterable[str]) -> Iterable[str]:
    """`paths`; `InvalidArgument` for a single one, whose letters would be paths, `/` among them."""
    if isinstance(paths, str):
        raise InvalidArgument(f"paths are wanted, not one path: [{paths[:200]!r}]")
    return paths


def prefetch(
    tree: Tree, readers: Sequence[LayerReader], paths: Iterable[str], moved: Callable[[int], object]
) -> Prefetched:
    """See `Tree.prefetch`."""
    missing: list[str] = []
    nbytes = 0
    for batch in _batches(_files(tree, paths, missing)):
        nbytes += _bring_all(readers, batch, moved)
    return Prefetched(nbytes, tuple(missing))


def _files(tree: Tree, paths: Iterable[str], missing: list[str]) -> Iterator[Node]:
    for path in paths:
        try:
            node = tree.lookup(path)
        except NotFound:
            missing.append(path)
            continue
        for found in tree.walk(path) if node.type is EntryType.DIRECTORY else [node]:
            if found.type is EntryType.FILE and found.layer is not None:
                yield found


def _batches(files: Iterable[Node]) -> Iterator[list[Node]]:
    batch: list[Node] = []
    nbytes = 0
    for node in files:
        batch.append(node)
        nbytes += node.size
        if nbytes >= _BATCH_NBYTES or len(batch) >= _BATCH_FILES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _bring_all(readers: Sequence[LayerReader], files: Iterable[Node], moved: Callable[[int], object]) -> int:
    wanted: dict[int, list[Entry]] = {}
    for node in files:
        assert node.layer is not None
        wanted.setdefault(node.layer, []).append(node.entry)
    with Group(_AT_ONCE, name="blobtee-prefetch") as group:
        tasks = [
            group.spawn(_bring, layer, extent, moved)
            for number in sorted(wanted, reverse=True)
            for layer in [readers[number].layer()]
            for extent in layer.contents.extents(wanted[number], gap=GAP_NBYTES)
        ]
    return sum(task.result() for task in tasks)


def _bring(layer: Layer, extent: Extent, moved: Callable[[int], object]) -> int:
    buffer = memoryview(bytearray(min(_PIECE, extent.end - extent.start)))
    with layer.reader() as reader:
        position = extent.start
        while position < extent.end:
            check()
            n = reader.readinto_at(position, buffer[: extent.end - position])
            if not n:
                break
            position += n
            moved(n)
    return extent.end - extent.start
