"""Moving in: a content root of containerd's becomes a store of ours, or is linked into one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from blobtee import tasks
from blobtee.content import LocalStore, digester
from blobtee.content.api import Info, Status
from blobtee.content.digester import digest_of
from blobtee.content.files import PIECE, os_errors
from blobtee.content.ingests import Ingests
from blobtee.errors import (
    AlreadyExists,
    BlobteeError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RefLocked,
    StorageError,
    TooLarge,
)
from blobtee.oci import Digest
from blobtee.plugin.adopting import metadata
from blobtee.plugin.references import Reference, References

CONTENT = "io.containerd.content.v1.content"
METADATA = Path("io.containerd.metadata.v1.bolt") / "meta.db"
_BATCH = 200


@dataclass
class Adopted:
    """What came of it. `held` blobs of `nbytes` belong to the tenant now; `linked` and `copied` of them are new in the
    store. `garbage` blobs were left: containerd does not know them itself. `damaged` ones were left out, or set aside.
    `notes` are sentences for the operator."""

    held: int = 0
    nbytes: int = 0
    linked: int = 0
    copied: int = 0
    garbage: int = 0
    ingests: int = 0
    damaged: list[Digest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def content_root(path: str | os.PathLike[str]) -> Path:
    """`path`, or the content root in it when it is containerd's own root. `InvalidArgument`: it is neither."""
    given = Path(os.path.abspath(path))
    for folder in (given, given / CONTENT):
        with os_errors(f"look into {folder}"):
            if (folder / "blobs").is_dir():
                return folder
    raise InvalidArgument(f"{given} is no content root: it has no folder `blobs`, nor `{CONTENT}/blobs`")


def adopt(
    path: str | os.PathLike[str],
    store: LocalStore,
    tenant: str,
    *,
    database: Path | None = None,
    verify: bool = True,
) -> Adopted:
    """Let `tenant` hold the blobs of the content root at `path`, with the labels and times that containerd knows.

    When `path` is the root of `store` itself they are there already, and a containerd that starts on them meanwhile
    waits until this is done. Otherwise they are linked into it, or copied to another file system, and `path` is only
    read. With `verify` each is hashed first (copies always are). What containerd's `database` (by default the one
    beside the root) does not know is its garbage, and left alone; where none is beside the root, all blobs are held.
    Unfinished blobs can be resumed by the tenant.

    A second run takes what is new since the first; so does one after a crash. `FailedPrecondition`: containerd runs and
    works on this very root. `InvalidArgument`: no content root. What keeps a `database` that was named from being read.
    Then errors of the store and the file system.
    """
    source = content_root(path)
    in_place = source.exists() and os.path.samefile(source, store.root)
    beside = source.parent / METADATA
    done = Adopted()
    with metadata.keeping_out(beside) if in_place else nullcontext(not metadata.in_use(beside)) as is_free:
        if in_place and not is_free:
            raise FailedPrecondition(_RUNS.format(source.parent))
        _Taking(source, store, tenant, in_place, verify, done).run(_known(database, beside, done))
    # Beside a root that was in nobody's use there may have been no database to hold.
    if metadata.in_use(beside):
        if in_place:
            raise FailedPrecondition(_RUNS.format(source.parent))
        done.notes.append("containerd runs: what it writes from now on is not taken. Stop it, and run this again.")
    return done


_RUNS = "containerd runs on {}; stop it, and run this again"


