"""Layers on top of each other, seen as one tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from blobtee.errors import CorruptData, NotFound
from blobtee.image.index import Budget, LayerIndex, Node, Place, implied_directory, parent, parts
from blobtee.layers import Entry, EntryType, whiteout
from blobtee.tasks import check

MAX_LINKS = 40
"""Symbolic links that are followed for one path, as Linux does."""

_Stack = list[tuple[int, Place]]


class View:
    """The layers [0, top) and, on them, `own`: a layer that is being read. `index_of` opens a layer when it is due."""

    def __init__(
        self,
        index_of: Callable[[int], LayerIndex],
        top: int,
        own: LayerIndex | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._index_of = index_of
        self._top = top
        self._own = own
        self._budget = budget or Budget()

    def get(self, path: str) -> Node | None:
        """What is at `path`, taken literally: its parents are no symbolic links. Layers are opened from the top, until
        one says. `CorruptData` for a hard link to nothing; `TooLarge` when the budget's steps are taken."""
        said_by_children = False
        depth = path.count("/") + 1
        for index in self._indexes():
            self._budget.step(depth)
            place, is_cut, is_blocked = _descend(index, path)
            if place is not None:
                if place.node is not None:
                    if said_by_children and place.node.type is not EntryType.DIRECTORY:
                        break
                    return self._at(path, place.node)
                said_by_children = said_by_children or place.holds
                is_cut = is_cut or place.whiteout
            if is_cut or is_blocked:
                break
        return implied_directory(path) if said_by_children or not path else None

    def resolve(
        self, path: str, *, follow_last: bool = True, may_be_missing: bool = False, looked_at: set[int] | None = None
    ) -> tuple[str, Node | None]:
        """The real path and what is there, links followed as in a chroot: `..` at the root stays there.

        `looked_at` gets the hashes of the places on the way. `NotFound`, unless `may_be_missing`; then what is missing
        is taken literally. `CorruptData` for a loop.
        """
        pending = _reversed_parts(path)
        done: list[str] = []
        node = self.get("") if not pending else None
        links = 0
        while pending:
            check()
            part = pending.pop()
            if part == ".":
                continue
            if part == "..":
                del done[-1:]
                node = None
                continue
            here = "/".join([*done, part])
            if looked_at is not None:
                looked_at.add(hash(here))
            node = self.get(here)
            if node is not None and node.type is EntryType.SYMLINK and (pending or follow_last):
                links += 1
                if links > MAX_LINKS:
                    raise CorruptData(f"{path[:200]}: symbolic links that lead in a circle")
                if node.linkname.startswith("/"):
                    done = []
                pending += _reversed_parts(node.linkname)
                node = None
                continue
            if not may_be_missing:
                self._require(path, node, is_last=not pending)
            done.append(part)
        real = "/".join(done)
        return real, node if node is not None else self.get(real)

    def children(self, stack: _Stack) -> Iterator[tuple[str, Node, _Stack]]:
        """What is in the directory whose places, top to base, are `stack`: name, node, and its own places; by name."""
        names: set[str] = set()
        for _, place in stack:
            names |= place.children.keys()
            if place.opaque:
                break
        for name in sorted(names):
            below = _below(stack, name)
            node = _node(below)
            if node is not None:
                yield name, node, below

    def stack(self, path: str) -> _Stack:
        """The places of the directory at the literal `path`, top to base, as far down as they are seen."""
        stack: _Stack = [(index.number, index.root) for index in self._indexes()]
        for part in parts(path):
            stack = _below(stack, part)
        return stack

    def settle(self, path: str, node: Node) -> Node:
        """`node` as it is seen at `path`: for a hard link, the file that it names. Each has a budget of its own."""
        return View(self._index_of, self._top)._at(path, node)

    def _indexes(self) -> Iterator[LayerIndex]:
        if self._own is not None:
            yield self._own
        for number in range(self._top - 1, -1, -1):
            yield self._index_of(number)

    def _at(self, path: str, node: Node) -> Node:
        if node.type is not EntryType.HARDLINK:
            return Node(path, node.entry, node.layer)
        assert node.layer is not None
        target = node.linkname
        lower = View(self._index_of, node.layer, budget=self._budget)
        try:
            _, found = lower.resolve(target, follow_last=False)
        except NotFound:
            found = None
        if found is None or found.type is EntryType.DIRECTORY:
            raise CorruptData(f"{path[:200]}: a hard link to {target[:200]!r}, where there is no file")
        return Node(path, found.entry, found.layer)

    @staticmethod
    def _require(path: str, node: Node | None, *, is_last: bool) -> None:
        if node is None:
            raise NotFound(f"{path[:200]}: no such file or directory in the image")
        if not is_last and node.type is not EntryType.DIRECTORY:
            raise NotFound(f"{path[:200]}: {node.path[:200]} is a {node.type.value}, not a directory")


