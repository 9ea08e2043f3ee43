"""Folders of ingests that go from one to the next: nothing of the first is in the second, and none stays behind."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobtee.content import LocalStore, ingests, locks
from blobtee.content.api import Writer
from blobtee.content.locks import Locks
from blobtee.content.spares import AT_REST
from blobtee.core import begin_folder
from blobtee.errors import AlreadyExists
from blobtee.oci import Digest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "root") as store:
        yield store


@pytest.fixture
def other(store: LocalStore) -> Iterator[Writer]:
    """A writer that is open all the time, so that nobody is the last."""
    with store.writer("other") as writer:
        yield writer


def folders(store: LocalStore) -> set[str]:
    return set(os.listdir(store.root / "ingest"))


def files(store: LocalStore, name: str) -> dict[str, bytes]:
    folder = store.root / "ingest" / name
    return {each: (folder / each).read_bytes() for each in os.listdir(folder)}


def end_one(store: LocalStore, ref: str, data: bytes = b"data", total: int = 0) -> str:
    """Commit a blob; the name of its folder, which is spare now."""
    before = folders(store)
    with store.writer(ref, total=total) as writer:
        writer.write(data)
        writer.commit()
    (name,) = folders(store) - before
    return name


def folder_of(ref: str) -> str:
    return hashlib.sha256(ref.encode()).hexdigest()


def test_the_next_ingest_has_the_folder_and_nothing_else(store: LocalStore, other: Writer) -> None:
    spare = end_one(store, "a ref that is rather long", total=4)
    assert "data" not in files(store, spare)
    assert [status.ref for status in store.statuses()] == ["other"]
    with store.writer("short") as writer:
        assert spare not in folders(store)
        status = writer.status
        assert (status.ref, status.offset, status.total) == ("short", 0, 0)
        (name,) = (each for each in folders(store) if files(store, each)["ref"] == b"short")
        assert files(store, name).keys() == {"data", "ref", "startedat", "updatedat"}
        assert files(store, name)["startedat"] == files(store, name)["updatedat"]
        writer.write(b"half")
    # What the files say is what the writer knew.
    found = store.status("short")
    assert (found.ref, found.offset, found.total, found.started_at) == ("short", 4, 0, status.started_at)


def test_the_last_writer_leaves_a_few_for_the_next_and_closing_none(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "root") as store:
        writers = [store.writer(f"ref {n}") for n in range(AT_REST + 3)]
        for n, writer in enumerate(writers):
            writer.write(b"%d" % n)
        for n, writer in enumerate(writers[:-1]):
            writer.commit()
            assert len(folders(store)) == len(writers), n
        writers[-1].commit()
        left = folders(store)
        assert len(left) == AT_REST
        assert store.statuses() == []
        for n in range(2):
            with store.writer(f"more {n}") as writer:
                assert len(folders(store)) == AT_REST, "it has one of them"
                assert len(left & folders(store)) == AT_REST - 1
                writer.write(b"more %d" % n)
                writer.commit()
    assert folders(store) == set()


def test_who_comes_again_while_the_folder_is_spare(store: LocalStore, other: Writer) -> None:
    assert end_one(store, "again", b"first") != (name := folder_of("again"))
    with store.writer("again") as writer:
        writer.write(b"second")
        with store.writer("third") as third:
            third.write(b"third")
        assert files(store, name)["data"] == b"second"
        assert writer.commit().digest == Digest.of(b"second")
    assert store.status("third").offset == 5


def test_a_folder_that_could_not_be_had_is_for_another(
    store: LocalStore, other: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writer("first") as first, store.writer("second") as second:
        first.write(b"1")
        second.write(b"2")
        before = folders(store)
        first.commit()
        second.commit()
    spare, refused = folders(store) - before, []

    def refuse(_: str, spare: str, *__: object) -> int | None:
        """As the core, when the rename fails, or something before it."""
        refused.append(os.path.basename(spare))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(ingests, "begin_folder", refuse)
        writers = [store.writer("refused")]
    assert spare <= folders(store)
    writers.append(store.writer("next"))
    assert spare & folders(store) == {*refused}, "what may be refused again comes last"
    writers.append(store.writer("last"))
    assert not spare & folders(store)
    for writer in writers:
        writer.write(writer.status.ref.encode())
        writer.commit()
    assert len(folders(store)) == 4, "theirs, and the other's"
    store.close()
    assert folders(store) == {folder_of("other")}


def test_what_has_become_an_ingest_is_not_given_to_another(
    store: LocalStore, other: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in it could not be written, when it had its new name already."""
    spare = end_one(store, "first")

    def half(folder: str, spare: str, *_: object) -> int | None:
        os.rename(spare, folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ingests, "begin_folder", half)
        with store.writer("half done") as writer:
            writer.write(b"half")
    given: list[str | None] = []

    def begin(folder: str, spare: str | None, *more: Any) -> int | None:
        given.append(spare)
        return begin_folder(folder, spare, *more)

    monkeypatch.setattr(ingests, "begin_folder", begin)
    with store.writer("next") as writer:
        writer.write(b"next")
    assert given == [None], f"{spare} is the ingest's"
    assert store.status("half done").offset == 4


