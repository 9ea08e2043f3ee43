"""A disk that refuses: the k-th change of it, or every change that takes room from the k-th on."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blobtee.content import ingests
from blobtee.core import begin_folder

GROWING = ("pwrite", "mkdir", "rename", "replace", "link", "posix_fallocate", "open", "COMMIT", "begin_folder")
"""What a full disk refuses; `open` when it creates, COMMIT of the metadata, `begin_folder` of the core."""

CHANGING = (*GROWING, "fsync", "unlink", "rmdir", "ftruncate", "chmod")


class Disk:
    """Where the changes of this process come by. Install it before a store is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._lock = threading.Lock()
        self._code = 0
        self._left = 0
        self._kinds: tuple[str, ...] = ()
        self._lasting = False
        self.refused: list[str] = []
        for name in CHANGING:
            if name not in ("COMMIT", "begin_folder"):
                patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        patch.setattr(ingests, "begin_folder", self._wrapped("begin_folder", begin_folder))
        connect = sqlite3.connect
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
                if sql == "COMMIT" and disk._refuses("COMMIT"):
                    raise disk._of_sqlite()
                return super().execute(sql, *given)

        patch.setattr(sqlite3, "connect", lambda *given, **named: connect(*given, factory=Connection, **named))

    @contextmanager
    def refusing(self, k: int, code: int, *, lasting: bool) -> Iterator[None]:
        """A block in which the k-th change fails with the errno `code`; all that take room from there on, if `lasting`.
        `refused` says which did."""
        self.refused = []
        self._code, self._left, self._lasting = code, k, lasting
        self._kinds = GROWING if lasting else CHANGING
        try:
            yield
        finally:
            self._kinds = ()

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            takes_room = name != "open" or given[1] & os.O_CREAT
            if takes_room and self._refuses(name):
                raise OSError(self._code, os.strerror(self._code))
            return call(*given, **named)

        return wrapped

    def _refuses(self, name: str) -> bool:
        with self._lock:
            if name not in self._kinds:
                return False
            self._left -= 1
            if self._left == 0 or (self._left < 0 and self._lasting):
                self.refused.append(name)
                return True
            return False

    def _of_sqlite(self) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("the disk refuses")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR if self._code == errno.EIO else sqlite3.SQLITE_FULL
        return error
