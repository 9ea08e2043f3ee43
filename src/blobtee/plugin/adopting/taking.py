"""Moving in: a content root of containerd's becomes a store of ours, or is linked into one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from blobtee import tasks
from blobtee.content import LocalStore, digester
from blobtee.content.digester import digest_of
from blobtee.content.files import PIECE, os_errors
from blobtee.content.ingests import Ingests
from blobtee.errors import AlreadyExists, BlobteeError, FailedPrecondition, InvalidArgument, NotFound, RefLocked
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

    When `path` is the root of `store` itself they are there already. Otherwise they are linked into it, or copied to
    another file system, and `path` is only read. With `verify` each is hashed first (copies always are). What
    containerd's `database` (by default the one beside the root) does not know is its garbage, and left alone; without a
    database all blobs are held. Unfinished blobs can be resumed by the tenant.

    A second run takes what is new since the first; so does one after a crash. `FailedPrecondition`: containerd runs and
    works on this very root. `InvalidArgument`: no content root. Then errors of the store and the file system.
    """
    source = content_root(path)
    in_place = source.exists() and os.path.samefile(source, store.root)
    database = database or source.parent / METADATA
    done = Adopted()
    if metadata.in_use(database):
        if in_place:
            raise FailedPrecondition(f"containerd runs on {source.parent}; stop it, and run this again")
        done.notes.append("containerd runs: what it writes from now on is not taken. Stop it, and run this again.")
    known = _known(database, done)
    references = References(store.metadata)
    references.begin(tenant)
    batch: list[Reference] = []
    files = list(_files(source))
    with tasks.meter("blobs", "adopt", sum(size for _, _, size in files)) as progress:
        for digest, file, size in files:
            tasks.check()
            if known is not None and digest not in known:
                done.garbage += 1
            elif _take(store, digest, file, in_place=in_place, verify=verify, done=done):
                done.held += 1
                done.nbytes += size
                batch.append(_reference(store, digest, (known or {}).get(digest)))
                if len(batch) == _BATCH:
                    references.take_over(tenant, batch)
                    batch.clear()
            progress.advance(size)
    references.take_over(tenant, batch)
    _take_ingests(source, store, f"tenant/{tenant}/", in_place=in_place, done=done)
    missing = len(set(known or ()) - {digest for digest, _, _ in files})
    if missing:
        done.notes.append(f"{missing} blobs that containerd knows are not on disk.")
    return done


def _known(database: Path, done: Adopted) -> Mapping[Digest, metadata.Known] | None:
    try:
        return metadata.read(database)
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


def _take(store: LocalStore, digest: Digest, file: Path, *, in_place: bool, verify: bool, done: Adopted) -> bool:
    """Have the blob in the store; False when its bytes are others than it says."""
    if not in_place and _has(store, digest):
        return True
    if verify and _hash(file, digest.algorithm) != digest:
        done.damaged.append(digest)
        if in_place:
            store.quarantine(digest)
        return False
    if in_place:
        return True
    try:
        store.link(file, digest)
        done.linked += 1
    except AlreadyExists:
        pass
    except FailedPrecondition:
        if not done.copied:
            done.notes.append("Blobs were copied: the store is on another file system, or one without hard links.")
        return _copy(store, digest, file, done)
    return True


def _copy(store: LocalStore, digest: Digest, file: Path, done: Adopted) -> bool:
    ref = f"adopt-{digest}"
    with store.writer(ref, expected=digest) as writer:
        writer.truncate(0)
        for piece in _pieces(file):
            writer.write(piece)
        try:
            writer.commit(expected=digest)
        except FailedPrecondition:
            done.damaged.append(digest)
        else:
            done.copied += 1
            return True
    store.abort(ref)
    return False


def _take_ingests(source: Path, store: LocalStore, prefix: str, *, in_place: bool, done: Adopted) -> None:
    """Give the unfinished blobs of the root to the tenant whose refs have `prefix`."""
    for status in list(Ingests(source).statuses()):
        if in_place and status.ref.startswith("tenant/"):
            continue
        data = Ingests(source).of(status.ref).data
        try:
            with store.writer(prefix + status.ref, total=status.total) as writer:
                if writer.status.offset < status.offset:
                    writer.truncate(0)
                    for piece in _pieces(data):
                        writer.write(piece)
            if in_place:
                store.abort(status.ref)
            done.ingests += 1
        except (RefLocked, NotFound):
            done.notes.append(f"Unfinished blob {status.ref[:100]!r} is being written, and was left.")


def _reference(store: LocalStore, digest: Digest, known: metadata.Known | None) -> Reference:
    info = store.info(digest)
    if known is None:
        return Reference(digest, info.created_at, info.updated_at, {})
    created = known.created_at or info.created_at
    return Reference(digest, created, max(created, known.updated_at), known.labels)


def _has(store: LocalStore, digest: Digest) -> bool:
    try:
        store.info(digest)
    except BlobteeError:
        return False
    return True


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
