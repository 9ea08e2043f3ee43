"""The tee of a store: blobs that are read by parts, and become blobs of the store when all of them is here."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.content.api import Info, ReaderAt
from blobtee.content.trust import Trust
from blobtee.errors import Closed, DataLoss, DigestMismatch, InvalidArgument, NotFound, SizeMismatch
from blobtee.oci import Descriptor, Digest
from blobtee.tee.blob import Blob, unavailable
from blobtee.tee.digests import ChunkDigests
from blobtee.tee.filling import Fill, with_another_host
from blobtee.tee.reader import EmptyReader, TeeReader
from blobtee.tee.shared import Shared
from blobtee.tee.source import Source
from blobtee.tee.turns import FILLING, Turns

_logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that closing waits for fills, whose requests it has ended, to be over."""


class Tee:
    """Of one store, in one process; other processes may have theirs of the same root. Thread-safe."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._shared: dict[Digest, Shared] = {}
        # Those too that were promoted or thrown away, for as long as somebody has them.
        self._open: set[Shared] = set()
        self._flights: tasks.SingleFlight[Digest, None] = tasks.SingleFlight()
        self._turns = Turns(store.root)
        self._wanted: Counter[Digest] = Counter()
        self._closed = False

    def reader_at(
        self,
        desc: Descriptor,
        source: Callable[[], Source],
        trust: Trust = Trust.BLOB,
        *,
        labels: Mapping[str, str] | None = None,
        fill: Callable[[], object] | None = None,
    ) -> ReaderAt:
        """A reader of the blob; at once, whether it is here or not. See `TeeReader` for what its reads do.

        `source` is asked for when something is read that is not here; `labels` are the blob's once it is one of the
        store. When all of the blob is wanted, `fill` has it brought, in the end by `Tee.fill`, which is the default.
        `SizeMismatch`: the store has the blob in another size.
        """
        try:
            return self._store.reader_at(desc)
        except (NotFound, DataLoss):
            pass
        if desc.size < 0:
            raise InvalidArgument(f"a partial read needs to know the size of {desc.digest}")
        if not desc.size:
            return EmptyReader()
        return TeeReader(lambda: self._blob(desc, source(), labels, fill), desc.size, trust)

    def proves_parts(self, desc: Descriptor) -> bool:
        """Whether parts of the blob can be read as `Trust.BLOB` without the whole: digests of its chunks are kept.
        Should they turn out to be damaged, the whole comes."""
        return ChunkDigests.are_kept(self._store.root, Digest(desc.digest), desc.size)

    def fill(self, desc: Descriptor, source: Callable[[], Source], labels: Mapping[str, str] | None = None) -> Info:
        """Have the whole blob in the store; what is here of it already is not asked for again. Whoever wants the same
        one meanwhile, shares it. Progress goes to `tasks.meter`. In the background (`tasks.in_background`) it stands
        back for everybody, until somebody else waits for it too.

        `SizeMismatch`, `DigestMismatch`: the source, or `desc`, lied; nothing is kept then. `LazyUnavailable` and what
        else the source raises, `StorageFull`, `StorageError`, `Cancelled`: what came is kept.
        """
        if desc.size < 0:
            raise InvalidArgument(f"a fill needs to know the size of {desc.digest}")
        self._have(desc, source, labels)
        try:
            return self._store.info(desc.digest)
        except NotFound:  # somebody made room before it was looked at
            self._have(desc, source, labels)
            with unavailable(desc.digest):
                return self._store.info(desc.digest)

    @contextmanager
    def wanting(self, digest: str) -> Iterator[None]:
        """Somebody waits for the whole blob, in this block, unless he is in the background himself: what fills it goes
        first then, whoever began that."""
        if tasks.background() is not None:
            yield
            return
        with self._lock:
            self._wanted[Digest(digest)] += 1
        try:
            with self._turns.waiting(FILLING):
                yield
        finally:
            with self._lock:
                self._wanted[Digest(digest)] -= 1
                self._wanted += Counter()  # keeps those above zero

    def close(self) -> None:
        """End what is under way, and settle what came. Readers that are open fail from now on where something has to be
        fetched. A second call does nothing. `StorageFull`, `StorageError`: not all could be settled; all is closed."""
        with self._lock:
            self._closed = True
            left = list(self._open)
        for shared in left:
            shared.stop()
            shared.engine.close()
        # The claims of a fill must not go before it has ended: another process would promote what it is promoting.
        self._wait(lambda: all(shared.users == shared.readers for shared in self._open))
        with ExitStack() as closing:
            for shared in left:
                closing.callback(self._finish, shared)
        self._wait(lambda: not self._open)
        self._turns.close()

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(until, PATIENCE):
                _logger.warning(
                    "closing the partial blobs of %s takes too long; it is not waited for", self._store.root
                )

    def _finish(self, shared: Shared) -> None:
        try:
            shared.close()
        finally:
            with self._changed:
                self._open.discard(shared)
                self._changed.notify_all()

    def _blob(
        self,
        desc: Descriptor,
        source: Source,
        labels: Mapping[str, str] | None,
        fill: Callable[[], object] | None,
    ) -> Blob:
        shared = self._acquire(desc, reading=True)
        blob = Blob(
            shared,
            source,
            fill=fill or (lambda: self.fill(desc, lambda: source, labels)),
            committed=lambda: self._store.reader_at(desc),
            release=lambda: self._release(shared, reading=True),
        )
        try:
            blob.look_again()
        except BaseException:
            blob.release()
            raise
        return blob

    def _have(self, desc: Descriptor, source: Callable[[], Source], labels: Mapping[str, str] | None) -> None:
        if not self._has(desc):
            with unavailable(desc.digest), self.wanting(desc.digest):
                self._flights.do(desc.digest, lambda: self._fill(desc, source(), labels))

    def _fill(self, desc: Descriptor, source: Source, labels: Mapping[str, str] | None) -> None:
        with tasks.meter(desc.digest, "copy", desc.size) as progress:

            def attempt() -> None:
                # More than once where another process threw away what was here, as it found it to be wrong.
                again = True
                while not self._has(desc):
                    shared = self._acquire(desc)
                    wanted = lambda: self._wanted[Digest(desc.digest)] > 0  # noqa: E731
                    fill = Fill(self._store, shared, source, labels, progress, wanted)
                    try:
                        fill.run()
                    except DigestMismatch:
                        # What was here before may have been what was wrong; now it is gone.
                        if not (fill.resumed and again):
                            raise
                        again = False
                    finally:
                        self._release(shared)

            with_another_host(source, attempt)
            progress.set(desc.size)

    def _has(self, desc: Descriptor) -> bool:
        try:
            info = self._store.info(desc.digest)
        except (NotFound, DataLoss):
            return False
        if info.size != desc.size:
            raise SizeMismatch(f"blob {desc.digest}", desc.size, info.size)
        return True

    def _acquire(self, desc: Descriptor, *, reading: bool = False) -> Shared:
        digest = Digest(desc.digest)
        with self._lock:
            if self._closed:
                raise Closed("the store is closed")
            shared = self._shared.get(digest)
            if shared is None or not shared.partial.is_current():
                # Who has one open that was promoted or thrown away keeps that.
                shared = self._shared[digest] = Shared(self._store.root, digest, desc.size, self._turns)
                self._open.add(shared)
            if shared.partial.size != desc.size:
                raise SizeMismatch(f"blob {digest}, which is being read", desc.size, shared.partial.size)
            shared.users += 1
            shared.readers += reading
            return shared

    def _release(self, shared: Shared, *, reading: bool = False) -> None:
        with self._lock:
            shared.users -= 1
            shared.readers -= reading
            abandoned = reading and not shared.readers
            over = not shared.users
            if over and self._shared.get(shared.partial.digest) is shared:
                del self._shared[shared.partial.digest]
            self._changed.notify_all()
        if over:
            self._finish(shared)
        elif abandoned:
            shared.stop()


def tee_of(store: LocalStore) -> Tee:
    """The tee of a store: whoever has the same store object shares it."""
    return store.companion(Tee)
