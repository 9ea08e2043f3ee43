"""What only a store on disk can get into: foreign files, damage, missing rights. For its ingests: `test_ingests`."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blobtee.content import LocalStore
from blobtee.content import blobs as blobs_module
from blobtee.content.database import Database
from blobtee.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SizeMismatch,
)
from blobtee.oci import Descriptor
from tests.conformance.blobs import describe, digest_of, get, put

MIB = 1 << 20


def path_of(root: Path, data: bytes) -> Path:
    return root / "blobs" / "sha256" / digest_of(data).hex


# ---- the root -------------------------------------------------------------------------------------------------------


def test_a_root_is_made_with_what_is_missing_above_it(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b" / "store"
    with LocalStore(root) as store:
        put(store, b"data")
    assert (root / "oci-layout").read_bytes() == b'{"imageLayoutVersion": "1.0.0"}'
    assert path_of(root, b"data").read_bytes() == b"data"
    assert stat.S_IMODE(path_of(root, b"data").stat().st_mode) == 0o444
    with LocalStore(root) as store:
        assert get(store, b"data") == b"data"


def test_a_file_as_root_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for root in (file, file / "below"):
        with pytest.raises(InvalidArgument, match="not a directory"):
            LocalStore(root)


def test_a_relative_root_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalStore("store") as store:
        put(store, b"data")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert get(store, b"data") == b"data"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Rights count for root too."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def foreign_root() -> Iterator[Path]:
    """A directory that everybody reaches but an unprivileged user may not write."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    root = base / "store"
    root.mkdir()
    yield root
    for directory in (root, *root.rglob("*")):
        if directory.is_dir():
            directory.chmod(0o755)
    shutil.rmtree(base)


def make_read_only(root: Path) -> None:
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_read_only_root_is_read_and_says_so_when_written(foreign_root: Path) -> None:
    with LocalStore(foreign_root) as store:
        info = put(store, b"data", {"a": "1"})
        store.layout.set("name", describe(b"data"))
        with store.writer("half") as writer:
            writer.write(b"ha")
    make_read_only(foreign_root)
    with unprivileged(), LocalStore(foreign_root) as store:
        assert store.read_only
        assert get(store, b"data") == b"data"
        assert store.info(info.digest) == info
        assert list(store.walk("labels.a==1")) == [info]
        assert store.layout.get("name").digest == info.digest
        assert store.status("half").offset == 2
        for call in (
            lambda: store.writer("ref"),
            lambda: store.abort("half"),
            lambda: store.update(info.digest, {"b": "2"}),
            lambda: store.delete(info.digest),
            lambda: store.quarantine(info.digest),
            lambda: store.layout.set("other", describe(b"data")),
        ):
            with pytest.raises(PermissionDenied):
                call()


def test_a_root_whose_files_may_be_written_but_not_the_directory_is_read(foreign_root: Path) -> None:
    with LocalStore(foreign_root) as store:
        put(store, b"data")
    for path in foreign_root.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    foreign_root.chmod(0o555)
    with unprivileged(), LocalStore(foreign_root) as store:
        assert store.read_only
        assert get(store, b"data") == b"data"


def test_a_read_only_layout_of_somebody_else_is_read(foreign_root: Path) -> None:
    path = path_of(foreign_root, b"data")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")
    make_read_only(foreign_root)
    with unprivileged(), LocalStore(foreign_root) as store:
        assert get(store, b"data") == b"data"
        assert store.info(digest_of(b"data")).size == 4
        assert len(list(store.walk())) == 1
        assert store.statuses() == []
        assert store.layout.names() == {}


def test_a_root_that_can_be_neither_written_nor_read_as_a_store_is_refused(foreign_root: Path) -> None:
    make_read_only(foreign_root)
    with unprivileged(), pytest.raises(PermissionDenied, match="cannot make a store"):
        LocalStore(foreign_root)


