"""Indexes of layers as files of a store's root: what was found out once by reading a whole layer.

`<root>/index/<algorithm>/<hex>` has the layer's entries and the points that the blob can be unpacked from, with digests
of what lies between them. It is made of a blob whose digest was right, and stays when the blob itself goes: what is
fetched again is compared with it. A file that is damaged, of another version or of something else counts as none: it
is made again when the layer is read whole the next time.

Little endian: magic with version, CRC-32C of all that follows; the kind of index, the length of the blob's digest, the
sizes of the blob and of what it unpacks to; the digest; what belongs to the kind; the list of entries (`listing`),
packed, with its length. Of gzip: where the last span ends, how many points there are; a record for each; of each the
block header, the bytes ahead and the packed window.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import zstandard

from blobtee.content import Trust
from blobtee.content.files import digest_names, make_directory, os_errors, read_small, replace_file
from blobtee.core import crc32c
from blobtee.errors import CorruptData, InvalidArgument, TooLarge
from blobtee.oci import Digest
from blobtee.seeking import listing
from blobtee.seeking.api import Contents
from blobtee.seeking.checkpoints import Checkpoint, Checkpoints

MAX_NBYTES = 256 << 20
"""Bytes of one file: that of a gzip layer of some 40 GB."""

_MAX_LISTED = 256 << 20
_LEVEL = 6
_MAGIC = b"btindex\x01"
_SEAL = struct.Struct("<8sI")
_HEAD = struct.Struct("<BHQQ")
_SECTION = struct.Struct("<Q")
_POINTS = 1
_POINTS_HEAD = struct.Struct("<QI")
_POINT = struct.Struct("<QQIIBBHBI32s")


def path_of(root: Path, digest: Digest) -> Path:
    return root / "index" / digest.algorithm / digest.hex


def keep(root: Path, digest: Digest, blob_nbytes: int, contents: Contents) -> bool:
    """Keep what is known of a layer, durably and instead of what was kept before; False when it is nothing that can be
    kept, or too large.

    `InvalidArgument`: the contents are not proven by the whole blob. `StorageFull`, `StorageError`: what was there
    before stays.
    """
    if not contents.told.satisfies(Trust.BLOB):
        raise InvalidArgument(f"an index of {digest} that is only {contents.told} is not kept")
    if not isinstance(contents.stream, Checkpoints):
        return False
    try:
        data = _dump(digest, blob_nbytes, contents.stream, listing.dump(contents.entries))
    except InvalidArgument:
        return False  # an entry that no list can hold
    if len(data) > MAX_NBYTES:
        return False
    path = path_of(root, digest)
    with os_errors(f"keep the index of {digest}"):
        make_directory(path.parent)
        replace_file(path, data)
    return True


def load(root: Path, digest: Digest, blob_nbytes: int) -> Contents | None:
    """What is kept of a layer, proven as the blob was when it was read; None where nothing sound is."""
    try:
        path = path_of(root, digest)
        if os.stat(path).st_size > MAX_NBYTES:
            return None
        return _parse(memoryview(read_small(path, MAX_NBYTES)), digest, blob_nbytes)
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


def _dump(digest: Digest, blob_nbytes: int, stream: Checkpoints, listed: bytes) -> bytes:
    name = str(digest).encode("ascii")
    parts = [_HEAD.pack(_POINTS, len(name), blob_nbytes, stream.size), name]
    parts.append(_POINTS_HEAD.pack(stream.packed_end, len(stream.points)))
    for point in stream.points:
        parts.append(
            _POINT.pack(
                point.at,
                point.packed_at,
                point.crc32,
                point.member_nbytes,
                point.nbits,
                point.bits,
                point.header_nbits,
                len(point.ahead),
                len(point.window),
                point.digest,
            )
        )
    parts += [part for point in stream.points for part in (point.header, point.ahead, point.window)]
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(listed)
    body = b"".join([*parts, _SECTION.pack(len(packed)), packed])
    return _SEAL.pack(_MAGIC, crc32c(body)) + body


def _parse(data: memoryview, digest: Digest, blob_nbytes: int) -> Contents:
    magic, crc = _SEAL.unpack_from(data)
    body = _Cut(data[_SEAL.size :])
    if magic != _MAGIC or crc != crc32c(body.rest):
        raise CorruptData("not an index, or a damaged one")
    kind, name_nbytes, stated, size = body.unpack(_HEAD)
    if kind != _POINTS or body.take(name_nbytes) != str(digest).encode("ascii") or stated != blob_nbytes:
        raise CorruptData("an index of something else")
    if size >= 1 << 63:
        raise CorruptData("an index of a stream that is longer than numbers can say")
    stream = _points(body, size, blob_nbytes)
    (nbytes,) = body.unpack(_SECTION)
    packed = body.take(nbytes)
    if len(body.rest):
        raise CorruptData("an index with something behind it")
    return Contents(listing.load(_unpacked(packed), size), stream, Trust.BLOB)


def _points(body: _Cut, size: int, blob_nbytes: int) -> Checkpoints:
    packed_end, count = body.unpack(_POINTS_HEAD)
    if packed_end > blob_nbytes or count > len(body.rest) // _POINT.size:
        raise CorruptData("an index with more points than it has")
    rows = [body.unpack(_POINT) for _ in range(count)]
    points = []
    for at, packed_at, crc32, member_nbytes, nbits, bits, header_nbits, ahead_nbytes, window_nbytes, sha256 in rows:
        numbers = at, packed_at, crc32, member_nbytes, nbits, bits, header_nbits
        header = body.take((header_nbits + 7) // 8)
        points.append(Checkpoint(*numbers, header, body.take(ahead_nbytes), body.take(window_nbytes), sha256))
    return Checkpoints(points, size, packed_end)


def _unpacked(packed: bytes) -> bytes:
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= _MAX_LISTED:
            raise TooLarge("a list of entries that is too long")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptData(f"a list of entries that cannot be unpacked: {error}") from None


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