def replay(index_of: Callable[[int], LayerIndex], number: int, entries: Sequence[Entry], budget: Budget) -> LayerIndex:
    """The index of a layer whose files lie in directories that it does not mention itself.

    Such a directory may be a symbolic link in a lower layer (`lib/x` over `lib -> usr/lib`), and unpacking follows it.
    So this puts each entry where unpacking would. `budget` is for the steps that this takes.
    """
    index = LayerIndex(number, Budget())  # it takes the place of the one that was counted
    index.is_plain = False
    view = View(index_of, number, index, budget)
    real_parents: dict[str, str] = {}
    on_the_way: set[int] = set()  # hashes: of a deep path all that are above it would take its length squared

    def real(path: str) -> str:
        above, slash, name = path.rpartition("/")
        if not slash:
            return path
        if above not in real_parents:
            real_parents[above], _ = view.resolve(above, may_be_missing=True, looked_at=on_the_way)
        directory = real_parents[above]
        return f"{directory}/{name}" if directory else name

    for position, entry in enumerate(entries):
        if position % 256 == 0:
            check()
        hides = whiteout(entry.path)
        if hides is not None:
            if hides.path is None:
                continue
            # The root is where it is; the directory of an opaque mark is a parent like any other.
            path = parent(real(f"{hides.path}/x")) if hides.opaque and hides.path else real(hides.path)
            index.hide(path, opaque=hides.opaque)
        else:
            path = real(entry.path)
            index.put(path, _linked(view, Node(path, entry, number), real))
        if hides is not None or entry.type is not EntryType.FILE or hash(path) in on_the_way:
            real_parents.clear()
            on_the_way.clear()
    return index


def _linked(view: View, node: Node, real: Callable[[str], str]) -> Node:
    """`node` itself; for a hard link to a file, what it shares with that one."""
    found = view.get(real(node.linkname)) if node.type is EntryType.HARDLINK else None
    if found is None or found.type is EntryType.DIRECTORY:
        return node
    return Node(node.path, found.entry, found.layer)


def _descend(index: LayerIndex, path: str) -> tuple[Place | None, bool, bool]:
    """The place at `path`, if the layer has one; whether lower layers are hidden there; and whether something that is
    no directory stands in the way."""
    place = index.root
    is_cut = False
    for part in parts(path):
        if place.node is not None and place.node.type is not EntryType.DIRECTORY:
            return None, True, True
        is_cut = is_cut or place.opaque or place.whiteout
        child = place.children.get(part)
        if child is None:
            return None, is_cut, False
        place = child
    return place, is_cut, False


def _below(stack: _Stack, name: str) -> _Stack:
    below: _Stack = []
    for number, place in stack:
        child = place.children.get(name)
        if child is not None:
            below.append((number, child))
            if child.whiteout or (child.node is not None and child.node.type is not EntryType.DIRECTORY):
                break
        if place.opaque or place.whiteout:
            break
    return below


def _node(stack: _Stack) -> Node | None:
    said_by_children = False
    for _, place in stack:
        if place.node is not None:
            if said_by_children and place.node.type is not EntryType.DIRECTORY:
                break
            return place.node
        said_by_children = said_by_children or place.holds
    return implied_directory("") if said_by_children else None


def _reversed_parts(path: str) -> list[str]:
    """The names on the way, last first; before them a dot when the path ends as only a directory's may."""
    names = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    return [".", *names] if path.endswith(("/", "/.")) else names