def test_an_unfinished_ingest_is_never_another_s(store: LocalStore, other: Writer) -> None:
    end_one(store, "again", b"first")
    name = folder_of("again")
    with store.writer("again") as writer:
        writer.write(b"half")
    with store.writer("new"):
        assert files(store, name)["data"] == b"half"
    assert store.status("again").offset == 4


def test_what_is_not_there_any_more_is_given_to_nobody(store: LocalStore, other: Writer) -> None:
    name = end_one(store, "gone")
    shutil.rmtree(store.root / "ingest" / name)
    with store.writer("new") as writer:
        writer.write(b"new")
        writer.commit()


_OTHER_PROCESS = """
import sys, time
from blobtee.content import LocalStore

store = LocalStore(sys.argv[1])
other = store.writer("other")
with store.writer("first") as writer:
    writer.write(b"first")
    writer.commit()
print("ready", flush=True)
sys.stdin.readline()
with store.writer("first") as writer:
    writer.write(b"half")
print("resumable", flush=True)
with store.writer("second") as writer:
    writer.write(b"second")
    writer.commit()
print("again", flush=True)
sys.stdin.readline()
"""


def test_those_of_another_process_stay_for_as_long_as_it_lives(tmp_path: Path) -> None:
    """Who opens the store meanwhile may be in the middle of removing one when it is given to an ingest."""
    root = tmp_path / "root"
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with LocalStore(root) as store:
                assert store.problems == ()
                (spare,) = folders(store) - {folder_of("other")}
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "resumable\n"
                assert spare not in folders(store)
                assert store.status("first").offset == 4
                assert process.stdout.readline() == "again\n"
                (spare,) = folders(store) - {folder_of("other"), folder_of("first")}
        finally:
            process.kill()
    with LocalStore(root) as store:
        assert folders(store) == {folder_of("other"), folder_of("first")}


def test_closing_while_the_first_is_kept_waits_for_nobody(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def ending_first(self: Locks, name: str) -> bool:
        if name.startswith("spares:"):
            store._ingests.end()
        return try_acquire(self, name)

    try_acquire = Locks.try_acquire
    with monkeypatch.context() as patch:
        patch.setattr(Locks, "try_acquire", ending_first)
        with store.writer("ref") as writer:
            writer.write(b"data")
            writer.commit()
    assert folders(store) == set()
    monkeypatch.setattr(locks, "PATIENCE", 1e9)
    store.close()


def test_what_is_there_already_leaves_no_data_behind(store: LocalStore, other: Writer) -> None:
    end_one(store, "first", b"same")
    with store.writer("second") as writer:
        writer.write(b"same")
        with pytest.raises(AlreadyExists):
            writer.commit()
    assert [status.ref for status in store.statuses()] == ["other"]
    with store.writer("third") as writer:
        assert writer.status.offset == 0


@pytest.mark.parametrize(
    "what", ["a link in its place", "a link in it", "a pipe in it", "a folder in it", "a file in it"]
)
def test_nothing_is_written_where_somebody_points(store: LocalStore, other: Writer, tmp_path: Path, what: str) -> None:
    name = end_one(store, "first")
    folder, outside = store.root / "ingest" / name, tmp_path / "outside"
    outside.mkdir()
    (outside / "ref").write_bytes(b"of somebody else")
    if what == "a link in its place":
        folder.rename(tmp_path / "moved")
        folder.symlink_to(outside)
    elif what == "a file in it":
        (folder / "foreign").write_bytes(b"x")
    else:
        (folder / "ref").unlink()
        if what == "a link in it":
            (folder / "ref").symlink_to(outside / "ref")
        elif what == "a pipe in it":
            os.mkfifo(folder / "ref")
        else:
            (folder / "ref").mkdir()
    with store.writer("second") as writer:
        writer.write(b"second")
    assert store.status("second").offset == 6
    assert (outside / "ref").read_bytes() == b"of somebody else"
    assert os.listdir(outside) == ["ref"]
    with store.writer("second") as writer:
        assert writer.commit().digest == Digest.of(b"second")
    store.close()
    assert folder.is_symlink() == (what == "a link in its place"), "a link is not ours to give or to remove"


def test_there_is_an_end_of_what_is_kept(store: LocalStore, other: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.content.spares.MOST", 2)
    writers = [store.writer(f"ref {n}") for n in range(5)]
    for n, writer in enumerate(writers):
        writer.write(b"%d" % n)
        writer.commit()
        writer.close()
    assert len(folders(store)) == 3
