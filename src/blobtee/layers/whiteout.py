"""Whiteouts: names in a layer that take away what lower layers have (OCI image specification, layer.md)."""

from __future__ import annotations

from typing import NamedTuple

from blobtee.errors import CorruptData

PREFIX = ".wh."
META_PREFIX = ".wh..wh."
OPAQUE = ".wh..wh..opq"


class Whiteout(NamedTuple):
    """`path` is what disappears from the lower layers; when `opaque`, everything below it does and itself stays.

    `path` is None for AUFS's own book-keeping (`.wh..wh.plnk` and the like), which says nothing of the tree.
    """

    path: str | None
    opaque: bool = False


def whiteout(path: str) -> Whiteout | None:
    """What an entry of this path hides; None when it is an ordinary entry. `path` is normalised (see `Entry`).

    `CorruptData` for a whiteout that names nothing, `.` or `..`.
    """
    directory, slash, name = path.rpartition("/")
    if not name.startswith(PREFIX):
        return Whiteout(None) if _within_metadata(directory) else None
    if name == OPAQUE:
        return Whiteout(directory, opaque=True)
    if name.startswith(META_PREFIX):
        return Whiteout(None)
    target = name[len(PREFIX) :]
    if target in ("", ".", ".."):
        raise CorruptData(f"a whiteout that names nothing: {path[:100]!r}")
    return Whiteout(directory + slash + target)


def _within_metadata(directory: str) -> bool:
    return directory.startswith(META_PREFIX)