class _Taking:
    """One run."""

    def __init__(
        self, source: Path, store: LocalStore, tenant: str, in_place: bool, verify: bool, done: Adopted
    ) -> None:
        self._source = source
        self._store = store
        self._tenant = tenant
        self._in_place = in_place
        self._verify = verify
        self._done = done
        self._references = References(store.metadata)

    def run(self, known: Mapping[Digest, metadata.Known] | None) -> None:
        self._references.begin(self._tenant, self._store)
        done = self._done
        found: set[Digest] = set()
        batch: list[tuple[Reference, Path]] = []
        files = list(_files(self._source))
        with tasks.meter("blobs", "adopt", sum(size for _, _, size in files)) as progress:
            for digest, file, size in files:
                tasks.check()
                if known is not None and digest not in known:
                    done.garbage += 1
                elif (info := self._take(digest, file)) is not None:
                    batch.append((_reference(info, (known or {}).get(digest)), file))
                    if len(batch) == _BATCH:
                        self._hold(batch)
                        batch.clear()
                found.add(digest)
                progress.advance(size)
        self._hold(batch)
        self._take_ingests()
        if missing := len(set(known or ()) - found):
            done.notes.append(f"{missing} blobs that containerd knows are not on disk.")

    def _hold(self, batch: Sequence[tuple[Reference, Path]]) -> None:
        self._references.take_over(self._tenant, [reference for reference, _ in batch])
        for reference, file in batch:
            # Until it was held, a sweep or `gc` may have removed it: let go of by its last tenant, for one.
            info = _info(self._store, reference.digest) or self._take(reference.digest, file)
            if info is None:
                self._references.let_go(self._tenant, reference.digest, is_there=False)
            else:
                self._done.held += 1
                self._done.nbytes += info.size

    def _take(self, digest: Digest, file: Path) -> Info | None:
        """Have the blob in the store; None when it is gone, or its bytes are not those that it says."""
        try:
            return self._taken(digest, file)
        except NotFound:
            self._done.notes.append(f"Blob {digest} was removed while this ran.")
        except (StorageError, DataLoss) as error:
            self._done.damaged.append(digest)
            self._done.notes.append(f"Blob {digest} was left: {error}")
        return None

    def _taken(self, digest: Digest, file: Path) -> Info | None:
        if not self._in_place and (info := _info(self._store, digest)) is not None:
            return info
        if self._verify and _hash(file, digest.algorithm) != digest:
            self._done.damaged.append(digest)
            if self._in_place:
                self._store.quarantine(digest)
            return None
        if self._in_place:
            return self._store.info(digest)
        try:
            info = self._store.link(file, digest)
        except AlreadyExists:
            return self._store.info(digest)
        except FailedPrecondition:
            if not self._done.copied:
                note = "Blobs were copied: the store is on another file system, or one without hard links."
                self._done.notes.append(note)
            return self._copy(digest, file)
        self._done.linked += 1
        return info

    def _copy(self, digest: Digest, file: Path) -> Info | None:
        ref = f"adopt-{digest}"
        with self._store.writer(ref, expected=digest) as writer:
            writer.truncate(0)
            for piece in _pieces(file):
                writer.write(piece)
            try:
                info = writer.commit(expected=digest)
            except FailedPrecondition:
                self._done.damaged.append(digest)
            else:
                self._done.copied += 1
                return info
        self._store.abort(ref)
        return None

    def _take_ingests(self) -> None:
        """Give the unfinished blobs of the root to the tenant: it knows them by the refs that containerd gave them."""
        tenants = self._references.tenants()
        for status in list(Ingests(self._source).statuses()):
            # A tenant's begin with its name. So may those of a namespace of containerd's that is called "tenant", where
            # a number follows.
            head, _, rest = status.ref.partition("/")
            if self._in_place and head == "tenant" and rest.partition("/")[0] in tenants:
                continue
            try:
                self._take_ingest(status)
                self._done.ingests += 1
            except (RefLocked, NotFound):
                self._done.notes.append(f"Unfinished blob {status.ref[:100]!r} is being written, and was left.")
            except (TooLarge, DataLoss, StorageError) as error:
                self._done.notes.append(f"Unfinished blob {status.ref[:100]!r} was left: {error}")

    def _take_ingest(self, status: Status) -> None:
        data = Ingests(self._source).of(status.ref).data
        with self._store.writer(f"tenant/{self._tenant}/{status.ref}", total=status.total) as writer:
            if writer.status.offset < status.offset:
                writer.truncate(0)
                left = status.offset
                for piece in _pieces(Path(data)):
                    left -= writer.write(piece[:left])
        if self._in_place:
            self._store.abort(status.ref)


def _known(given: Path | None, beside: Path, done: Adopted) -> Mapping[Digest, metadata.Known] | None:
    if given is not None:
        return metadata.read(given)
    try:
        return metadata.read(beside)
    except BlobteeError as error:
        done.notes.append(f"Labels are not taken, and all blobs are held: {error}")
        return None


def _files(source: Path) -> Iterator[tuple[Digest, Path, int]]:
    """Every file that could be a blob."""
    with os_errors(f"list {source / 'blobs'}"):
        for folder in sorted((source / "blobs").iterdir()):
            for file in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
                with suppress(InvalidArgument, FileNotFoundError):
                    found = file.lstat()
                    if stat.S_ISREG(found.st_mode):
                        yield Digest(f"{folder.name}:{file.name}"), file, found.st_size


def _reference(info: Info, known: metadata.Known | None) -> Reference:
    if known is None:
        return Reference(info.digest, info.created_at, info.updated_at, {})
    created = known.created_at or info.created_at
    return Reference(info.digest, created, max(created, known.updated_at), known.labels)


def _info(store: LocalStore, digest: Digest) -> Info | None:
    try:
        return store.info(digest)
    except (NotFound, DataLoss):
        return None


def _hash(file: Path, algorithm: str) -> Digest:
    hashing = digester(algorithm)
    for piece in _pieces(file):
        hashing.update(piece)
    return digest_of(algorithm, hashing)


def _pieces(file: Path) -> Iterator[memoryview]:
    with os_errors(f"read {file}"), file.open("rb", buffering=0) as stream:
        buffer = bytearray(PIECE)
        with memoryview(buffer) as view:
            while n := stream.readinto(view):
                tasks.check()
                yield view[:n]
