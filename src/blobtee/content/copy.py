"""Whole blobs from a provider into a store (`spec/remote.md` section 6)."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import repeat

from blobtee import tasks
from blobtee.content.api import Info, Provider, Store, Writer
from blobtee.errors import (
    AlreadyExists,
    ConnectionFailed,
    DataLoss,
    DigestMismatch,
    InvalidArgument,
    NotFound,
    RefLocked,
    SizeMismatch,
)
from blobtee.oci import Descriptor, Digest
from blobtee.tasks.progress import INTERVAL

SLOT = 1 << 20
"""Bytes that are read at once, and hashed and written at once."""

SLOTS = 4
"""Slots between the reading thread and the writing one: what a copy holds in memory, whatever the blob's size."""

RETRIES = 3
"""Times that a source may break off without `PROGRESS` more bytes in between."""

PROGRESS = 1 << 20

_LOCK_WAIT = 0.05
_LOCK_WAIT_MAX = 1.0


def copy(
    store: Store,
    provider: Provider,
    desc: Descriptor,
    *,
    ref: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Info:
    """Bring the blob `desc` from `provider` into `store`, and return what the store says of it.

    A blob that is there already is success; its labels are left alone. `ref` names the ingest (`layer-<digest>` unless
    told otherwise). Bytes that an earlier, broken-off copy left are kept and not asked for again. While another thread
    or process writes the same ingest this waits for its outcome. Progress goes to `tasks.meter`, resumed bytes counted
    once; the wait, and the copy at every slot, end with `Cancelled` when the work is cancelled.

    A source that breaks off (`ConnectionFailed`) is asked again after 1, 2 and 4 seconds; after that the error is
    raised and what came stays for the next copy, as it does after `Cancelled` and errors of the disk. `SizeMismatch`:
    the source has more or fewer bytes than `desc.size`; `DigestMismatch`: they are others. Then nothing is kept, since
    the next copy would go on from wrong bytes; when they may be an earlier copy's, one try from the start comes first.
    """
    digest = Digest(desc.digest)
    if desc.size < 0:
        raise InvalidArgument(f"a copy needs to know the size of {digest}")
    ref = ref if ref is not None else f"layer-{digest}"
    with tasks.meter(digest, "copy", desc.size) as progress:
        info = _known(store, desc)
        if info is None:
            info = _bring(store, provider, desc, ref, labels, progress)
        progress.set(desc.size)
        return info


def _bring(
    store: Store,
    provider: Provider,
    desc: Descriptor,
    ref: str,
    labels: Mapping[str, str] | None,
    progress: tasks.Progress,
) -> Info:
    again = True
    while True:
        try:
            with _open(store, ref, desc, progress) as writer:
                resumed = 0 < writer.status.offset <= desc.size
                try:
                    _fill(writer, provider, desc, progress)
                    return writer.commit(desc.size, desc.digest, labels)
                except (DigestMismatch, SizeMismatch):
                    writer.close()
                    _discard(store, ref)
                    if not (resumed and again):
                        raise
                    again = False
        except AlreadyExists:
            info = _known(store, desc)
            if info is not None:
                return info


def _known(store: Store, desc: Descriptor) -> Info | None:
    """What the store says of a good blob; `SizeMismatch` when that is of another size than `desc` claims."""
    try:
        info = store.info(desc.digest)
    except (NotFound, DataLoss):
        return None
    if info.size != desc.size:
        raise SizeMismatch(f"blob {desc.digest}", desc.size, info.size)
    return info


def _open(store: Store, ref: str, desc: Descriptor, progress: tasks.Progress) -> Writer:
    """Open the ingest; while somebody else has it, wait and show how far that one is."""
    wait = _LOCK_WAIT
    while True:
        tasks.check()
        try:
            return store.writer(ref, total=desc.size, expected=desc.digest)
        except RefLocked:
            if _known(store, desc) is not None:
                raise AlreadyExists(f"blob {desc.digest} is in the store already") from None
            with suppress(NotFound):
                progress.set(min(store.status(ref).offset, desc.size))
            progress.advance(0)
        tasks.sleep(wait * random.uniform(0.75, 1.25))
        wait = min(2 * wait, _LOCK_WAIT_MAX)


def _discard(store: Store, ref: str) -> None:
    # Somebody who waited for the ingest may have it by now, and finds out about its bytes as we did.
    with suppress(RefLocked):
        store.abort(ref)


def _fill(writer: Writer, provider: Provider, desc: Descriptor, progress: tasks.Progress) -> None:
    """Bring what is missing, asking again when the source breaks off."""
    if writer.status.offset > desc.size:
        writer.truncate(0)
    progress.set(writer.status.offset)
    failures = 0
    while writer.status.offset < desc.size:
        start = writer.status.offset
        try:
            if desc.size - start > SLOT:
                _pump(writer, provider, desc, progress)
            else:
                slots = repeat(bytearray(desc.size - start))
                for filled in _slots(provider, desc, start, slots.__next__):
                    _write(writer, filled, progress)
            return
        except ConnectionFailed:
            if writer.status.offset - start >= PROGRESS:
                failures = 0
            if failures == RETRIES:
                raise
        tasks.sleep(2**failures * random.uniform(0.75, 1.25))
        failures += 1


Filled = tuple[bytearray, int]
"""A slot and how many bytes of it count."""


def _write(writer: Writer, filled: Filled, progress: tasks.Progress) -> None:
    slot, n = filled
    with memoryview(slot) as view, view[:n] as data:
        writer.write(data)
    progress.advance(n)
    if (allowance := tasks.background()) is not None:
        allowance.pay(n)


def _slots(provider: Provider, desc: Descriptor, offset: int, take: Callable[[], bytearray]) -> Iterator[Filled]:
    """The blob from `offset` to its end in the slots that `take` gives, and proof that it ends there.

    What came before an error is handed out first.
    """
    with provider.reader_at(desc) as reader:
        if reader.size != desc.size:
            raise SizeMismatch(f"blob {desc.digest} at its source", desc.size, reader.size)
        with reader.open(offset) as stream:
            while offset < desc.size:
                slot = take()
                n, error = _fill_slot(stream, slot, desc.size - offset)
                offset += n
                if n:
                    yield slot, n
                if error is not None:
                    raise error
                if not n:
                    raise SizeMismatch(f"blob {desc.digest} at its source", desc.size, offset)
            if stream.read(1):
                raise SizeMismatch(f"blob {desc.digest} at its source, at least", desc.size, desc.size + 1)


def _fill_slot(stream: io.RawIOBase, slot: bytearray, limit: int) -> tuple[int, BaseException | None]:
    """Fill `slot` with at most `limit` bytes. Less than that is the end, an error, or a source that takes its time."""
    n = 0
    wanted = min(len(slot), limit)
    # A slow source must not keep what it brought from being counted and kept.
    patience = time.monotonic() + INTERVAL
    with memoryview(slot) as view:
        while n < wanted and (n == 0 or time.monotonic() < patience):
            try:
                tasks.check()
                with view[n:wanted] as rest:
                    got = stream.readinto(rest)
            except BaseException as error:
                return n, error
            if not got:
                break
            n += got
    return n, None


def _pump(writer: Writer, provider: Provider, desc: Descriptor, progress: tasks.Progress) -> None:
    """Read in one thread, hash and write in this one."""
    group = tasks.Group(name="blobtee-copy")
    belt = tasks.Belt[Filled](group.cancellation, slots=SLOTS, nbytes=SLOT)
    offset = writer.status.offset

    def read() -> None:
        # The error travels on the belt, behind the bytes that came before it.
        error: BaseException | None = None
        try:
            for filled in _slots(provider, desc, offset, belt.take_empty):
                belt.put_filled(filled)
        except BaseException as caught:
            error = caught
        belt.end(error)

    try:
        with group:
            group.spawn(read)
            while (filled := belt.take_filled()) is not None:
                _write(writer, filled, progress)
                belt.put_empty(filled[0])
    finally:
        # Not inside the group: when a write fails, leaving the group wakes the reader that waits for an empty slot.
        belt.leave()
