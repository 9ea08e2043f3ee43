"""What a layer that is being applied has brought so far, as far as its whiteouts must know."""

from __future__ import annotations

from blobtee.errors import TooLarge

MAX_NBYTES = 256 << 20
"""Bytes of memory for one layer, about: 800,000 directories, or two million files in directories of lower layers."""

_DIRECTORY_NBYTES = 300
_NAME_NBYTES = 100


class Budget:
    """What is kept of one layer, in bytes. `TooLarge` past `MAX_NBYTES`."""

    def __init__(self) -> None:
        self._left = MAX_NBYTES

    def take(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise TooLarge("a layer with more directories and files than can be kept track of")


class Directory:
    """A directory that the layer has put something into, or looked into.

    `has_lower`: something of the lower layers may be in it. Only then the names that the layer itself has put there
    have to be told apart, so only then they are kept. `holds`: the layer has brought it, or something below it.
    `said`: the layer has an entry for it. `mode` and `mtime_ns` are what it gets at the end; None: it stays as it is.
    """

    __slots__ = ("_budget", "children", "files", "has_lower", "holds", "mode", "mtime_ns", "parent", "said")

    def __init__(self, budget: Budget, parent: Directory | None, *, has_lower: bool) -> None:
        self._budget = budget
        self.parent = parent
        self.has_lower = has_lower
        self.holds = False
        self.said = False
        self.mode: int | None = None
        self.mtime_ns: int | None = None
        self.children: dict[bytes, Directory] = {}
        self.files: set[bytes] = set()

    def child(self, name: bytes) -> Directory:
        """The directory `name` in this one, which is there on disk."""
        found = self.children.get(name)
        return found if found is not None else self._add(name, has_lower=self.has_lower)

    def made(self, name: bytes) -> Directory:
        """The directory `name`, which the layer has just made in this one."""
        self.files.discard(name)
        return self._add(name, has_lower=False)

    def put(self, name: bytes) -> None:
        """The layer has put something that is no directory here as `name`."""
        self.children.pop(name, None)
        if self.has_lower and name not in self.files:
            self._budget.take(_NAME_NBYTES + len(name))
            self.files.add(name)

    def hold(self) -> None:
        """The layer has brought this, and so all directories above it."""
        directory: Directory | None = self
        while directory is not None and not directory.holds:
            directory.holds = True
            directory = directory.parent

    def forget_lower(self) -> None:
        """Nothing of the lower layers is in it any more."""
        self.has_lower = False
        self.files.clear()

    def _add(self, name: bytes, *, has_lower: bool) -> Directory:
        self._budget.take(_DIRECTORY_NBYTES + len(name))
        added = self.children[name] = Directory(self._budget, self, has_lower=has_lower)
        return added
