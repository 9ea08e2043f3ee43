"""What proves the chunks of a blob that came whole: so that, once its bytes are given back, single chunks of it can be
fetched again."""

from __future__ import annotations

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.content.lastuse import unnoticed
from blobtee.errors import DataLoss
from blobtee.oci import Descriptor, Digest
from blobtee.tee import digests
from blobtee.tee.digests import ChunkDigests, ChunkHasher

_PIECE = 1 << 20


def keep_proof(store: LocalStore, digest: Digest, size: int) -> None:
    """See that what proves the chunks of a blob that is here is kept, durably (`tee.digests`): where nothing sound is
    yet, every byte of the blob is read.

    `DataLoss`: its bytes are not those of its name; nothing is kept. `NotFound`, `SizeMismatch`, `StorageFull`,
    `StorageError`, `Cancelled`.
    """
    if ChunkDigests.load(store.root, digest, size) is not None:
        digests.settle(store.root, digest)
        return
    hasher = ChunkHasher(digest.algorithm)
    buffer = bytearray(_PIECE)
    with (
        unnoticed(),
        tasks.meter(digest, "verify", size) as progress,
        store.reader_at(Descriptor("", digest, size)) as reader,
    ):
        while hasher.done < size:
            tasks.check()
            n = reader.readinto_at(hasher.done, buffer)
            with memoryview(buffer)[:n] as data:
                hasher.update(data)
            progress.advance(n)
    found = hasher.digest()
    if found != digest:
        raise DataLoss(f"blob {digest} is damaged, its bytes are {found}; `blobtee verify --repair` fetches it again")
    digests.keep(store.root, digest, size, hasher.packed())
