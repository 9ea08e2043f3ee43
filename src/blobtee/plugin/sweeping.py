"""Removing the bytes of blobs that no tenant, lease or image needs any more, a moment after the last one let go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from contextlib import suppress
from itertools import islice

from blobtee.cache import holders
from blobtee.cache.leases import Leases
from blobtee.cache.marking import Marking
from blobtee.content import LocalStore
from blobtee.errors import BlobteeError, Closed, DataLoss, NotFound, PermissionDenied, StorageError
from blobtee.oci import Digest
from blobtee.plugin.lazy import LazyBlobs
from blobtee.plugin.references import References
from blobtee.seeking import kept
from blobtee.tee import leftovers
from blobtee.wording import counted

_logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
"""How long no tenant may have deleted before a sweep begins: containerd deletes by the hundred."""

PATIENCE_SECONDS = 10.0
"""After this long it begins all the same."""

RETRY_SECONDS = 60.0
"""Between two tries, when there was an error; and the longest pause between two looks at what is in somebody's hands:
each is twice as long as the one before, since a look reads what all images need."""

_BATCH = 200


class Sweeper:
    """Sweeps in a thread of its own, from `start` to `stop`, and first of all what an earlier life left."""

    def __init__(self, store: LocalStore, references: References, lazy: LazyBlobs | None = None) -> None:
        self._store = store
        self._lazy = lazy
        self._references = references
        self._leases = Leases(store.metadata)
        self._wanted = threading.Event()
        self._ending = threading.Event()
        self._in_hands = False
        self._thread = threading.Thread(target=self._run, name="blobtee-sweep", daemon=True)

    def start(self) -> None:
        self._wanted.set()
        self._thread.start()

    def wake(self) -> None:
        """Something has been let go of."""
        self._wanted.set()

    def stop(self) -> None:
        """End after the batch under way. What is left is for the next start."""
        self._ending.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self) -> int:
        """Remove the orphans that nobody needs; how many blobs went.

        Nothing goes while a document of an image is damaged, so that nobody knows what belongs to it, or while what a
        tenant held is lost.
        """
        self._in_hands = False
        orphans = self._references.orphans()
        if not orphans:
            return 0
        recorded = holders.recorded(self._store.root)
        if lost := holders.lost(self._store.root, recorded, self._leases.ids()):
            _logger.warning("nothing is removed: %s", "; ".join(lost))
            return 0
        # The leases before the images: work that ends lets its image have a name before its lease goes.
        followed = self._leases.followed()
        fingerprint = self._store.layout.fingerprint()
        marking = Marking(self._store)
        needed = marking.images(self._store.layout.all()) | marking.linked(marking.labelled_roots())
        needed |= marking.linked(followed)
        if marking.blind:
            _logger.warning("nothing is removed: %s", "; ".join(marking.problems))
            return 0
        self._store.layout.settle()
        if self._lazy is not None:
            self._lazy.forget(needed)
        total = 0
        rest = iter(orphans)
        while batch := list(islice(rest, _BATCH)):
            if self._ending.is_set():
                break
            with self._store.metadata.transaction():
                if self._store.layout.fingerprint() != fingerprint or not self._leases.followed() <= followed:
                    self._wanted.set()  # an image or a lease has come that may lead to an orphan: look again
                    break
                removed, lazy = self._remove(batch, needed)
            total += len(removed)
            for digest in (*removed, *lazy):
                self._forget(Digest(digest))
        return total

    def _remove(self, batch: list[str], needed: Collection[str]) -> tuple[list[str], list[str]]:
        """Inside a transaction: whoever holds one of them has done so before, or sees it gone. The blobs that went, and
        those that nobody needs of which no bytes were here."""
        orphans = self._references.orphans_of(batch)
        held = self._leases.held(batch)
        removed, lazy, settled = [], [], []
        for digest in batch:
            if digest not in orphans:
                continue
            if digest in needed or digest in held:
                settled.append(digest)
                continue
            if not self._was_there(digest, orphans[digest]):
                settled.append(digest)
                if not self._is_there(digest):
                    lazy.append(digest)
                continue
            try:
                gone = self._store.discard(digest)
            except (StorageError, PermissionDenied) as error:
                # One file that cannot be removed must not keep the others.
                _logger.warning("blob %s that nobody holds stays until the next start: %s", digest, error)
                continue
            if gone:
                removed.append(digest)
                settled.append(digest)
            else:
                self._in_hands = True
        self._references.settle(settled)
        return removed, lazy

    def _forget(self, digest: Digest) -> None:
        """Nothing of the blob is needed: what is kept to have it again by parts goes too. What stays, gc takes."""
        root = self._store.root
        with suppress(StorageError, PermissionDenied):
            leftovers.remove(root, digest)
            leftovers.forget(root, digest)
            kept.forget(root, digest)
            self._store.forget(digest)

    def _is_there(self, digest: str) -> bool:
        try:
            self._store.info(digest)
        except NotFound:
            return False
        except DataLoss:
            pass
        return True

    def _was_there(self, digest: str, since: int) -> bool:
        """Whether the blob is the one that was let go of at `since`: not gone, not come again, not damaged (for gc)."""
        try:
            return self._store.info(digest).created_at <= since
        except (NotFound, DataLoss):
            return False

    def _run(self) -> None:
        pause: float | None = None
        while not self._ending.is_set():
            if self._wanted.wait(pause):
                pause = None
            self._settle_down()
            if self._ending.is_set():
                return
            try:
                removed = self.sweep()
                pause = min(2 * (pause or QUIET_SECONDS), RETRY_SECONDS) if self._in_hands else None
                if removed:
                    _logger.info("removed %s that nobody holds", counted(removed, "blob"))
            except Closed:
                return
            except Exception as error:
                defect = None if isinstance(error, BlobteeError) else error
                message = "cannot remove what nobody holds, next try in %d s: %s"
                _logger.warning(message, RETRY_SECONDS, error, exc_info=defect)
                self._ending.wait(RETRY_SECONDS)
                self._wanted.set()

    def _settle_down(self) -> None:
        """Wait until nothing more is let go of."""
        waited = 0.0
        while self._wanted.is_set() and waited < PATIENCE_SECONDS and not self._ending.is_set():
            self._wanted.clear()
            self._ending.wait(QUIET_SECONDS)
            waited += QUIET_SECONDS