def test_damaged_metadata_are_told_and_the_store_leaves_nothing_open(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data")
    (tmp_path / "blobtee.db").write_bytes(b"no database at all" * 500)
    for side in ("-wal", "-shm"):
        (tmp_path / f"blobtee.db{side}").unlink(missing_ok=True)
    with pytest.raises(DataLoss, match="the blobs stay"):
        LocalStore(tmp_path)
    (tmp_path / "blobtee.db").unlink()
    with LocalStore(tmp_path) as store:
        assert get(store, b"data") == b"data"


# ---- blobs of others, damaged blobs ---------------------------------------------------------------------------------


def test_a_blob_that_somebody_else_put_there_is_served_and_may_be_labelled(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        path_of(tmp_path, b"foreign").write_bytes(b"foreign")
        (info,) = store.walk()
        assert (info.size, dict(info.labels)) == (7, {})
        assert store.info(info.digest) == info
        assert info.created_at == path_of(tmp_path, b"foreign").stat().st_mtime_ns
        assert get(store, b"foreign") == b"foreign"
        with pytest.raises(AlreadyExists):
            store.writer("ref", expected=info.digest)
        assert dict(store.update(info.digest, {"a": "1"}).labels) == {"a": "1"}
        store.delete(info.digest)
        assert list(store.walk()) == []


def test_what_is_no_blob_is_not_listed(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        directory = tmp_path / "blobs" / "sha256"
        (directory / "tmp-123").write_bytes(b"")
        (directory / ("A" * 64)).write_bytes(b"")
        (directory / ("a" * 64)).mkdir()
        (tmp_path / "blobs" / "md5").mkdir()
        (tmp_path / "blobs" / "md5" / ("0" * 32)).write_bytes(b"")
        assert list(store.walk()) == []
        with pytest.raises(NotFound):
            store.info("sha256:" + "a" * 64)
        (directory / digest_of(b"").hex).mkdir()
        with pytest.raises(DataLoss):
            store.reader_at(describe(b""))


def test_a_blob_that_lost_bytes_is_never_served_as_good(tmp_path: Path) -> None:
    data = b"x" * 1000
    with LocalStore(tmp_path) as store:
        put(store, data)
        path = path_of(tmp_path, data)
        path.chmod(0o644)
        os.truncate(path, 999)
        with pytest.raises(DataLoss):
            store.reader_at(describe(data))
        with pytest.raises(DataLoss):
            store.reader_at(Descriptor("", digest_of(data), -1))
        with pytest.raises(DataLoss):
            store.info(digest_of(data))
        assert [info.size for info in store.walk()] == [1000]


def test_a_blob_that_loses_bytes_under_a_reader_is_told(tmp_path: Path) -> None:
    data = b"x" * 1000
    with LocalStore(tmp_path) as store:
        put(store, data)
        with store.reader_at(describe(data)) as reader:
            path_of(tmp_path, data).chmod(0o644)
            os.truncate(path_of(tmp_path, data), 500)
            assert reader.read_at(0, 500) == data[:500]
            with pytest.raises(DataLoss):
                reader.read_at(0, 501)
            with pytest.raises(DataLoss):
                reader.read_at(600, 1)


def test_a_reader_that_is_closed_during_a_read_keeps_its_file_until_the_read_is_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data")
        reader = store.reader_at(describe(b"data"))
        used: list[int] = []

        def closing(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(fd: int, *rest: Any) -> Any:
                used.append(fd)
                reader.close()
                return call(fd, *rest)

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", closing(os.pread))
            assert reader.read_at(0, 4) == b"data"
        with pytest.raises(OSError):
            os.fstat(used[0])
        reader = store.reader_at(describe(b"data"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", closing(os.preadv))
            assert reader.readinto_at(0, bytearray(4)) == 4
        with pytest.raises(OSError):
            os.fstat(used[1])


def test_a_foreign_blob_of_a_wrong_size_is_told_by_the_descriptor(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        path_of(tmp_path, b"data").write_bytes(b"dat")
        with pytest.raises(SizeMismatch):
            store.reader_at(describe(b"data"))


def test_writing_a_damaged_blob_again_heals_it(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data")
        path_of(tmp_path, b"data").chmod(0o644)
        os.truncate(path_of(tmp_path, b"data"), 1)
        with store.writer("ref", expected=digest_of(b"data")) as writer:
            writer.write(b"data")
            writer.commit(4)
        assert get(store, b"data") == b"data"
        (aside,) = (tmp_path / "broken").iterdir()
        assert aside.read_bytes() == b"d"


def test_a_blob_in_quarantine_is_gone_and_keeps_its_labels_for_the_good_one(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        before = put(store, b"data", {"source": "there", "old": "1"})
        path_of(tmp_path, b"data").chmod(0o644)
        path_of(tmp_path, b"data").write_bytes(b"DATA")
        assert store.quarantine(before.digest) == before
        with pytest.raises(NotFound):
            store.info(before.digest)
        with pytest.raises(NotFound):
            store.reader_at(describe(b"data"))
        with pytest.raises(NotFound):
            store.quarantine(before.digest)
        assert list(store.walk()) == []
        (aside,) = (tmp_path / "broken").iterdir()
        assert aside.read_bytes() == b"DATA"
    with LocalStore(tmp_path) as store:
        assert store.quarantined() == [before]
        assert dict(put(store, b"data", {"old": "2"}).labels) == {"source": "there", "old": "2"}
        assert store.quarantined() == []


def test_a_row_without_a_file_means_nothing(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        put(store, b"data", {"old": "1"})
        path_of(tmp_path, b"data").unlink()
        with pytest.raises(NotFound):
            store.info(digest_of(b"data"))
        with pytest.raises(NotFound):
            store.delete(digest_of(b"data"))
        assert list(store.walk()) == []
        assert dict(put(store, b"data", {"new": "2"}).labels) == {"new": "2"}


def test_walking_asks_the_database_once_for_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 * blobs_module._PAGE + 1
    with LocalStore(tmp_path) as store:
        for number in range(count):
            (tmp_path / "blobs" / "sha256" / hashlib.sha256(b"%d" % number).hexdigest()).write_bytes(b"")
        queries = 0
        real = Database.reading

        def counted(database: Database) -> Any:
            nonlocal queries
            queries += 1
            return real(database)

        monkeypatch.setattr(Database, "reading", counted)
        assert len({info.digest for info in store.walk()}) == count
        assert queries == 3


# ---- the store ------------------------------------------------------------------------------------------------------


def test_closing_the_store_closes_its_writers_and_unlocks(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        writer = store.writer("ref", total=5 * MIB)
        writer.write(b"data")
    with LocalStore(tmp_path) as other, other.writer("ref") as again:
        assert again.status.offset == 4
    writer.close()


def test_two_stores_of_one_root_are_one_store(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as one, LocalStore(tmp_path) as two:
        put(one, b"data", {"a": "1"})
        assert dict(two.info(digest_of(b"data")).labels) == {"a": "1"}
        two.delete(digest_of(b"data"))
        with pytest.raises(NotFound):
            one.info(digest_of(b"data"))
