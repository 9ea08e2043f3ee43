"""The merged tree of an image's layers, opened from the top and only as far as a question needs."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from blobtee.content import PartialProvider, Provider, ReaderAt, Trust
from blobtee.errors import Closed, CorruptData, InvalidArgument, TooLarge
from blobtee.image.index import MAX_LAYERS, Budget, Builder, LayerIndex, Node, parts
from blobtee.image.prefetch import Prefetched, prefetch, several
from blobtee.image.reading import LayerReader
from blobtee.image.view import View, replay
from blobtee.layers import Entry, EntryType
from blobtee.oci import Descriptor
from blobtee.seeking.kept import Shelf
from blobtee.tasks import SingleFlight, check

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Tree:
    """Paths are those inside the image, `/` in front or not. Thread-safe.

    What a layer holds is read once and kept as long as the tree: about 500 bytes for each of its files. With
    `Trust.BLOB` it is read off the layer's tar, which takes the whole layer; with less it may be told by the layer's
    own table of contents (`image.reading`), and only what is asked for has to be brought. Errors of any method:
    `CorruptData` and `TooLarge` for a layer that is not a sound tar, or layers beyond the bounds of `image.index`;
    `UnsupportedMediaType`; and whatever `provider` raises when it brings a layer.
    """

    def __init__(
        self,
        layers: Sequence[Descriptor],
        provider: Provider | PartialProvider,
        trust: Trust = Trust.BLOB,
        shelf: Shelf | None = None,
    ) -> None:
        """`layers` are base to top; `provider` reads them; nothing of less than `trust` is given. The descriptors'
        annotations are believed when `trust` is less than `BLOB`: they have to be those of the image's manifest.
        `TooLarge` for more than `MAX_LAYERS`.
        `shelf`: where what was found out of layers is kept, so that they need not be read whole again."""
        if len(layers) > MAX_LAYERS:
            raise TooLarge(f"an image of {len(layers)} layers; the limit is {MAX_LAYERS}")
        self.layers = tuple(layers)
        self.trust = trust
        self._budget = Budget()
        self._readers = [LayerReader(desc, provider, trust, shelf) for desc in self.layers]
        self._lock = threading.Lock()
        self._raw: dict[int, LayerIndex] = {}
        self._entries: dict[int, Sequence[Entry]] = {}
        self._settled: dict[int, LayerIndex] = {}
        self._reading: SingleFlight[int, LayerIndex] = SingleFlight()
        self._settling: SingleFlight[int, LayerIndex] = SingleFlight()

    @property
    def opened(self) -> list[int]:
        """The layers that were read so far, counted from the base, 0."""
        with self._lock:
            return sorted(self._raw)

    def lookup(self, path: str, *, follow: bool = True) -> Node:
        """What is at `path`. Symbolic links are followed as in a chroot, a last one only with `follow`.

        `NotFound`: nothing there. `CorruptData` as well for links in a circle, or a hard link to nothing.
        """
        node = self._direct(path)
        if node is None:
            _, node = self._view().resolve(path, follow_last=follow)
        assert node is not None
        return node

    def walk(self, path: str = "/") -> Iterator[Node]:
        """Everything below the directory at `path`, sorted by name, each directory before what is in it.

        Anything but a directory is given alone. All layers are opened. Links are followed to `path`, not below it.
        """
        view = self._view()
        real, start = view.resolve(path)
        assert start is not None
        if start.type is not EntryType.DIRECTORY:
            yield start
            return
        open_directories = [(real, view.children(view.stack(real)))]
        while open_directories:
            check()
            directory, children = open_directories[-1]
            found = next(children, None)
            if found is None:
                open_directories.pop()
                continue
            name, node, stack = found
            here = f"{directory}/{name}" if directory else name
            yield view.settle(here, node)
            if node.type is EntryType.DIRECTORY:
                open_directories.append((here, view.children(stack)))

    def open(self, path: str) -> ContentFile:
        """The content of the file at `path`, links followed; close it after use. Errors as for `lookup`, and
        `InvalidArgument` for a directory or anything else without content."""
        return self.open_node(self.lookup(path))

    def open_node(self, node: Node) -> ContentFile:
        """The content of a file that this tree gave; as `open`."""
        if node.type is not EntryType.FILE or node.layer is None:
            raise InvalidArgument(f"/{node.path[:200]} is a {node.type.value}, not a file")
        layer = self._readers[node.layer].layer()
        reader = layer.reader()
        try:
            trust = min(layer.contents.trust(reader.trust), *self._told(), key=lambda trust: trust.rank)
            return ContentFile(node, reader, layer.contents.open(reader, node.entry), trust)
        except BaseException:
            reader.close()
            raise

    def prefetch(self, paths: Iterable[str], moved: Callable[[int], object] = lambda nbytes: None) -> Prefetched:
        """Have the provider bring what the files at `paths` are made of, and those below directories, in this order but
        for what is near each other, which is asked for at once. A path that is not there is passed over; errors else as
        for `lookup`; `InvalidArgument` for a single path. `moved` is told of bytes that have come, by any thread."""
        return prefetch(self, self._readers, several(paths), moved)

    def _told(self) -> list[Trust]:
        """How far the lists of the layers opened so far are proven: any of them may have had a say in what is where."""
        with self._lock:
            opened = list(self._raw)
        return [self._readers[number].layer().contents.told for number in opened]

    def _direct(self, path: str) -> Node | None:
        """A file of the topmost layer that has something below the path's first directory, when it has this very path
        and says all of its directories itself: then no link of a lower layer has a say, and none is opened.

        Where a layer leaves directories unsaid, any other of its entries may, through a link, lie at this path. None
        means only that it takes a closer look.
        """
        wanted = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in wanted or not wanted or path.endswith(("/", "/.")):
            return None
        for number in range(len(self.layers) - 1, -1, -1):
            index = self._read(number)
            if not index.is_plain:
                return None
            if wanted[0] in index.root.children:
                return _file_at(index, "/".join(wanted))
            if index.root.opaque or index.root.whiteout:
                return None
        return None

    def _view(self) -> View:
        return View(self._index, len(self.layers))

    def _index(self, number: int) -> LayerIndex:
        """The layer, each entry where unpacking puts it."""
        with self._lock:
            settled = self._settled.get(number)
        if settled is not None:
            return settled
        index = self._read(number)
        if not index.is_plain:
            return self._settling.do(number, lambda: self._settle(number))
        with self._lock:
            return self._settled.setdefault(number, index)

    def _settle(self, number: int) -> LayerIndex:
        with self._lock:
            settled = self._settled.get(number)
            waiting = self._entries.get(number, [])
        if settled is None:
            settled = replay(self._index, number, waiting, self._budget)
            with self._lock:
                # Nobody needs the other one any more.
                self._raw[number] = self._settled[number] = settled
                self._entries.pop(number, None)
        return settled

    def _read(self, number: int) -> LayerIndex:
        """The layer as it tells itself."""
        with self._lock:
            index = self._raw.get(number)
        return index if index is not None else self._reading.do(number, lambda: self._load(number))

    def _load(self, number: int) -> LayerIndex:
        with self._lock:
            known = self._raw.get(number)
        if known is not None:
            return known
        builder = Builder(number, self._budget)
        kept = self._readers[number].layer().contents.entries
        try:
            for position, entry in enumerate(kept):
                if position % 1024 == 0:
                    check()
                builder.add(entry)
        except BaseException:
            builder.index.give_up()
            raise
        with self._lock:
            self._raw[number] = builder.index
            if not builder.index.is_plain:
                self._entries[number] = kept
        return builder.index


class ContentFile(io.RawIOBase):
    """The content of one file, read once and in order; `size` bytes in all. For one thread.

    `trust` says how far its bytes are proven, and that they belong to this path. `CorruptData` when the layer ends too
    early. Closing it closes all below it.
    """

    def __init__(self, node: Node, reader: ReaderAt, stream: io.RawIOBase, trust: Trust) -> None:
        """Owns `reader` and `stream`, which is at the first byte."""
        super().__init__()
        self.node = node
        self.size = node.size
        self.trust = trust
        self._reader = reader
        self._stream = stream
        self._left = node.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise Closed("the file is closed")
        with memoryview(buffer).cast("B") as view:
            wanted = min(len(view), self._left)
            if not wanted:
                return 0
            check()
            with view[:wanted] as part:
                n = self._stream.readinto(part) or 0
        if not n:
            raise CorruptData(f"{self.node.path[:200]}: the layer ends within the file")
        self._left -= n
        return n

    def close(self) -> None:
        if not self.closed:
            try:
                self._stream.close()
            finally:
                self._reader.close()
        super().close()


def _file_at(index: LayerIndex, path: str) -> Node | None:
    place = index.root
    for part in parts(path):
        if place.node is not None and place.node.type is not EntryType.DIRECTORY:
            return None
        child = place.children.get(part)
        if child is None:
            return None
        place = child
    node = place.node
    return Node(path, node.entry, node.layer) if node is not None and node.type is EntryType.FILE else None
