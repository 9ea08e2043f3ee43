"""Indexes of layers as files of a store's root: what was found out once by reading a whole layer.

`<root>/index/<algorithm>/<hex>` has the layer's entries and the places that the blob can be unpacked from, for gzip
with digests of what lies between them. It is made of a blob whose digest was right, and stays when the blob itself
goes: what is fetched again is compared with it. A file that is damaged, of another version or of something else counts
as none: it is made again when the layer is read whole the next time.

Little endian: magic with version, CRC-32C of all that follows; the kind of index, the length of the blob's digest, the
sizes of the blob and of what it unpacks to; the digest; what belongs to the kind; the list of entries (`listing`),
packed by zstd, with its length. Of any gzip: where the last span ends, how many points there are; a record for each; of
each the block header, the bytes ahead and the packed window. Of members and frames (`pieces`): which of the two, the
number of the rest or -1; what each holds, where it is and what it takes, packed, with the length.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import zstandard

from blobtee.content import Trust
from blobtee.content.files import (
    digest_names,
    make_directory,
    os_errors,
    read_small,
    remove_temporaries,
    replace_file,
)
from blobtee.core import crc32c
from blobtee.core.gzindex import GzipPoint
from blobtee.errors import CorruptData, InvalidArgument, PermissionDenied, StorageError, StorageFull, TooLarge
from blobtee.oci import Compressed, Descriptor, Digest
from blobtee.seeking import listing
from blobtee.seeking.api import Contents, Unpacked
from blobtee.seeking.checkpoints import Checkpoint, Checkpoints
from blobtee.seeking.pieces import Pieces
from blobtee.seeking.plain import Plain
from blobtee.seeking.spans import SpanTable
from blobtee.seeking.streamed import Streamed

MAX_NBYTES = 256 << 20
"""Bytes of one file: that of a gzip layer of some 40 GB."""

_MAX_UNPACKED = 256 << 20
_LEVEL = 6
_MAGIC = b"btindex\x01"
_SEAL = struct.Struct("<8sI")
_HEAD = struct.Struct("<BHQQ")
_SECTION = struct.Struct("<Q")
_PLAIN, _STREAMED, _POINTS, _PIECES = range(1, 5)
_POINTS_HEAD = struct.Struct("<QI")
_POINT = struct.Struct("<QQIIBBHBI32s")
_PIECES_HEAD = struct.Struct("<Bq")
_PIECE = struct.Struct("<QQQ")
_FORMS = (Compressed.GZIP, Compressed.ZSTD)

_logger = logging.getLogger(__name__)


class Shelf:
    """What is kept of layers in a store's root. Thread-safe, also between processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, desc: Descriptor) -> Contents | None:
        """See the function `load`."""
        return load(self._root, desc)

    def keep(self, desc: Descriptor, contents: Contents) -> None:
        """Keep what can be kept. A disk that is full or broken, or may not be written, is only logged: it takes nothing
        from whoever has the contents."""
        try:
            keep(self._root, desc, contents)
        except (PermissionDenied, StorageError, StorageFull) as error:
            _logger.warning("the index of %s is not kept: %s", desc.digest, error)


def path_of(root: Path, digest: Digest) -> Path:
    return root / "index" / digest.algorithm / digest.hex


def keep(root: Path, desc: Descriptor, contents: Contents) -> bool:
    """Keep what is known of a layer, durably and instead of what was kept before; False when it is nothing that can be
    kept, or too large.

    `InvalidArgument`: the contents are not proven by the whole blob. `StorageFull`, `StorageError`: what was there
    before stays.
    """
    if not contents.told.satisfies(Trust.BLOB):
        raise InvalidArgument(f"an index of {desc.digest} that is only {contents.told} is not kept")
    stream = _dump_stream(contents.stream)
    try:
        listed = listing.dump(contents.entries)
    except InvalidArgument:
        return False  # an entry that no list can hold
    if stream is None or len(listed) > _MAX_UNPACKED:
        return False
    digest = Digest(desc.digest)
    name = str(digest).encode("ascii")
    kind, parts = stream
    body = [_HEAD.pack(kind, len(name), desc.size, contents.stream.size), name, *parts, *_packed(listed)]
    if sum(map(len, body)) > MAX_NBYTES - _SEAL.size:
        return False
    sealed = b"".join(body)
    path = path_of(root, digest)
    with os_errors(f"keep the index of {digest}"):
        make_directory(path.parent)
        replace_file(path, _SEAL.pack(_MAGIC, crc32c(sealed)) + sealed)
    return True


def load(root: Path, desc: Descriptor) -> Contents | None:
    """What is kept of a layer, proven as the blob was when it was read; None where nothing sound is."""
    try:
        path = path_of(root, Digest(desc.digest))
        if os.stat(path).st_size > MAX_NBYTES:
            return None
        return _parse(memoryview(read_small(path, MAX_NBYTES)), desc)
    except (OSError, CorruptData, TooLarge, struct.error):
        return None


def forget(root: Path, digest: Digest) -> None:
    """Keep nothing of a layer any more; nothing kept is no error. `StorageError`."""
    with os_errors(f"forget the index of {digest}"), suppress(FileNotFoundError):
        os.unlink(path_of(root, digest))


