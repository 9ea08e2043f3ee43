"""What a container reads first, put first: the order that lazy pulling wants (stargz-snapshotter, "landmark files")."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from blobtee.conversion.spool import Spool
from blobtee.conversion.tail import MAX_HOLES
from blobtee.errors import InvalidArgument, TooLarge
from blobtee.layers import Entry, EntryType, ExpandedFile, TarWriter, entries
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer

PREFETCH = ".prefetch.landmark"
"""What lies before this entry is fetched at once when the layer is mounted."""
NO_PREFETCH = ".no.prefetch.landmark"

_PIECE = 1 << 20
_MAX_PATH = 4096
"""Longer paths cannot be opened by name: nobody waits for them."""
_MAX_LINKS = 16
"""Writers link to the first name; a link to a link to a link has no end, or is there to cost time."""
_CONTENT = b"\x0f"


def prioritise(stream: BinaryIO | io.RawIOBase, paths: Sequence[str], write: Callable[[Buffer], object]) -> list[str]:
    """Write the tar in `stream` anew, `paths` first, then `.prefetch.landmark`, then all else in its order.

    Each path (from the layer's root on) comes after its parent directories and what it is a hard link to. Those that
    the layer does not hold are returned; when it holds none, `.no.prefetch.landmark` comes first instead. Landmarks
    that the tar has already are dropped, and of several entries of a path put first only the last counts. It is another
    tar than before: another diff id.

    `stream` is read to its end and stays open; the tar is kept in a temporary file meanwhile. `InvalidArgument` for a
    path with `..`; `CorruptData` and others of `layers.entries`; `StorageFull`; `TooLarge` for holes beyond
    `tail.MAX_HOLES`, which are written out; what `write` raises.
    """
    wanted = [_normalised(path) for path in paths]
    spool = Spool()
    try:
        while data := stream.read(_PIECE):
            check()
            spool.write(data)
        order = _order(*_present(spool, wanted))
        first = {entry.path: entry for entry in entries(spool.file()) if entry.path in order}
        writer = TarWriter(write)
        holes = _Holes()
        for path in order:
            if entry := first.get(path):
                writer.add(entry, holes.counted(entry, _content(spool, entry)))
        missing = [given for given, path in zip(paths, wanted, strict=True) if path not in first]
        _add_landmark(writer, NO_PREFETCH if len(missing) == len(paths) else PREFETCH)
        for entry in entries(spool.file()):
            if entry.path not in first and entry.path not in (PREFETCH, NO_PREFETCH):
                writer.add(entry, holes.counted(entry, entry.data()))
        writer.finish()
    finally:
        spool.close()
    return missing


def _normalised(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"a path that leads out of the layer: {path[:100]!r}")
    return "/".join(parts)


def _present(spool: Spool, wanted: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those of `wanted` that the tar has, in their order, and the targets of all its hard links."""
    found = set()
    links: dict[str, str] = {}
    candidates = set(wanted)
    for entry in entries(spool.file()):
        if entry.path in candidates:
            found.add(entry.path)
        if entry.type is EntryType.HARDLINK:
            links[entry.path] = entry.linkname
        else:
            links.pop(entry.path, None)
    return [path for path in wanted if path in found], links


def _order(wanted: Iterable[str], hardlinks: dict[str, str]) -> dict[str, None]:
    """All paths that come first, those that others need before them; as keys, which keep their order."""
    order: dict[str, None] = {}
    for path in wanted:
        chain = [path]
        while (target := hardlinks.get(chain[-1])) is not None and len(chain) <= _MAX_LINKS:
            chain.append(target)
        if len(chain) > _MAX_LINKS or max(map(len, chain)) > _MAX_PATH:
            continue
        for needed in reversed(chain):
            parts = needed.split("/")
            for depth in range(len(parts) + 1):
                order["/".join(parts[:depth])] = None
    for landmark in (PREFETCH, NO_PREFETCH):
        order.pop(landmark, None)
    return order


def _add_landmark(writer: TarWriter, path: str) -> None:
    entry = Entry(path, EntryType.FILE, len(_CONTENT), 0o644, 0, 0, 0, "", 0)
    writer.add(entry, io.BytesIO(_CONTENT))


class _Holes:
    """Counts what is written out of holes, so that it stays bounded."""

    def __init__(self) -> None:
        self._nbytes = 0

    def counted(self, entry: Entry, content: io.RawIOBase) -> BinaryIO:
        if entry.sparse is not None:
            self._nbytes += entry.size - sum(segment.length for segment in entry.sparse)
        if self._nbytes > MAX_HOLES:
            raise TooLarge(f"{entry.path[:100]}: more than {MAX_HOLES} bytes of holes to be written out")
        return cast(BinaryIO, content)


def _content(spool: Spool, entry: Entry) -> io.RawIOBase:
    stored = entry.size if entry.sparse is None else sum(segment.length for segment in entry.sparse)
    data = _Range(spool, entry.offset, stored)
    return data if entry.sparse is None else ExpandedFile(data, entry.sparse, entry.size)


class _Range(io.RawIOBase):
    """`nbytes` bytes of a spool from `offset` on, read before anything else is asked of the spool."""

    def __init__(self, spool: Spool, offset: int, nbytes: int) -> None:
        super().__init__()
        self._file = spool.file()
        self._file.seek(offset)
        self._left = nbytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with memoryview(buffer) as view:
            data = Spool.take(self._file, min(len(view), self._left))
            view[: len(data)] = data
        self._left -= len(data)
        return len(data)
