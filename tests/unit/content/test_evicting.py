"""Blobs that give their bytes back: the labels stay, and when a blob was last used is known."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from blobtee.content import LocalStore, lastuse
from blobtee.errors import NotFound, PermissionDenied
from blobtee.oci import Descriptor, Digest

DATA = b"some bytes"
DIGEST = Digest.of(DATA)
DESC = Descriptor("", DIGEST, len(DATA))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "root") as store:
        yield store


def put(store: LocalStore, labels: dict[str, str] | None = None) -> None:
    with store.writer("ref") as writer:
        writer.write(DATA)
        writer.commit(labels=labels)


def yes() -> AbstractContextManager[bool]:
    return nullcontext(True)


def path(store: LocalStore) -> Path:
    return store.root / "blobs" / DIGEST.algorithm / DIGEST.hex


def test_labels_stay_and_are_there_when_it_comes_again(store: LocalStore) -> None:
    put(store, {"a": "1", "b": "2"})
    with store.reader_at(DESC) as reader:
        assert store.evict(DIGEST, yes)
        assert reader.read_at(0, 100) == DATA
    with pytest.raises(NotFound):
        store.info(DIGEST)
    assert [(info.digest, dict(info.labels)) for info in store.evicted()] == [(DIGEST, {"a": "1", "b": "2"})]
    assert (list(store.walk()), store.quarantined()) == ([], [])
    assert not store.evict(DIGEST, yes)
    put(store, {"b": "3"})
    assert dict(store.info(DIGEST).labels) == {"a": "1", "b": "3"}
    assert store.evicted() == []
    assert [dict(info.labels) for info in store.walk()] == [{"a": "1", "b": "3"}]
    store.delete(DIGEST)
    put(store)
    assert store.info(DIGEST).labels == {}


def test_what_is_kept_can_be_forgotten_but_not_of_a_blob_that_is_here(store: LocalStore) -> None:
    put(store, {"a": "1"})
    store.forget(DIGEST)
    assert store.info(DIGEST).labels == {"a": "1"}
    store.evict(DIGEST, yes)
    store.forget(DIGEST)
    store.forget(DIGEST)
    assert store.evicted() == []
    put(store)
    assert store.info(DIGEST).labels == {}


def test_who_says_no_keeps_it(store: LocalStore) -> None:
    put(store, {"a": "1"})
    assert not store.evict(DIGEST, lambda: nullcontext(False))

    def failing() -> AbstractContextManager[bool]:
        raise NotFound("something")

    with pytest.raises(NotFound, match="something"):
        store.evict(DIGEST, failing)
    for info in (store.info(DIGEST), *store.walk()):
        assert info.labels == {"a": "1"}
    store.update(DIGEST, {"b": "2"})
    assert store.evict(DIGEST, yes)
    assert store.evicted()[0].labels == {"a": "1", "b": "2"}


def test_the_question_is_asked_where_nobody_else_changes_anything(store: LocalStore) -> None:
    put(store)
    went = threading.Event()

    def hold() -> None:
        with store.metadata.transaction():
            went.set()

    other = threading.Thread(target=hold)

    @contextmanager
    def asked() -> Iterator[bool]:
        other.start()
        assert not went.wait(0.2)
        yield True
        assert path(store).exists() is False

    assert store.evict(DIGEST, asked)
    other.join()


def test_a_blob_that_another_program_put_there(store: LocalStore) -> None:
    path(store).write_bytes(DATA)
    assert store.evict(DIGEST, yes)
    assert [info.size for info in store.evicted()] == [len(DATA)]


def test_a_damaged_one_that_came_back_and_went(store: LocalStore) -> None:
    put(store, {"a": "1"})
    store.quarantine(DIGEST)
    assert not store.evict(DIGEST, yes)
    assert len(store.quarantined()) == 1
    put(store)
    assert store.evict(DIGEST, yes)
    assert (store.quarantined(), store.evicted()[0].labels) == ([], {"a": "1"})
    put(store)
    store.quarantine(DIGEST)
    assert (len(store.quarantined()), store.evicted()) == (1, [])


def test_a_store_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalStore(tmp_path / "root") as store:
        put(store)
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    with LocalStore(tmp_path / "root") as store:
        assert store.read_only
        with pytest.raises(PermissionDenied):
            store.evict(DIGEST, yes)
        store.reader_at(DESC).close()
        assert store.evicted() == []


@pytest.fixture
def long_ago(store: LocalStore) -> Callable[[], int]:
    def make() -> int:
        now = time.time_ns() - 10 * lastuse.RESOLUTION_NS
        os.utime(path(store), ns=(now, path(store).stat().st_mtime_ns))
        return store.last_used(DIGEST)

    return make


def test_opening_is_a_use_looking_and_checking_are_none(store: LocalStore, long_ago: Callable[[], int]) -> None:
    put(store)
    assert time.time_ns() - store.last_used(DIGEST) < lastuse.RESOLUTION_NS
    then = long_ago()
    written = path(store).stat().st_mtime_ns
    store.info(DIGEST)
    list(store.walk())
    with lastuse.unnoticed(), store.reader_at(DESC) as reader:
        assert reader.read_at(0, 100) == DATA
    assert store.last_used(DIGEST) == then
    store.reader_at(DESC).close()
    now = store.last_used(DIGEST)
    assert time.time_ns() - now < lastuse.RESOLUTION_NS
    store.reader_at(DESC).close()
    assert (store.last_used(DIGEST), path(store).stat().st_mtime_ns) == (now, written)
    store.delete(DIGEST)
    with pytest.raises(NotFound):
        store.last_used(DIGEST)


def test_a_file_of_somebody_else_is_opened_all_the_same(
    store: LocalStore, long_ago: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    long_ago()
    real = os.open

    def refused(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(1, "not the owner")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "utime", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "not the owner")))
    with store.reader_at(DESC) as reader:
        assert reader.read_at(0, 100) == DATA


def test_a_clock_that_went_back_is_no_reason_to_keep_a_blob(store: LocalStore) -> None:
    put(store)
    ahead = time.time_ns() + 100 * lastuse.RESOLUTION_NS
    os.utime(path(store), ns=(ahead, ahead))
    store.reader_at(DESC).close()
    assert store.last_used(DIGEST) < ahead
