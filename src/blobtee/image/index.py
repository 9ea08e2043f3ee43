"""What one layer says: the nodes it brings, and what it takes away from those below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blobtee.errors import TooLarge
from blobtee.layers import Entry, EntryType, whiteout

MAX_ENTRIES = 1_000_000
"""Entries of one layer that are kept in memory."""

MAX_LAYER_NBYTES = 1 << 30
"""Bytes of memory, about, that the entries of one layer take."""

MAX_PLACES = 2 * MAX_ENTRIES
"""Paths of one layer that are kept: those of its entries, and the directories above them that it does not mention."""

MAX_LAYERS = 500
"""Layers of one image; overlayfs takes as many."""

MAX_NBYTES = 2 << 30
"""Bytes of memory, about, that all layers of one image take: a manifest may name a layer of a megabyte many times."""

MAX_STEPS = 300_000_000
"""Directories that are gone through to put an image's layers together, or to find one path: some minutes. Images have a
hundredth of it; paths and links that are made for it would take days."""

_ENTRY_NBYTES, _PLACE_NBYTES, _EXTRA_NBYTES = 400, 300, 100


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory or other object of the image.

    `path` is where it was asked for, without a slash in front; `entry` is what the layer's tar says of it (a hard
    link's is that of the file it names); `layer` counts from the base, 0, and is where the content is. A directory
    that no layer mentions, though it has files in it, has mode 0755, owner 0 and time 0, and `layer` None.
    """

    path: str
    entry: Entry
    layer: int | None

    @property
    def type(self) -> EntryType:
        return self.entry.type

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.entry.size

    @property
    def mode(self) -> int:
        """Permission bits."""
        return self.entry.mode

    @property
    def linkname(self) -> str:
        """A symbolic link's target, as written."""
        return self.entry.linkname


def implied_directory(path: str) -> Node:
    entry = Entry(path, EntryType.DIRECTORY, 0, 0o755, 0, 0, 0, "", 0)
    return Node(path, entry, None)


@dataclass(slots=True)
class Place:
    """A path in a layer: what is there (None: nothing said, only what lies below), and the names below it."""

    node: Node | None = None
    children: dict[str, Place] = field(default_factory=dict)
    holds: bool = False
    """Something was put below: without more being said of it, this is a directory."""
    whiteout: bool = False
    """Nothing of the lower layers at this path or below is seen."""
    opaque: bool = False
    """Nothing of the lower layers below this path is seen."""


