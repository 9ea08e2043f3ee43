"""One blob's files: what of it is here, and the reading and writing of that (`spec/tee.md` sections 1 and 4).

    <root>/partial/<algorithm>/<hex>/data    sparse, as long as the blob
                                     map     which chunks are in it (`tee.map`)
                                     lock    who does what, between processes (`tee.claims`)

The folder is made and removed under the lock's LIFE. Who has the files open holds USE with others; taking space away
from under them needs it alone.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blobtee import tasks
from blobtee.content.files import make_directory, os_errors, sync_directory, write_all
from blobtee.errors import BlobteeError, Closed, DataLoss, SizeMismatch, StorageError
from blobtee.oci import Digest
from blobtee.tee.claims import CHECKPOINT, FILL, LIFE, USE, Claims
from blobtee.tee.digests import ChunkDigests, cut
from blobtee.tee.map import ABSENT, CHUNK, HERE, Map, chunks_of

_logger = logging.getLogger(__name__)

_CLOSED = -1
_PAUSE = 0.001

CHECKPOINT_NBYTES = 64 << 20
CHECKPOINT_SECONDS = 5.0
"""What a power cut may cost: bytes that came, and seconds since the first of them."""

CHECKPOINT_PAUSE = 1.0
"""Seconds that have to be at stake in any case: where so much comes in no time, syncing it holds it up more than
bringing it again would."""


class Handle(int):
    """A descriptor that closes when nobody refers to it any more: who copies the reference may read on, whatever is
    closed elsewhere."""

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self)


class Partial:
    """What is here of one blob. Thread-safe; any number of processes may have one of the same blob."""

    def __init__(self, root: Path, digest: Digest, size: int) -> None:
        """Open what is there of the blob, or begin anew where nothing sound is. Errors of the file system;
        `SizeMismatch`: somebody has it open in another size."""
        self.root = root
        self.digest = digest
        self.size = size
        self.chunks = chunks_of(size)
        self.failure: Callable[[], BlobteeError] | None = None
        """Makes the error for the readers, once the bytes that are here have turned out not to be the blob's."""
        self.whole = False
        """It was promoted: every byte is here, and is the blob's."""
        self._directory = root / "partial" / digest.algorithm / digest.hex
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._unsettled = 0
        self._since = time.monotonic()
        self._closed = False
        with os_errors(f"open the partial blob {digest}"):
            while not self._enter():
                tasks.sleep(_PAUSE)
        self.warm = bytearray(self.chunks)
        """Chunks that this process has seen in the page cache: reading them by the mapping waits for nothing."""
        self._sound = bytearray(self.chunks)
        """Chunks that this process has written or looked at: of the others the map alone says that they are here."""

    def _enter(self) -> bool:
        """Make the folder where it is missing, and open the files in it; False when it was removed meanwhile."""
        make_directory(self._directory)
        try:
            self.claims = Claims(self._directory / "lock")
        except FileNotFoundError:
            return False
        try:
            with self.claims.holding(LIFE):
                locked = is_locked_by(self._directory, self.claims)
                if locked and self.claims.take(USE, USE + 1, shared=True) and self._open():
                    return True
        except BaseException:
            self.claims.close()
            raise
        self.claims.close()
        return False

    def _open(self) -> bool:
        """Open the files, made anew where nothing sound is; False when that has to be tried again."""
        self.digests = ChunkDigests.load(self.root, self.digest, self.size)
        data = self._directory / "data"
        try:
            self.fd: int = Handle(os.open(data, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
            found = os.fstat(self.fd)
            if found.st_size != self.size:
                raise DataLoss(f"the partial blob {self.digest} has a wrong size")
            self.map = Map(self._directory / "map", self.digest, self.size, found.st_ino)
            if self.map.proven and self.digests is None:
                # What comes now could not be told from what was checked.
                self.map.close()
                raise DataLoss(f"what proved the chunks of {self.digest} is gone")
        except (FileNotFoundError, DataLoss) as error:
            if not self.claims.take(USE, USE + 1):
                if isinstance(error, FileNotFoundError):
                    # Somebody is just promoting or removing them. Was he killed at that, they are nobody's.
                    if self.claims.free(FILL, FILL + 1) == FILL + 1:
                        remove_files(self._directory)
                    return False
                if found.st_size != self.size:
                    raise SizeMismatch(f"blob {self.digest}, which is being read", self.size, found.st_size) from error
                raise
            if isinstance(error, DataLoss):
                _logger.warning("%s; it is fetched anew", error)
            self._begin()
            self.claims.take(USE, USE + 1, shared=True)
        if self.digests is not None and not self.map.proven:
            self.digests = None
        try:
            self.inode = os.fstat(self.fd).st_ino
            os.utime(self._directory / "lock")  # when it was last used, for who makes room
            # Large reads go by the descriptor, small ones by the mapping: no call, and no thread is switched to.
            self.mapping = mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ) if self.size else None
        except BaseException:
            self.map.close()
            raise
        return True

    def _begin(self) -> None:
        for name in ("map", "data"):
            with suppress(FileNotFoundError):
                os.unlink(self._directory / name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = Handle(os.open(self._directory / "data", flags, 0o600))
        os.ftruncate(self.fd, self.size)
        os.fsync(self.fd)
        inode = os.fstat(self.fd).st_ino
        path = self._directory / "map"
        Map.create(path, self.digest, self.size, inode, proven=self.digests is not None)
        sync_directory(self._directory)
        self.map = Map(path, self.digest, self.size, inode)

    # ---- reading ----------------------------------------------------------------------------------------------------

    @property
    def proven(self) -> bool:
        """Whether every chunk that is here is the blob's, and not only what a source sent."""
        return self.whole or self.digests is not None

    @property
    def data(self) -> Path:
        return self._directory / "data"

    def is_here(self, first: int, last: int) -> bool:
        """Whether the chunks [first, last) may be read. Those that this process sees for the first time are looked at
        now."""
        if self.failure is not None:
            raise self.failure()
        if self.whole or (self._sound.count(1, first, last) == last - first and self.map.is_here(first, last)):
            return True
        for chunk in range(first, last):
            state = self.map.state(chunk)
            if state == ABSENT or not ((state == HERE and self._sound[chunk]) or self._check(chunk)):
                return False
        return True

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill `view` with what is here from `offset` on, to its end. The caller has seen that it is."""
        fd = self.fd
        if fd == _CLOSED:
            raise Closed(f"the partial blob {self.digest} is closed")
        filled = 0
        with os_errors(f"read the partial blob {self.digest}"):
            while filled < view.nbytes:
                with view[filled:] as rest:
                    n = os.preadv(fd, [rest], offset + filled)
                if not n:
                    raise DataLoss(f"the partial blob {self.digest} has lost its end")
                filled += n

    def warm_up(self, chunk: int) -> None:
        """Have small reads of the chunk, which is here, go by the mapping from now on."""
        with suppress(OSError):
            os.posix_fadvise(self.fd, chunk * CHUNK, CHUNK, os.POSIX_FADV_WILLNEED)
        self.warm[chunk] = 1
        if self.failure is not None:
            self.warm[chunk] = 0

    def _check(self, chunk: int) -> bool:
        start = chunk * CHUNK
        buffer = memoryview(bytearray(min(CHUNK, self.size - start)))
        self.readinto(start, buffer)
        # Where a digest says it, the CRC alone is not believed.
        proven = self.digests is None or all(self.digests.agree(chunk, [buffer]))
        sound = self.map.check(chunk, buffer, sound=proven)
        self._sound[chunk] = sound
        if not sound:
            _logger.warning("chunk %d of %s is not what it was; it is fetched again", chunk, self.digest)
        return sound

    # ---- writing ----------------------------------------------------------------------------------------------------

    def write(self, first: int, data: memoryview) -> list[int]:
        """Put the chunks in `data`, consecutive from `first`, in their place and mark them. The caller has claimed
        them.

        Those that are not what `digests` says are neither written nor marked; the answer names them.
        """
        losses = self.map.losses
        if self.digests is None:
            self._put(first, data)
            bad = []
        else:
            chunks = cut(data)
            good = self.digests.agree(first, chunks)
            for number, chunk in enumerate(chunks):
                if good[number]:
                    self._put(first + number, chunk)
            bad = [first + number for number, sound in enumerate(good) if not sound]
        if self.map.losses != losses:
            # Written before a sync failed, and marked after: these are lost too.
            count = chunks_of(data.nbytes)
            self.map.forget(first, first + count)
            self.warm[first : first + count] = self._sound[first : first + count] = bytes(count)
        with self._lock:
            if not self._unsettled:
                self._since = time.monotonic()
            self._unsettled += data.nbytes
        return bad

    def _put(self, first: int, data: memoryview) -> None:
        with os_errors(f"keep a part of {self.digest}"):
            write_all(self.fd, data, first * CHUNK)
        # Marked before they are written, one failure would serve zeros for ever.
        self.map.mark(first, data)
        last = first + chunks_of(data.nbytes)
        self.warm[first:last] = self._sound[first:last] = b"\1" * (last - first)

    def allocate(self) -> None:
        """Ask for the space of all of it, so that a full disk says so before anything is fetched."""
        with os_errors(f"make room for blob {self.digest}"):
            os.posix_fallocate(self.fd, 0, self.size)

    def sync(self, losses: bytes) -> None:
        """Have all bytes on the disk, and be sure that they are those that were here when `map.losses` was `losses`.

        `StorageError`: the disk has lost some since; what is left stays.
        """
        with self._settling, self.claims.holding(CHECKPOINT), os_errors(f"keep blob {self.digest}"):
            self._sync()
            # A sync that failed elsewhere may have been told there and nowhere else.
            if self.map.losses != losses or not self.map.is_here(0, self.chunks):
                raise lost(self.digest)

    @property
    def due_in(self) -> float | None:
        """Seconds until it is time for a checkpoint, 0 when it is; None while nothing is there for one."""
        with self._lock:
            if not self._unsettled:
                return None
            needed = CHECKPOINT_PAUSE if self._unsettled >= CHECKPOINT_NBYTES else CHECKPOINT_SECONDS
            return max(self._since + needed - time.monotonic(), 0)

    def checkpoint(self) -> None:
        """Have what is here survive a power cut.

        A failed sync loses what came since the last one: nobody knows what of it reached the disk.
        """
        with self._settling, self.claims.holding(CHECKPOINT), os_errors(f"keep a part of {self.digest}"):
            with self._lock:
                unsettled, self._unsettled = self._unsettled, 0
            snapshot = self.map.snapshot()
            self._sync()
            try:
                self.map.settle(snapshot)
            except OSError:
                # It is all there, and not noted: later, then.
                with self._lock:
                    self._unsettled += unsettled
                    self._since = time.monotonic()
                raise

    def _sync(self) -> None:
        try:
            os.fdatasync(self.fd)
        except OSError:
            # Nobody knows what of it reached the disk, and the kernel will not say so again.
            self.map.unsettle()
            self.warm[:] = self._sound[:] = bytes(self.chunks)
            raise

    # ---- the end ----------------------------------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Whether the files in the folder are still these."""
        try:
            return os.stat(self.data).st_ino == self.inode
        except FileNotFoundError:
            return False

    def promote(self, take_in: Callable[[Path], object]) -> None:
        """Give the file away: `take_in` gives it the blob's name, and the folder goes. `StorageError`: another one is
        in its place, as somebody removed this one."""
        with self.claims.holding(LIFE), os_errors(f"keep blob {self.digest}"):
            if not self.is_current():
                raise StorageError(f"cannot keep blob {self.digest}: its file was removed while it came")
            take_in(self.data)
            self.whole = True
            remove_files(self._directory)

    def spoil(self, failure: Callable[[], BlobteeError]) -> None:
        """What is here is not the blob's: from now on nobody gets any of it."""
        self.failure = failure
        self.warm[:] = bytes(self.chunks)

    def remove(self) -> None:
        """Take the folder away, with what is in it, unless it is another one by now. Readers read on."""
        with self.claims.holding(LIFE), os_errors(f"remove the partial blob {self.digest}"):
            if not is_locked_by(self._directory, self.claims):
                return
            remove_files(self._directory)

    def close(self) -> None:
        """Settle what came, and let go of the files; who reads at this moment ends that. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._unsettled and not self.whole and self.failure is None and self.is_current():
                self.checkpoint()
        finally:
            self.map.close()
            self.claims.close()
            self.fd = _CLOSED


def lost(digest: Digest) -> StorageError:
    """What had come of a blob, and been looked at, did not stay."""
    return StorageError(f"cannot keep blob {digest}: the disk has lost a part of it; run the same again")


def is_locked_by(directory: Path, claims: Claims) -> bool:
    """Whether `claims` are of the folder's lock as it is now, and not of one that was removed with all the rest."""
    try:
        return os.stat(directory / "lock").st_ino == claims.inode
    except FileNotFoundError:
        return False


def remove_files(directory: Path) -> None:
    """Remove a partial blob's files, the lock at last. Whoever does has its LIFE."""
    for name in ("map", "data", "lock"):
        with suppress(FileNotFoundError):
            os.unlink(directory / name)
    with suppress(OSError):
        os.rmdir(directory)