def kept(root: Path) -> Iterator[Digest]:
    """The layers of which an index is kept, sound or not."""
    for digest, _ in digest_names(root / "index"):
        yield digest


def tidy(root: Path) -> None:
    """Remove what those left who were killed while they wrote an index."""
    for directory in root.glob("index/*"):
        remove_temporaries(directory)


def _dump_stream(stream: Unpacked) -> tuple[int, list[bytes]] | None:
    """The kind, and what belongs to it."""
    if isinstance(stream, Checkpoints):
        return _POINTS, _dump_points(stream)
    if isinstance(stream, Pieces) and stream.digests is None:
        rest = -1 if stream.rest is None else stream.rest
        rows = (stream.table[number] for number in range(len(stream.table)))
        data = b"".join(_PIECE.pack(span.nbytes, span.packed_at, span.packed_nbytes) for span in rows)
        return _PIECES, [_PIECES_HEAD.pack(_FORMS.index(stream.form), rest), *_packed(data)]
    if isinstance(stream, Plain):
        return _PLAIN, []
    return (_STREAMED, []) if isinstance(stream, Streamed) else None


def _dump_points(stream: Checkpoints) -> list[bytes]:
    parts = [_POINTS_HEAD.pack(stream.packed_end, len(stream.points))]
    tails = []
    for bare, window, digest in stream.points:
        parts.append(
            _POINT.pack(
                bare.at,
                bare.packed_at,
                bare.crc32,
                bare.member_nbytes,
                bare.nbits,
                bare.bits,
                bare.header_nbits,
                len(bare.ahead),
                len(window),
                digest,
            )
        )
        tails += [bare.header, bare.ahead, window]
    return parts + tails


def _parse(data: memoryview, desc: Descriptor) -> Contents:
    magic, crc = _SEAL.unpack_from(data)
    body = _Cut(data[_SEAL.size :])
    if magic != _MAGIC or crc != crc32c(body.rest):
        raise CorruptData("not an index, or a damaged one")
    kind, name_nbytes, blob_nbytes, size = body.unpack(_HEAD)
    if body.take(name_nbytes) != str(desc.digest).encode("ascii") or blob_nbytes != desc.size or size >= 1 << 63:
        raise CorruptData("an index of something else")
    stream = _stream(kind, body, size, desc)
    listed = _unpacked(body)
    if len(body.rest) or stream.size != size:
        raise CorruptData("an index that is not what it says")
    return Contents(listing.load(listed, size), stream, Trust.BLOB)


def _stream(kind: int, body: _Cut, size: int, desc: Descriptor) -> Unpacked:
    if kind == _POINTS:
        return _points(body, size, desc.size)
    if kind == _PIECES:
        form, rest = body.unpack(_PIECES_HEAD)
        data = _unpacked(body)
        if form >= len(_FORMS) or len(data) % _PIECE.size or not -1 <= rest < len(data) // _PIECE.size:
            raise CorruptData("an index of pieces that are none")
        return Pieces(SpanTable(desc.size, _PIECE.iter_unpack(data)), _FORMS[form], rest=None if rest < 0 else rest)
    if kind == _PLAIN:
        return Plain(desc.size)
    if kind == _STREAMED:
        return Streamed(desc.size, size, desc.media_type)
    raise CorruptData("an index of an unknown kind")


def _points(body: _Cut, size: int, blob_nbytes: int) -> Checkpoints:
    packed_end, count = body.unpack(_POINTS_HEAD)
    if packed_end > blob_nbytes or count > len(body.rest) // _POINT.size:
        raise CorruptData("an index with more points than it has")
    rows = [body.unpack(_POINT) for _ in range(count)]
    points = []
    for at, packed_at, crc32, member_nbytes, nbits, bits, header_nbits, ahead_nbytes, window_nbytes, sha256 in rows:
        header = body.take((header_nbits + 7) // 8)
        ahead = body.take(ahead_nbytes)
        bare = GzipPoint(packed_at, at, crc32, member_nbytes, nbits, bits, b"", header_nbits, header, ahead)
        points.append(Checkpoint(bare, body.take(window_nbytes), sha256))
    return Checkpoints(points, size, packed_end)


def _packed(data: bytes) -> tuple[bytes, bytes]:
    """A section: its length, and `data` packed."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return _SECTION.pack(len(packed)), packed


def _unpacked(body: _Cut) -> bytes:
    (nbytes,) = body.unpack(_SECTION)
    packed = body.take(nbytes)
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= _MAX_UNPACKED:
            raise TooLarge("a part of an index that is too long")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptData(f"a part of an index that cannot be unpacked: {error}") from None


class _Cut:
    """Bytes that are taken off one part after another. `CorruptData`, `struct.error`: there are no more."""

    def __init__(self, data: memoryview) -> None:
        self.rest = data

    def take(self, nbytes: int) -> bytes:
        if nbytes > len(self.rest):
            raise CorruptData("an index that ends early")
        part, self.rest = self.rest[:nbytes], self.rest[nbytes:]
        return bytes(part)

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.take(form.size))
