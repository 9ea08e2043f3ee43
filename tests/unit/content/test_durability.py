"""The order of steps that a power cut cannot undo, and how many syncs it takes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blobtee.content import LocalStore, writer
from blobtee.core import Sync
from blobtee.errors import StorageError, StorageFull
from tests.conformance.blobs import describe, digest_of, put

MIB = 1 << 20


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk: `sync NAME`, `rename NAME`, `unlink NAME`, with the last part of each path."""
    recorded: list[str] = []

    def record(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(first: Any, *rest: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
            recorded.append(f"{name} {Path(path).name}")
            return call(first, *rest, **named)

        return wrapped

    class Recorded(Sync):
        def __init__(self, fd: int) -> None:
            super().__init__(fd)
            self._is_recorded = False
            self._name = Path(os.readlink(f"/proc/self/fd/{fd}")).name

        def begin(self) -> None:
            super().begin()
            recorded.append(f"begin to sync {self._name}")

        def wait(self) -> None:
            super().wait()
            if not self._is_recorded:
                recorded.append(f"sync {self._name}")
            self._is_recorded = True

    monkeypatch.setattr(writer, "Sync", Recorded)
    monkeypatch.setattr(os, "fsync", record("sync", os.fsync))
    monkeypatch.setattr(os, "rename", record("rename", os.rename))
    monkeypatch.setattr(os, "replace", record("replace", os.replace))
    monkeypatch.setattr(os, "unlink", record("unlink", os.unlink))
    return recorded


def without_tidying(steps: list[str]) -> list[str]:
    """Without what becomes of the folder of an ingest that has ended."""
    folder = hashlib.sha256(b"ref").hexdigest()
    return [step for step in steps if step != f"rename {folder}" and not step.startswith("unlink")]


def test_a_commit_syncs_the_data_names_them_and_syncs_the_directory(tmp_path: Path, steps: list[str]) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("ref") as writer:
            writer.write(b"data")
            steps.clear()
            writer.commit()
            committed = without_tidying(steps)
    assert committed == ["begin to sync data", "sync data", "rename data", "sync sha256"]


def test_the_sync_of_data_begins_when_the_total_is_reached(tmp_path: Path, steps: list[str]) -> None:
    data = b"x" * (2 * MIB)
    with LocalStore(tmp_path) as store:
        with store.writer("ref", total=len(data)) as writer:
            steps.clear()
            writer.write(data[:MIB])
            assert steps == []
            writer.write(data[MIB:])
            assert steps == ["begin to sync data"]
            steps.clear()
            writer.commit(len(data), digest_of(data))
            assert without_tidying(steps) == ["sync data", "rename data", "sync sha256"]


def test_data_that_changed_after_the_sync_are_synced_again(tmp_path: Path, steps: list[str]) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("ref", total=4) as writer:
            writer.write(b"1234")
            writer.write(b"5")
            steps.clear()
            writer.commit()
            assert steps[:3] == ["begin to sync data", "sync data", "rename data"]


def test_what_is_cut_off_behind_the_total_is_synced_too(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def half(fd: int, data: memoryview, offset: int) -> int:
        if offset == 2 * MIB + MIB // 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[: MIB * 3 // 4], offset)

    def ftruncate(fd: int, size: int) -> None:
        steps.append("cut")
        cut(fd, size)

    cut = os.ftruncate
    with LocalStore(tmp_path) as store, store.writer("ref", total=2 * MIB) as writer:
        writer.write(b"a" * (MIB * 3 // 2))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half)
            with pytest.raises(StorageFull):
                writer.write(b"b" * MIB)
        writer.write(b"c" * (MIB // 2))
        monkeypatch.setattr(os, "ftruncate", ftruncate)
        steps.clear()
        info = writer.commit()
        assert info.size == 2 * MIB
        assert steps[:6] == ["sync data", "cut", "unlink offset", "begin to sync data", "sync data", "rename data"]


def test_a_name_that_cannot_be_made_durable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def refuse_directories(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    with LocalStore(tmp_path) as store:
        with store.writer("ref") as writer:
            writer.write(b"data")
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", refuse_directories)
                with pytest.raises(StorageError):
                    writer.commit()
        assert list(store.walk()) == []
        with store.writer("ref") as writer:
            assert writer.status.offset == 4
            writer.commit(labels={"a": "b"})
        assert store.info(digest_of(b"data")).labels == {"a": "b"}


def test_a_delete_is_durable(tmp_path: Path, steps: list[str]) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data")
        steps.clear()
        store.delete(digest_of(b"data"))
        assert steps == [f"unlink {digest_of(b'data').hex}", "sync sha256"]


def test_names_are_replaced_in_one_step_and_durably(tmp_path: Path, steps: list[str]) -> None:
    with LocalStore(tmp_path) as store:
        steps.clear()
        store.layout.set("name", describe(b"data"))
        assert steps == ["sync .index.json.new", "replace .index.json.new", f"sync {tmp_path.name}"]
