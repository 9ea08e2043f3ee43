"""A descriptor is closed once, also by who is interrupted behind that: by then its number may be another file's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blobtee.cache.inuse import InUse
from blobtee.content.locks import Locks
from blobtee.oci import Digest
from blobtee.tee.claims import Claims
from blobtee.tee.map import Map


class Killed(BaseException):
    pass


def locks(folder: Path) -> tuple[int, Callable[[], None]]:
    made = Locks(folder)
    return made._fd, made.close


def claims(folder: Path) -> tuple[int, Callable[[], None]]:
    made = Claims(folder / "claims")
    return made._fd, made.close


def a_map(folder: Path) -> tuple[int, Callable[[], None]]:
    digest = Digest.of(b"")
    Map.create(folder / "map", digest, 1, 2, proven=False)
    made = Map(folder / "map", digest, 1, 2)
    return made._fd, made.close


def refs_in_use(folder: Path) -> tuple[int, Callable[[], None]]:
    Locks(folder).close()
    made = InUse(folder)
    assert made._lock("ref", 0, wait=False)
    return made._fd, made._close_unused


@pytest.mark.parametrize("make", [locks, claims, a_map, refs_in_use])
def test_an_interrupt_behind_a_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], tuple[int, Callable[[], None]]]
) -> None:
    closing, end = make(tmp_path)
    close, other = os.close, os.open(tmp_path, os.O_RDONLY)

    def interrupted(fd: int) -> None:
        close(fd)
        monkeypatch.undo()
        os.dup2(other, fd)  # the next that another thread opens
        raise Killed

    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(Killed):
        end()
    end()
    close(closing)
    close(other)
