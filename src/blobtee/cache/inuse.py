"""Which refs are open, in all processes that share a store: what is open is not collected.

Each open ref is a shared lock on a place in the store's lock file (`content.kernellocks`): opening a ref writes
nothing, and nothing stale is ever left.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from blobtee.content.kernellocks import ALONE, FREE, SHARED, ask, place_of
from blobtee.content.locks import LOCK_FILE
from blobtee.errors import from_os_error

if TYPE_CHECKING:
    from blobtee.cache.manager import MetadataStore


class InUse:
    """The open refs of one store object, by id; those of other objects and processes are seen as locks. Thread-safe."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._fd = -1
        self._changed = threading.Condition()
        self._open: Counter[str] = Counter()
        self._claimed: set[str] = set()

    def retain(self, ref_id: str) -> None:
        """Count one more open ref. While somebody removes the record this waits, for the milliseconds it takes."""
        with self._changed:
            while ref_id in self._claimed:
                self._changed.wait()
            if not self._open[ref_id]:
                try:
                    self._lock(ref_id, SHARED, wait=True)
                except BaseException:
                    del self._open[ref_id]
                    self._close_unused()
                    raise
            self._open[ref_id] += 1

    def release(self, ref_id: str) -> None:
        with self._changed:
            self._open[ref_id] -= 1
            if self._open[ref_id] <= 0:
                del self._open[ref_id]
                self._unlock(ref_id)

    def claim(self, ref_id: str) -> bool:
        """Keep everybody from opening the ref until `give_back`; False when it is open somewhere."""
        with self._changed:
            if ref_id in self._open or ref_id in self._claimed:
                return False
            try:
                if not self._lock(ref_id, ALONE, wait=False):
                    return False
                self._claimed.add(ref_id)
                return True
            finally:
                self._close_unused()

    def give_back(self, ref_ids: Iterable[str]) -> None:
        with self._changed:
            for ref_id in ref_ids:
                self._claimed.discard(ref_id)
                self._unlock(ref_id)
            self._changed.notify_all()

    def is_open(self, ref_id: str) -> bool:
        if not self.claim(ref_id):
            return True
        self.give_back([ref_id])
        return False

    def _lock(self, ref_id: str, kind: int, *, wait: bool) -> bool:
        if self._fd < 0:
            self._fd = self._opened()
        return self._fd < 0 or self._ask(ref_id, kind, wait=wait)

    def _unlock(self, ref_id: str) -> None:
        if self._fd >= 0:
            self._ask(ref_id, FREE, wait=False)
        self._close_unused()

    def _close_unused(self) -> None:
        if self._fd >= 0 and not self._open and not self._claimed:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _opened(self) -> int:
        """The lock file; -1 where there is none: in memory, or in a store that can only be read."""
        if self._root is None:
            return -1
        try:
            return os.open(self._root / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                return -1
            raise from_os_error(error, "lock the store") from error

    def _ask(self, ref_id: str, kind: int, *, wait: bool) -> bool:
        place = place_of(f"ref:{ref_id}")
        return ask(self._fd, kind, place, place + 1, "lock the store", wait=wait)


_in_use: weakref.WeakKeyDictionary[MetadataStore, InUse] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def in_use(store: MetadataStore) -> InUse:
    """The open refs of a store: all managers over one store object share them."""
    root = getattr(store, "root", None)
    with _guard:
        return _in_use.setdefault(store, InUse(Path(root) if root is not None else None))
