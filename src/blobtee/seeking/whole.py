"""The contents of a blob that is here whole and proven: what its tar says, and nobody else.

A packed layer is unpacked once from its first to its last byte. That proves what it says of its pieces, so that any
file of it is read afterwards by the pieces it is in. Any other gzip gets points on the way that it can be unpacked from
(`checkpoints`). What is left is read from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from blobtee.compression import decompress, detect
from blobtee.content import ReaderAt, Trust
from blobtee.errors import CorruptData, DigestMismatch
from blobtee.layers import Entry, entries
from blobtee.layers.tarstream import drain
from blobtee.oci import Compressed, layer_compression
from blobtee.seeking import pieces, plain
from blobtee.seeking.api import Contents, Unpacked, stored_nbytes
from blobtee.seeking.checkpoints import Indexing
from blobtee.seeking.pieces import Pieces
from blobtee.seeking.plain import Plain
from blobtee.seeking.streamed import Streamed

Limit = Callable[[Iterator[Entry]], Iterator[Entry]]
"""What is taken of the entries, each `Entry.detached`; raises when they are too many."""


def contents(reader: ReaderAt, media_type: str, limit: Limit) -> Contents:
    """The layer's entries as its tar tells them, and the way to their contents.

    `CorruptData`, `TooLarge` and the like: as for `layers.entries` and `compression.decompress`, and what `limit`
    raises; `UnsupportedMediaType`.
    """
    stated = layer_compression(media_type)
    form = detect(reader.read_at(0, 4))
    if form is Compressed.NONE and (stated is Compressed.NONE or not reader.size):
        return Contents(list(limit(plain.walk(reader))), Plain(reader.size), reader.trust)
    seekable = pieces.members(reader) if form is Compressed.GZIP else None
    seekable = pieces.frames(reader) if form is Compressed.ZSTD else seekable
    found = _proven(reader, seekable, limit) if seekable is not None else None
    if found is None and form is Compressed.GZIP and reader.trust is Trust.BLOB:
        found = _indexed(reader, media_type, limit)
    return found or _in_order(reader, media_type, limit)


def _proven(reader: ReaderAt, stream: Pieces, limit: Limit) -> Contents | None:
    """The contents by pieces; None when one does not hold what was said of it: then an ordinary decoder decides."""
    with stream.open(reader) as unpacked:
        try:
            found = list(limit(entries(unpacked)))
            drain(unpacked)
        except (CorruptData, DigestMismatch):
            return None
    return Contents(found, stream, reader.trust)


def _indexed(reader: ReaderAt, media_type: str, limit: Limit) -> Contents | None:
    """The contents by points that are found on the way; by none, when what follows the tar is no gzip. None when the
    tar itself cannot be read so: an ordinary decoder gives what comes before the damage, and may not come to it."""
    with Indexing(reader.open()) as unpacked:
        try:
            found = list(limit(entries(unpacked)))
        except CorruptData:
            return None
        try:
            drain(unpacked)
            stream: Unpacked | None = unpacked.checkpoints()
        except CorruptData:
            stream = None
    return Contents(found, stream or _from_start(reader, media_type, found), reader.trust)


def _in_order(reader: ReaderAt, media_type: str, limit: Limit) -> Contents:
    with decompress(reader.open(), media_type) as unpacked:
        found = list(limit(entries(unpacked)))
    return Contents(found, _from_start(reader, media_type, found), reader.trust)


def _from_start(reader: ReaderAt, media_type: str, found: Sequence[Entry]) -> Streamed:
    size = max((entry.offset + stored_nbytes(entry) for entry in found), default=0)
    return Streamed(reader.size, size, media_type)
