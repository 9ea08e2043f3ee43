"""Which chunks of a blob are here, on disk (`spec/tee.md` section 1).

The file `map`, little endian:

    0      two header slots of 512 bytes, written in turn: the one of the higher sequence whose CRC fits counts; the
           last 8 bytes are another number whenever chunks that were here have been lost
    1024   LIVE     a byte a chunk: what is in `data`, as far as the kernel knows; shared between processes
           DURABLE  a byte a chunk: what was in `data` at the last checkpoint, on the disk
           CRC      four bytes a chunk: CRC-32C of what was written, against rot and never for trust

LIVE is right as long as the machine runs, whoever is killed: what is written to a file and to a shared mapping of one
is the kernel's. After the machine went down only DURABLE counts. Each process looks at a chunk's CRC before it uses it
for the first time, unless it brought it itself: neither the map nor the data may have changed behind its back. A byte
a chunk, where a bit would do, is set without asking other processes, and read without arithmetic.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from blobtee.core import crc32c, crc32c_each
from blobtee.errors import DataLoss
from blobtee.oci import Digest

CHUNK = 64 << 10
"""Bytes of a chunk: what is fetched, marked and proven as one. The last one of a blob is what is left."""

ABSENT, HERE, UNCHECKED = 0, 1, 2
"""States of a chunk in LIVE. UNCHECKED was kept over a restart of the machine: its CRC is looked at before use."""

_ANY = bytes([0] + [255] * 255)
_TO_CHECK = bytes([ABSENT] + [UNCHECKED] * 255)
_MAGIC = b"blobtee\x02"
_SLOT = 512
_LIVE = 2 * _SLOT
_LOSSES = slice(_LIVE - 8, _LIVE)
_HEADER = struct.Struct("<8sQQQB36s136s")
"""Magic with version; sequence; size; inode of data; whether each chunk was proven when it came; boot id;
digest. A CRC-32C of it all follows."""


def chunks_of(size: int) -> int:
    """Chunks of a blob of `size` bytes."""
    return -(-size // CHUNK)


def boot_id() -> str:
    """Which run of the machine this is (proc(5)); "" where nobody says, and then no two are the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class Map:
    """The map of one blob. Marks may be set by any thread of any process that holds the chunks' claims; what writes
    the header is for one at a time (`checkpoint`)."""

    def __init__(self, path: Path, digest: Digest, size: int, inode: int) -> None:
        """Open the map of the file `inode`; `DataLoss` when it is damaged, or another blob's, or another file's.

        When it is from another run of the machine, LIVE is made of DURABLE here: nobody else may be opening it.
        `proven` is what it was created with.
        """
        self.chunks = chunks_of(size)
        self._identity = (digest, size, inode)
        nbytes = map_nbytes(size)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(fd).st_size != nbytes:
                raise DataLoss(f"the map of {digest} has a wrong length")
            self._fd = fd
            self.bytes = mmap.mmap(fd, nbytes)
        except BaseException:
            os.close(fd)
            raise
        self._durable = _LIVE + self.chunks
        self._crcs = self._durable + self.chunks
        try:
            header = self._read_header()
            self.proven = header.proven
            if not header.boot or header.boot != boot_id():
                self._recover()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, digest: Digest, size: int, inode: int, *, proven: bool) -> None:
        """Write an empty map; `proven`: of chunks that are checked, each by a digest of its own, before they are
        marked.

        Every byte of it is given its place on the disk: a full one must not be found out about
        by a store into the mapping, which kills the process."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, map_nbytes(size))
            os.pwrite(fd, _packed(_Header(1, proven, boot_id()), (digest, size, inode)), _SLOT)
            os.fsync(fd)
        finally:
            os.close(fd)

    def is_here(self, first: int, last: int) -> bool:
        """Whether each chunk of [first, last) is here and may be used."""
        return self.bytes[_LIVE + first : _LIVE + last].count(HERE) == last - first

    def next_absent(self, first: int, last: int) -> int:
        """The first chunk of [first, last) that is not here; `last` if there is none."""
        at = self.bytes.find(b"\0", _LIVE + first, _LIVE + last)
        return last if at < 0 else at - _LIVE

    def next_present(self, first: int, last: int) -> int:
        """The first chunk of [first, last) that is here, checked or not; `last` if there is none."""
        found = [self.bytes.find(state, _LIVE + first, _LIVE + last) for state in (b"\1", b"\2")]
        return min((at - _LIVE for at in found if at >= 0), default=last)

    def count(self) -> int:
        """Chunks that are here."""
        return self.chunks - self.bytes[_LIVE : _LIVE + self.chunks].count(ABSENT)

    def mark(self, first: int, data: memoryview) -> None:
        """The chunks in `data`, consecutive from `first`, have been written."""
        crcs = crc32c_each(data, CHUNK)
        count = len(crcs) // 4
        at = self._crcs + 4 * first
        self.bytes[at : at + len(crcs)] = crcs
        self.bytes[_LIVE + first : _LIVE + first + count] = bytes([HERE]) * count

    def check(self, chunk: int, data: memoryview, *, sound: bool = True) -> bool:
        """Whether a chunk that is here still has the bytes that were written, `data`, and is `sound` besides. It is
        marked accordingly."""
        (crc,) = struct.unpack_from("<I", self.bytes, self._crcs + 4 * chunk)
        sound = sound and crc == crc32c(data)
        if not sound:
            self.bytes[_LOSSES] = os.urandom(8)
            self.bytes[self._durable + chunk] = ABSENT
        self.bytes[_LIVE + chunk] = HERE if sound else ABSENT
        return sound

    def state(self, chunk: int) -> int:
        return self.bytes[_LIVE + chunk]

    @property
    def losses(self) -> bytes:
        """Another value whenever chunks that were here are not any more, because the disk did not take them."""
        return self.bytes[_LOSSES]

    def forget(self, first: int, last: int) -> None:
        """The chunks [first, last), marked by who has their claims, are not to be believed."""
        self.bytes[_LIVE + first : _LIVE + last] = bytes(last - first)

    def snapshot(self) -> bytes:
        """LIVE as it is, for `settle`."""
        return self.bytes[_LIVE : _LIVE + self.chunks]

    def settle(self, snapshot: bytes) -> None:
        """What `snapshot` says has been synced: it survives the machine from now on. One thread of one process at a
        time; the chunks that were dropped since then stay dropped."""
        still = int.from_bytes(self.snapshot().translate(_ANY), "little")
        kept = int.from_bytes(snapshot, "little") & still
        self.bytes[self._durable : self._durable + self.chunks] = kept.to_bytes(self.chunks, "little")
        self.bytes.flush()
        self._write_header()

    def unsettle(self) -> None:
        """A sync failed: nobody knows what of `data` reached the disk since the last one, so it counts as lost."""
        # Before and after: who marks a chunk meanwhile looks at it behind that.
        self.bytes[_LOSSES] = os.urandom(8)
        durable = self.bytes[self._durable : self._durable + self.chunks].translate(_ANY)
        left = int.from_bytes(durable, "little") & int.from_bytes(self.snapshot(), "little")
        self.bytes[_LIVE : _LIVE + self.chunks] = left.to_bytes(self.chunks, "little")
        self.bytes[_LOSSES] = os.urandom(8)

    def close(self) -> None:
        """The mapping itself lives as long as somebody reads by it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _recover(self) -> None:
        durable = self.bytes[self._durable : self._durable + self.chunks]
        self.bytes[_LOSSES] = os.urandom(8)
        self.bytes[_LIVE : _LIVE + self.chunks] = durable.translate(_TO_CHECK)
        self._write_header()

    def _write_header(self) -> None:
        # Another process may have written some since.
        sequence = self._read_header().sequence + 1
        packed = _packed(_Header(sequence, self.proven, boot_id()), self._identity)
        os.pwrite(self._fd, packed, sequence % 2 * _SLOT)
        os.fsync(self._fd)

    def _read_header(self) -> _Header:
        sound = [slot for slot in map(self._read_slot, range(2)) if slot is not None]
        if not sound:
            raise DataLoss(f"the map of {self._identity[0]} is damaged, or another blob's")
        return max(sound, key=lambda slot: slot.sequence)

    def _read_slot(self, number: int) -> _Header | None:
        raw = self.bytes[number * _SLOT : (number + 1) * _SLOT]
        (crc,) = struct.unpack_from("<I", raw, _HEADER.size)
        if crc != crc32c(raw[: _HEADER.size]):
            return None
        magic, sequence, size, inode, proven, boot, digest = _HEADER.unpack_from(raw)
        if magic != _MAGIC or (_text(digest), size, inode) != self._identity:
            return None
        return _Header(sequence, bool(proven), _text(boot))


def map_nbytes(size: int) -> int:
    """Bytes of the map of a blob of `size` bytes: 6 for each 65,536, and 1,024."""
    return _LIVE + 6 * chunks_of(size)


@dataclass(frozen=True)
class _Header:
    """What a slot says, beside whose map it is."""

    sequence: int
    proven: bool
    boot: str


def _packed(header: _Header, identity: tuple[Digest, int, int]) -> bytes:
    digest, size, inode = identity
    packed = _HEADER.pack(
        _MAGIC,
        header.sequence,
        size,
        inode,
        header.proven,
        header.boot.encode("ascii", "replace"),
        digest.encode("ascii"),
    )
    return packed + struct.pack("<I", crc32c(packed))


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")
