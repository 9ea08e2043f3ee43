"""Roots that somebody prepared: links that lead out, things that are no files, rows that are no rows."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blobtee.content import LocalStore
from blobtee.content.files import read_small, replace_file
from blobtee.errors import DataLoss, InvalidArgument, NotFound, StorageError, StorageFull
from tests.conformance.blobs import describe, digest_of, get, put


def make_ingest(root: Path, ref: str = "ref") -> Path:
    directory = root / "ingest" / hashlib.sha256(ref.encode()).hexdigest()
    directory.mkdir(parents=True)
    (directory / "ref").write_text(ref)
    (directory / "data").write_bytes(b"data")
    return directory


def write_and_commit(store: LocalStore) -> None:
    with store.writer("ref") as writer:
        writer.truncate(0)
        writer.write(b"good")
        writer.commit()
    assert get(store, b"good") == b"good"


@pytest.mark.parametrize("name", ["ref", "total", "offset", "startedat", "updatedat"])
@pytest.mark.parametrize(
    "odd", [Path.mkdir, lambda path: path.symlink_to(path.name), os.mkfifo], ids=["directory", "loop", "pipe"]
)
def test_an_ingest_that_holds_what_is_no_file_is_set_aside(
    tmp_path: Path, name: str, odd: Callable[[Path], object]
) -> None:
    path = make_ingest(tmp_path) / name
    path.unlink(missing_ok=True)
    odd(path)
    with LocalStore(tmp_path) as store:
        assert len(store.problems) == 1
        assert "set aside" in store.problems[0]
        write_and_commit(store)


def test_an_ingest_that_comes_to_hold_what_is_no_file_starts_over(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        (make_ingest(tmp_path) / "total").mkdir()
        assert store.statuses() == []
        write_and_commit(store)


@pytest.mark.timeout(20)
def test_nobody_waits_for_the_other_end_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "blobtee.db-ballast")
    with LocalStore(tmp_path) as store:
        ingest = make_ingest(tmp_path)
        os.mkfifo(ingest / "offset")
        write_and_commit(store)
    os.mkfifo(tmp_path / "kept")
    os.mkfifo(tmp_path / ".other.new")
    with pytest.raises(OSError, match="no file"):
        read_small(tmp_path / "kept", 10)
    with pytest.raises(OSError):
        replace_file(tmp_path / "other", b"new")
    with pytest.raises(OSError, match="no file"):
        read_small("/dev/zero", 10)


@pytest.mark.parametrize("when_open", [False, True])
def test_a_link_as_ingest_is_not_followed(tmp_path: Path, when_open: bool) -> None:
    theirs = make_ingest(tmp_path / "theirs")
    root = tmp_path / "root"

    def link() -> None:
        (root / "ingest").mkdir(parents=True, exist_ok=True)
        (root / "ingest" / theirs.name).symlink_to(theirs)

    if not when_open:
        link()
    with LocalStore(root) as store:
        if when_open:
            link()
        write_and_commit(store)
        link()
        store.abort("ref")
    assert not (root / "ingest" / theirs.name).is_symlink()
    assert sorted(path.name for path in theirs.iterdir()) == ["data", "ref"]
    assert (theirs / "data").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["updatedat", "total"])
def test_a_link_in_an_ingest_leads_no_write_out_of_the_root(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    root = tmp_path / "root"
    (make_ingest(root) / name).symlink_to(precious)
    with LocalStore(root) as store:
        try:
            with store.writer("ref", total=8) as writer:
                writer.write(b"more")
        except StorageError:
            assert name == "total"
    assert precious.read_text() == ""


def test_ingests_that_cannot_be_listed_are_told_and_stop_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: object) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    LocalStore(tmp_path).close()
    monkeypatch.setattr(os, "listdir", refused)
    with LocalStore(tmp_path) as store:
        assert len(store.problems) == 1
        with pytest.raises(StorageError):
            store.statuses()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_root_that_no_file_system_takes_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises((InvalidArgument, StorageError)):
        LocalStore(tmp_path / name)


def test_a_file_system_without_rights_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object, mode: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with LocalStore(tmp_path) as store:
        monkeypatch.setattr(os, "chmod", refused)
        put(store, b"data")
        assert get(store, b"data") == b"data"


def test_a_root_may_have_a_name_of_any_bytes(tmp_path: Path) -> None:
    with LocalStore(tmp_path / os.fsdecode(b"\xff ?#%41")) as store:
        put(store, b"data", {"a": "1"})
        assert get(store, b"data") == b"data"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("labels", "[1]"),
        ("labels", "7"),
        ("labels", '{"a": 1}'),
        ("labels", "{"),
        ("labels", b"\xff"),
        ("labels", "[" * 100_000),
        ("size", "four"),
        ("created_at", "long ago"),
    ],
)
def test_a_row_that_makes_no_sense_is_told(tmp_path: Path, column: str, value: Any) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data")
    with closing(sqlite3.connect(tmp_path / "blobtee.db")) as connection, connection:
        connection.execute(f"UPDATE blobs SET {column} = ?", (value,))
    with LocalStore(tmp_path) as store:
        for call in (
            lambda: store.info(digest_of(b"data")),
            lambda: store.update(digest_of(b"data"), {"a": "1"}),
            lambda: list(store.walk("labels.a==1")),
        ):
            with pytest.raises(DataLoss):
                call()
        assert get(store, b"data") == b"data"
        store.delete(digest_of(b"data"))
        put(store, b"data")


def test_a_row_of_no_blob_is_told(tmp_path: Path) -> None:
    with LocalStore(tmp_path):
        pass
    for absence in (1, 2):
        with closing(sqlite3.connect(tmp_path / "blobtee.db")) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO blobs VALUES ('sha256:zz', 1, 1, 1, '{}', ?)", (absence,))
        with LocalStore(tmp_path) as store, pytest.raises(DataLoss, match="sha256:zz"):
            (store.quarantined if absence == 1 else store.evicted)()


# ---- quarantine, when the good blob does not arrive ----------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), Killed()], ids=["error", "killed"])
def test_a_blob_in_quarantine_stays_there_when_its_good_one_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def rename(source: object, target: object) -> None:
        if isinstance(failure, Killed):
            # Nothing that is done after a kill is done.
            monkeypatch.setattr("blobtee.content.arrivals.Arrival.undo", lambda *_: None)
        raise failure

    with LocalStore(tmp_path) as store:
        before = put(store, b"data", {"source": "there"})
        store.quarantine(before.digest)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises((StorageError, Killed)):
                put(store, b"data", {"new": "1"})
        monkeypatch.undo()
        for status in store.statuses():
            store.abort(status.ref)
        assert [info.digest for info in store.quarantined()] == [before.digest]
        assert dict(put(store, b"data").labels)["source"] == "there"
        assert store.quarantined() == []
        assert dict(store.info(before.digest).labels)["source"] == "there"


def test_a_damaged_blob_that_cannot_be_set_aside_stays_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with LocalStore(tmp_path) as store:
        before = put(store, b"data", {"a": "1"})
        path = tmp_path / "blobs" / "sha256" / before.digest.hex
        path.chmod(0o644)
        os.truncate(path, 3)
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", full)
            with pytest.raises(StorageFull):
                store.quarantine(before.digest)
        assert not store.has(before.digest)
        with pytest.raises(DataLoss):
            store.info(before.digest)
        assert store.quarantine(before.digest) == before


def test_a_blob_back_from_quarantine_is_watched_again(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        before = put(store, b"data")
        store.quarantine(before.digest)
        put(store, b"data")
        path = store.root / "blobs" / "sha256" / before.digest.hex
        path.chmod(0o644)
        path.write_bytes(b"dat")
        with pytest.raises(DataLoss):
            store.info(before.digest)


def test_deleting_a_blob_in_quarantine_forgets_it(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data", {"a": "1"})
        store.quarantine(digest_of(b"data"))
        with pytest.raises(NotFound):
            store.delete(digest_of(b"data"))
        assert store.quarantined() == []
        assert dict(put(store, b"data").labels) == {}
        with pytest.raises(NotFound):
            store.reader_at(describe(b"other"))
