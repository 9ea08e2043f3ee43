"""The store on disk.

    <root>/blobs/<algorithm>/<hex>        the bytes of a blob
    <root>/ingest/<SHA-256 of ref>/       unfinished blobs (`content.ingests`)
    <root>/broken/                        what was damaged, out of everybody's way
    <root>/oci-layout, index.json         names of images (`content.layout`)
    <root>/blobtee.db                     labels, times and what other rooms keep (`content.database`), a ballast beside
    <root>/.blobtee.lock                  the locks of all of it (`content.locks`)

The first two are containerd's own layout and, with the names, an OCI image layout (`spec/content.md` section 4): a root
that either of them made is adopted as it is; a file that may be written is synced when its blob is first asked for, and
may not be written then (`content.settling`).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

from blobtee.content import filters
from blobtee.content.api import Info, ReaderAt, Status
from blobtee.content.blobs import Blobs
from blobtee.content.checks import check_total
from blobtee.content.database import Database
from blobtee.content.files import make_directory, os_errors, remove_temporaries, sync_file
from blobtee.content.ingests import Ingest, Ingests, encode_ref
from blobtee.content.layout import Layout
from blobtee.content.locks import Locks
from blobtee.content.settling import WRITABLE
from blobtee.content.spares import AT_REST, Spares
from blobtee.content.writer import LocalWriter
from blobtee.errors import (
    AlreadyExists,
    Closed,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RefLocked,
    from_os_error,
)
from blobtee.oci import Descriptor, Digest

DATABASE = "blobtee.db"
_LINK = ".link-"

T = TypeVar("T")


class LocalStore:
    """`Store` on disk, shared by any number of threads and processes. A context manager.

    `metadata` is the database that other rooms keep their tables in, `layout` the names of images, and `problems` says
    in a sentence each what was found damaged and set aside at the opening. After a fork the child opens its own.

    An existing store that may not be written is opened for reading (`read_only`); changing it is `PermissionDenied`.
    Inside a transaction of `metadata` no blob is made or changed, which is `Internal`; it may be discarded.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Open the store in `root`, made when missing.

        `InvalidArgument` when `root` is something else than a directory, `PermissionDenied`, `DataLoss` when the
        metadata are damaged, `FailedPrecondition` when a newer version wrote them. Damaged ingests never matter here.
        """
        self.root = Path(os.path.abspath(root))
        self._mutex = threading.Lock()
        self._writers: dict[str, LocalWriter] = {}
        self._companions: dict[object, object] = {}
        self._closed = False
        self._locks = self._open_root()
        self.read_only = self._locks is None
        try:
            self.metadata = Database(self.root / DATABASE, read_only=self.read_only)
            try:
                self._blobs = Blobs(self.root, self.metadata, self._locks)
                self._ingests = Ingests(self.root, Spares(self._locks) if self._locks is not None else None)
                self.layout = Layout(self.root)
                self.problems: tuple[str, ...] = ()
                if self._locks is not None:
                    self.layout.ensure()
                    self.problems = tuple(self._ingests.recover(self._locks))
            except BaseException:
                self.metadata.close()
                raise
        except BaseException:
            if self._locks is not None:
                self._locks.close()
            raise

    def _open_root(self) -> Locks | None:
        """Make what is missing of the root; None when it may only be read."""
        if "\0" in str(self.root):
            raise InvalidArgument(f"no path has a NUL character: {str(self.root)!r:.300}")
        try:
            if self.root.exists() and not self.root.is_dir():
                raise InvalidArgument(f"{self.root} is not a directory")
            make_directory(self.root / "blobs" / "sha256")
            make_directory(self.root / "ingest")
            if not os.access(self.root, os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, "the directory may not be written")
            return Locks(self.root)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidArgument(f"{error.filename} is not a directory") from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                if os.access(self.root / "blobs", os.R_OK | os.X_OK):
                    return None
                raise PermissionDenied(f"cannot make a store in {self.root}: {error.strerror}") from error
            raise from_os_error(error, f"open the store in {self.root}") from error

    # ---- Provider, Manager --------------------------------------------------------------------------------------

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        """See `Provider`. `DataLoss` when the file has not the size it had when the blob was written."""
        self._check_open()
        return self._blobs.reader(desc)

    def info(self, digest: str) -> Info:
        """See `InfoProvider`. `DataLoss` as for `reader_at`. A blob that is just coming is waited for, but not inside a
        transaction of `metadata`; `StorageError` when what others left or put there cannot be made durable."""
        self._check_open()
        return self._blobs.info(Digest(digest))

    def path(self, digest: Digest) -> str:
        """Where the blob's file is, or would be."""
        return self._blobs.file(digest)

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here to stay and not known to be damaged, which costs less than `info` of one that is
        not. Waits, and fails, as `info`."""
        self._check_open()
        return self._blobs.has(digest)

    def sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Sizes in bytes of those of `digests`, some hundreds at most, of which `has` is true."""
        self._check_open()
        return self._blobs.sizes(digests)

    def update(self, digest: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        """See `Manager.update`. Durable when it returns."""
        self._check_open()
        return self._blobs.update(Digest(digest), labels, replace)

    def walk(self, *filters_: str) -> Iterator[Info]:
        """See `Manager`; in no order. A damaged blob is listed with the size that it should have."""
        self._check_open()
        return self._blobs.walk(filters.parse(filters_))

    def delete(self, digest: str) -> None:
        """See `Manager`. One that is in quarantine is `NotFound` too, and forgotten with its labels."""
        self._check_open()
        self._blobs.delete(Digest(digest))

    def discard(self, digest: str) -> bool:
        """As `delete`, but never waits: it may be called inside a transaction of `metadata`, where waiting for a
        writer, who waits for the transaction, would be for ever. False when the blob is not there, or in somebody's
        hands."""
        self._check_open()
        return self._blobs.discard(Digest(digest))

    def evict(self, digest: str, may_go: Callable[[], AbstractContextManager[bool]]) -> bool:
        """Give the bytes of a blob back that can be had again; its labels stay with the digest, and a blob committed
        later has them from its first moment on. Readers that are open read on, and keep the space until they close.

        `may_go` is entered inside a transaction of `metadata`, as the last thing before: whether the blob may go, as
        nobody holds it who counts on it. Who holds it afterwards, sees it gone. False when it may not, is not there, or
        is in somebody's hands; never waits for those.
        """
        self._check_open()
        return self._blobs.evict(Digest(digest), may_go)

    def evicted(self) -> list[Info]:
        """Blobs that gave their bytes back and have not come again: what is kept of them."""
        self._check_open()
        return self._blobs.evicted()

    def forget(self, digest: str) -> None:
        """Drop what is kept of a blob that gave its bytes back. Of any other, nothing happens."""
        self._check_open()
        self._blobs.forget(Digest(digest))

    def last_used(self, digest: str) -> int:
        """When the blob was last opened here to be read, or came; nanoseconds since the epoch, to about a minute
        (`content.lastuse`). `NotFound`."""
        self._check_open()
        return self._blobs.last_used(Digest(digest))

    def quarantine(self, digest: str) -> Info:
        """Move a blob that is known to be bad to `<root>/broken/`; `NotFound`.

        Its labels, returned here, stay with the digest: a good blob committed later has them from its first moment on.
        """
        self._check_open()
        return self._blobs.quarantine(Digest(digest))

    def mend(self, digest: str) -> bool:
        """Whether the file has the blob's own bytes, and only the metadata said another size; they are right then.
        `NotFound`: there is no file. Reads all of it."""
        self._check_open()
        return self._blobs.mend(Digest(digest))

    def link(self, path: Path, digest: Digest) -> Info:
        """Make the file at `path`, whose bytes the caller has proven and nobody changes, the blob `digest` by a hard
        link. It is synced, unless nobody may write it: then whoever finished it has done that. `AlreadyExists`;
        `FailedPrecondition`: the two are on different file systems, or this one has no links."""
        name = self.root / f"{_LINK}{digest.algorithm}-{digest.hex}"
        with self._writable().holding(name.name), os_errors(f"link {path}"):
            with suppress(FileNotFoundError):
                os.unlink(name)  # of one that was killed here
            try:
                os.link(path, name, follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                    raise FailedPrecondition(f"{path} cannot be linked into {self.root}: {error.strerror}") from error
                raise
            try:
                found = name.stat()
                if found.st_mode & WRITABLE:
                    sync_file(name)
                return self._place(name, found, digest, {})
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name)

    def tidy(self) -> None:
        """Remove what those left in the root who were killed: links, and files that were to take another's place."""
        locks = self._writable()
        remove_temporaries(self.root)
        with os_errors(f"tidy {self.root}"):
            for name in os.listdir(self.root):
                if name.startswith(_LINK) and locks.try_acquire(name):
                    try:
                        with suppress(FileNotFoundError):
                            os.unlink(self.root / name)
                    finally:
                        locks.release(name)

    def take_in(self, path: Path, digest: Digest, labels: Mapping[str, str] | None = None) -> Info:
        """Make the file at `path`, whose bytes the caller has proven and synced, the blob `digest` by giving it the
        blob's name. `AlreadyExists`: it stays where it is. It must be on the file system of the root."""
        self._writable()
        with os_errors(f"take in {path}"):
            return self._place(path, path.stat(), digest, labels or {})

    def quarantined(self) -> list[Info]:
        """Blobs that were put in quarantine and have not been brought back."""
        self._check_open()
        return self._blobs.quarantined()

    # ---- Ingester, IngestManager ----------------------------------------------------------------------------------

    def writer(self, ref: str, *, total: int = 0, expected: str | None = None) -> LocalWriter:
        """See `Ingester`. Resuming reads what is there, to hash it. `AlreadyExists` removes a leftover of `ref`."""
        locks = self._writable()
        ingest = self._ingests.of(ref)
        if not locks.try_acquire(ingest.lock):
            raise RefLocked(f"ingest {ref[:200]!r} is being written by somebody else")
        try:
            check_total(total)
            digest = Digest(expected) if expected else None
            with os_errors(f"open ingest {ref[:200]!r}"):
                if digest is not None and self._blobs.has(digest):
                    ingest.remove()
                    raise AlreadyExists(f"blob {digest} is in the store already")
                status = self._begin(ingest, ref, total, digest)
                writer = LocalWriter(ingest, status, self._blobs, lambda: self._release(ingest))
        except BaseException:
            ingest.close()
            locks.release(ingest.lock)
            raise
        with self._mutex:
            closed = self._closed
            self._writers[ingest.lock] = writer
        if closed:
            writer.close()
            self._check_open()
        return writer

    def status(self, ref: str) -> Status:
        """See `IngestManager.status`; of a writer in any process."""
        self._check_open()
        if not ref:
            raise NotFound("no ingest without a ref")
        ingest = self._ingests.of(ref)
        with self._mutex:
            writer = self._writers.get(ingest.lock)
        if writer is not None:
            return writer.status
        with os_errors(f"read ingest {ref[:200]!r}"):
            try:
                return ingest.read()
            except NotFound:
                raise NotFound(f"no ingest {ref[:200]!r} in {self.root}") from None

    def statuses(self, *filters_: str) -> list[Status]:
        """See `IngestManager.statuses`; of the writers of all processes."""
        self._check_open()
        matches = filters.parse(filters_)
        with self._mutex:
            open_now = {writer.status.ref: writer.status for writer in self._writers.values()}
        found = (open_now.get(status.ref, status) for status in self._ingests.statuses())
        return [status for status in found if matches(filters.ingest_fields(status.ref))]

    def is_locked(self, ref: str) -> bool:
        """Whether somebody is writing the ingest, here or in another process."""
        self._check_open()
        ingest = self._ingests.of(ref)
        if self._locks is None:
            return False
        if not self._locks.try_acquire(ingest.lock):
            return True
        self._locks.release(ingest.lock)
        return False

    def abort(self, ref: str) -> None:
        """See `IngestManager.abort`."""
        locks = self._writable()
        if not ref:
            return
        ingest = self._ingests.of(ref)
        if not locks.try_acquire(ingest.lock):
            raise RefLocked(f"ingest {ref[:200]!r} is being written")
        try:
            with os_errors(f"remove ingest {ref[:200]!r}"):
                ingest.remove()
        finally:
            locks.release(ingest.lock)

    def companion(self, make: Callable[[LocalStore], T]) -> T:
        """What `make` makes of this store, made when it is first asked for: whoever has the store object shares it, and
        it lives as long. For rooms above that keep something for each store."""
        with self._mutex:
            if make not in self._companions:
                self._companions[make] = make(self)
            return cast(T, self._companions[make])

    # ---- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close what is open, writers included (their data stays); readers read on. A second call does nothing."""
        with self._mutex:
            self._closed = True
            writers = list(self._writers.values())
        for writer in writers:
            writer.close()
        self._ingests.end()
        self.metadata.close()
        if self._locks is not None:
            self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def _begin(self, ingest: Ingest, ref: str, total: int, expected: Digest | None) -> Status:
        """State of the ingest that a new writer goes on with, made when missing."""
        status = ingest.begin(encode_ref(ref), total, expected)
        if status is not None:
            return status
        try:
            status = ingest.read()
        except (NotFound, DataLoss):
            return ingest.create(encode_ref(ref), total, expected)
        if total and status.total and total != status.total:
            return ingest.create(encode_ref(ref), total, expected)
        if total and not status.total:
            ingest.write_total(total)
        return dataclasses.replace(status, total=total or status.total, expected=expected)

    def _place(self, path: Path, found: os.stat_result, digest: Digest, labels: Mapping[str, str]) -> Info:
        """Give somebody's file a blob's name, which must not look durable by what the file was before."""
        rights = stat.S_IMODE(found.st_mode)
        if not rights & WRITABLE:
            with suppress(OSError):  # where there are no rights, they tell nobody anything
                path.chmod(rights | stat.S_IWUSR)
        try:
            return self._blobs.place(path, digest, found.st_size, labels)
        except BaseException:
            if not rights & WRITABLE:
                with suppress(OSError):
                    path.chmod(rights)
            raise

    def _release(self, ingest: Ingest) -> None:
        with self._mutex:
            self._writers.pop(ingest.lock, None)
            is_last = not self._writers
        if self._locks is not None:
            self._locks.release(ingest.lock)
        if is_last:
            self._ingests.clear_spares(but=AT_REST)

    def _writable(self) -> Locks:
        self._check_open()
        if self._locks is None:
            raise PermissionDenied(f"the store in {self.root} is read-only")
        return self._locks

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the store in {self.root} is closed")