class Budget:
    """What the layers of one image still may take. Threads that take at once may take a bit more."""

    def __init__(self) -> None:
        self._left = MAX_NBYTES
        self._steps = MAX_STEPS

    def take(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise TooLarge("an image whose layers have too many files, or too long names, to be kept in memory")

    def give_back(self, nbytes: int) -> None:
        self._left += nbytes

    def step(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            raise TooLarge("paths that are too long to follow: deep directories, links or both")


class LayerIndex:
    """One layer as a tree of `Place`. Filled in the order of the tar; the last entry of a path wins."""

    def __init__(self, number: int, budget: Budget) -> None:
        self.number = number
        self._budget = budget
        self._taken = 0
        self.root = Place()
        self.is_plain = True
        """No entry went through a directory that the layer had not said before, and no hard link leads out of it: no
        lower layer has a say in it."""
        self._places = 0

    def find(self, path: str) -> Place | None:
        place: Place | None = self.root
        for part in parts(path):
            assert place is not None
            place = place.children.get(part)
            if place is None:
                return None
        return place

    def _make(self, path: str) -> Place:
        """The place at `path`, made where it is missing. What is no directory on the way gives way to one."""
        place = self.root
        for part in parts(path):
            place.holds = True
            if place.node is not None and place.node.type is not EntryType.DIRECTORY:
                place.node = None
                place.whiteout = True
            child = place.children.get(part)
            place = child if child is not None else self._child(place, part)
        return place

    def _child(self, place: Place, part: str) -> Place:
        """A new place. `TooLarge`: a path of a few kilobytes, which packs to nothing, names thousands of them."""
        self._places += 1
        if self._places > MAX_PLACES:
            raise TooLarge(f"a layer of more than {MAX_PLACES} paths")
        self.take(_PLACE_NBYTES)
        child = place.children[part] = Place()
        return child

    def take(self, nbytes: int) -> None:
        """Have so much of the budget."""
        self._taken += nbytes
        self._budget.take(nbytes)

    def give_up(self) -> None:
        """Give back all that was taken: nobody keeps this."""
        self._budget.give_back(self._taken)

    def put(self, path: str, node: Node) -> None:
        """Put `node` at `path`. A directory keeps what is below it; anything else takes its place."""
        place = self._make(path)
        if node.type is not EntryType.DIRECTORY:
            place.children = {}
        elif place.node is not None and place.node.type is not EntryType.DIRECTORY:
            place.whiteout = True  # the file that was put there before had hidden what is below
        place.node = node

    def hide(self, path: str, *, opaque: bool) -> None:
        """Take away what lower layers have at `path`, or with `opaque` below it. What this layer has there stays, and
        no directory comes to be by it (OCI image specification, layer.md)."""
        place = self.root
        for part in parts(path):
            if place.node is not None and place.node.type is not EntryType.DIRECTORY:
                return  # that hides everything already
            child = place.children.get(part)
            place = child if child is not None else self._child(place, part)
        if opaque:
            place.opaque = True
        else:
            place.whiteout = True

    def parents_said(self, path: str) -> bool:
        """Whether each directory above `path` is one that this layer itself has put there."""
        place = self.root
        for part in parts(path)[:-1]:
            child = place.children.get(part)
            if child is None or child.node is None or child.node.type is not EntryType.DIRECTORY:
                return False
            place = child
        return True


def parts(path: str) -> list[str]:
    return path.split("/") if path else []


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def bounded(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries as they are; `TooLarge` when one layer's are more than memory should hold."""
    nbytes = 0
    for count, entry in enumerate(entries, 1):
        nbytes += _nbytes(entry)
        if count > MAX_ENTRIES:
            raise TooLarge(f"a layer of more than {MAX_ENTRIES} entries")
        if nbytes > MAX_LAYER_NBYTES:
            raise TooLarge(f"a layer whose names and attributes take more than {MAX_LAYER_NBYTES} bytes")
        yield entry


def _nbytes(entry: Entry) -> int:
    """How much memory it takes, about."""
    nbytes = _ENTRY_NBYTES + len(entry.path) + len(entry.linkname)
    if entry.xattrs or entry.sparse:
        nbytes += sum(_EXTRA_NBYTES + len(key) + len(value) for key, value in entry.xattrs.items())
        nbytes += _EXTRA_NBYTES * len(entry.sparse or ())
    return nbytes


class Builder:
    """Reads a layer into an index as far as the layer alone tells."""

    def __init__(self, number: int, budget: Budget) -> None:
        self.index = LayerIndex(number, budget)

    def add(self, entry: Entry) -> None:
        self.index.take(_nbytes(entry))
        hides = whiteout(entry.path)
        if hides is not None:
            if hides.path is not None:
                self._note_parents(hides.path + "/x" if hides.opaque else hides.path)
                self.index.hide(hides.path, opaque=hides.opaque)
            return
        self._note_parents(entry.path)
        self.index.put(entry.path, Node(entry.path, self._linked(entry), self.index.number))

    def _note_parents(self, path: str) -> None:
        if self.index.is_plain and not self.index.parents_said(path):
            self.index.is_plain = False

    def _linked(self, entry: Entry) -> Entry:
        """The entry itself; for a hard link to a file of this layer, that file's."""
        if entry.type is not EntryType.HARDLINK:
            return entry
        target = self.index.find(entry.linkname)
        if target is not None and target.node is not None and target.node.type is not EntryType.DIRECTORY:
            return target.node.entry
        # Settled while the layers are put together, once and from the base on: links to links would be long to follow.
        self.index.is_plain = False
        return entry
