"""Blobs that come at the same time share a transaction and a sync, and nothing else: what breaks one is its own."""

from __future__ import annotations

import contextvars
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from blobtee.content import Info, LocalStore
from blobtee.content.arrivals import Claim
from blobtee.core import settle_files
from blobtee.errors import AlreadyExists, Cancelled, Internal, NotFound, ResourceExhausted, StorageError
from tests.conformance.blobs import digest_of

NAMES = ("a", "b", "c", "d")
DIGESTS = {name: digest_of(name.encode()) for name in NAMES}


class Killed(BaseException):
    pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "root") as store:
        store.metadata.migrate("claims", ("CREATE TABLE claims (name TEXT PRIMARY KEY)",))
        yield store


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Counted:
    """Transactions that were begun, and directories that were synced."""

    def __init__(self, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transactions = 0
        self.syncs = 0
        transaction, sync = store.metadata.transaction, os.fsync

        @contextmanager
        def counted() -> Iterator[Any]:
            self.transactions += not store.metadata.in_transaction
            with transaction() as connection:
                yield connection

        def synced(fd: int) -> None:
            self.syncs += os.path.isdir(f"/proc/self/fd/{fd}")
            sync(fd)

        monkeypatch.setattr(store.metadata, "transaction", counted)
        monkeypatch.setattr(os, "fsync", synced)


@pytest.fixture
def counted(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(store, monkeypatch)


def commit(store: LocalStore, name: str, claim: Callable[[], None] | None = None) -> Info:
    with store.writer(f"ref {name}") as writer:
        writer.write(name.encode())
        return writer.commit(1, DIGESTS[name], {"name": name}, claim=Calling(claim or claiming(store, name)))


class Calling(Claim):
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def write(self) -> None:
        self._call()


def claiming(store: LocalStore, name: str) -> Callable[[], None]:
    def claim() -> None:
        with store.metadata.transaction() as connection:
            connection.execute("INSERT INTO claims VALUES (?)", (name,))

    return claim


def claims(store: LocalStore) -> list[str]:
    with store.metadata.reading() as connection:
        return [row[0] for row in connection.execute("SELECT name FROM claims ORDER BY name")]


def at_once(
    store: LocalStore, pool: ThreadPoolExecutor, *works: Callable[[], Info], counted: Counted | None = None
) -> list[Future[Info]]:
    """Run `works` so that they come together: behind one blob more that waits for the database."""
    waiting = store._blobs._arrivals._together

    def have_come(number: int) -> bool:
        return len(waiting._coming) == number

    with store.metadata.transaction():
        futures = [pool.submit(commit, store, "a")]
        wait_until(lambda: waiting._working and not waiting._coming)
        for n, work in enumerate(works):
            futures.append(pool.submit(work))
            wait_until(partial(have_come, n + 1))
        if counted is not None:
            counted.transactions = counted.syncs = 0
    for future in futures:
        future.exception(10)
    return futures[1:]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_they_share_a_transaction_and_a_sync(store: LocalStore, pool: ThreadPoolExecutor, counted: Counted) -> None:
    works = [partial(commit, store, name) for name in NAMES[1:]]
    infos = [future.result() for future in at_once(store, pool, *works, counted=counted)]
    # One more of each is that of the first, which came alone; its transaction was begun before they were counted.
    assert counted.transactions == 1
    assert counted.syncs == 2
    assert [info.labels["name"] for info in infos] == list(NAMES[1:])
    for name, info in zip(NAMES[1:], infos, strict=True):
        assert store.info(DIGESTS[name]) == info
    assert claims(store) == list(NAMES)
    assert store.statuses() == []


class Joined(Calling):
    """Claims that are written at once, if `new` says so."""

    several = True
    new = True
    written: ClassVar[list[int]] = []

    @classmethod
    def write_all(cls, claims: Sequence[Self]) -> bool:
        for claim in claims:
            claim.write()
        cls.written.append(len(claims))
        return cls.new


def several(store: LocalStore, pool: ThreadPoolExecutor, kind: type[Joined]) -> list[Info]:
    def work(name: str) -> Info:
        with store.writer(f"ref {name}") as writer:
            writer.write(name.encode())
            return writer.commit(1, DIGESTS[name], {"name": name}, claim=kind(claiming(store, name)))

    return [future.result() for future in at_once(store, pool, *(partial(work, name) for name in NAMES[1:]))]


@pytest.mark.parametrize("is_new", [True, False])
def test_claims_that_can_are_written_at_once(store: LocalStore, pool: ThreadPoolExecutor, is_new: bool) -> None:
    class Kind(Joined):
        new = is_new
        written: ClassVar[list[int]] = []

    infos = several(store, pool, Kind)
    assert Kind.written == [3]
    assert claims(store) == list(NAMES)
    assert [info.labels["name"] for info in infos] == list(NAMES[1:])
    for info in infos:
        assert store.info(info.digest) == info


def test_what_breaks_claims_that_are_written_at_once_is_the_failure_of_one(
    store: LocalStore, pool: ThreadPoolExecutor
) -> None:
    class Kind(Joined):
        @classmethod
        def write_all(cls, claims: Sequence[Self]) -> bool:
            raise ValueError("a defect")

    assert [info.labels["name"] for info in several(store, pool, Kind)] == list(NAMES[1:])
    assert claims(store) == list(NAMES)


def test_a_database_that_others_hold_for_too_long_is_waited_for_once(
    store: LocalStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    transaction = store.metadata.transaction

    @contextmanager
    def busy() -> Iterator[Any]:
        if waiting._working and not store.metadata.in_transaction:
            waits.append(threading.get_ident())
            raise ResourceExhausted("other processes hold it for too long")
        with transaction() as connection:
            yield connection

    waiting = store._blobs._arrivals._together

    def work(name: str) -> Info:
        with store.writer(f"ref {name}") as writer:
            writer.write(name.encode())
            return writer.commit(1, DIGESTS[name], {"name": name})

    with store.metadata.transaction():
        first = pool.submit(work, "a")
        wait_until(lambda: waiting._working and not waiting._coming)
        futures = [pool.submit(work, name) for name in NAMES[1:]]
        wait_until(lambda: len(waiting._coming) == len(futures))
        monkeypatch.setattr(store.metadata, "transaction", busy)
    first.result(10)
    raised = [future.exception(10) for future in futures]
    assert all(isinstance(each, ResourceExhausted) for each in raised)
    assert len(waits) == 1
    assert len({id(each) for each in raised}) == len(futures)
    monkeypatch.undo()
    for name in NAMES[1:]:
        assert commit_again(store, name).labels == {"name": name}


def test_one_that_has_a_row_keeps_what_the_row_says(store: LocalStore, pool: ThreadPoolExecutor) -> None:
    commit(store, "c")
    store.update(DIGESTS["c"], {"of": "before"})
    store.quarantine(DIGESTS["c"])
    with store.metadata.transaction() as connection:
        connection.execute("DELETE FROM claims")
    b, c, d = several(store, pool, Joined)
    assert c.labels == {"name": "c", "of": "before"}
    assert {info.labels["name"] for info in store.walk()} == set(NAMES)
    assert store.quarantined() == []
    assert b.digest != d.digest


def test_the_next_are_announced_while_names_become_durable(
    store: LocalStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, may_end, sync = threading.Event(), threading.Event(), os.fsync

    def slow(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}") and not syncing.is_set():
            syncing.set()
            assert may_end.wait(10)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    first = pool.submit(commit, store, "a")
    assert syncing.wait(10)
    assert commit(store, "b").digest == DIGESTS["b"]
    assert claims(store) == ["a", "b"]
    assert not first.done()
    may_end.set()
    assert first.result(10).digest == DIGESTS["a"]


def test_each_claim_runs_in_the_context_of_its_own(store: LocalStore, pool: ThreadPoolExecutor) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: dict[str, str] = {}

    def work(name: str) -> Info:
        variable.set(f"of {name}")
        return commit(store, name, lambda: seen.update({name: variable.get()}))

    for future in at_once(store, pool, lambda: work("b"), lambda: work("c")):
        future.result()
    assert seen == {"b": "of b", "c": "of c"}


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("INSERT INTO claims VALUES ('a')", Internal),
        # SQLite itself takes the whole transaction back.
        ("INSERT OR ROLLBACK INTO claims VALUES ('a')", Internal),
        (None, NotFound),
    ],
)
def test_a_claim_that_fails_is_the_failure_of_one(
    store: LocalStore, pool: ThreadPoolExecutor, statement: str | None, error: type[Exception]
) -> None:
    runs = dict.fromkeys(NAMES, 0)

    def good(name: str) -> None:
        runs[name] += 1
        claiming(store, name)()

    def bad() -> None:
        with store.metadata.transaction() as connection:
            connection.execute("INSERT INTO claims VALUES ('lost')")
            if statement is None:
                raise NotFound("it was removed")
            connection.execute(statement)

    b, c, d = at_once(
        store,
        pool,
        lambda: commit(store, "b", lambda: good("b")),
        lambda: commit(store, "c", bad),
        lambda: commit(store, "d", lambda: good("d")),
    )
    assert b.result().labels == {"name": "b"}
    assert isinstance(c.exception(), error)
    assert d.result().labels == {"name": "d"}
    assert claims(store) == ["a", "b", "d"]
    assert (runs["b"], runs["d"]) == (2, 1), "b was done with the one that failed, and again alone"
    assert {info.labels["name"] for info in store.walk()} == {"a", "b", "d"}
    with store.metadata.reading() as connection:
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (3,)
    # What could not be claimed is as it was before.
    assert store.status("ref c").offset == 1
    assert commit_again(store, "c").labels == {"name": "c"}


def commit_again(store: LocalStore, name: str) -> Info:
    with store.writer(f"ref {name}") as writer:
        assert writer.status.offset == 1
        return writer.commit(1, DIGESTS[name], {"name": name})


def test_a_transaction_that_cannot_be_made_durable_is_the_failure_of_all(
    store: LocalStore, pool: ThreadPoolExecutor
) -> None:
    store.metadata.migrate(
        "checks",
        ("CREATE TABLE checks (name TEXT REFERENCES claims (name) DEFERRABLE INITIALLY DEFERRED)",),
    )

    def bad() -> None:
        with store.metadata.transaction() as connection:
            connection.execute("INSERT INTO checks VALUES ('nobody')")  # it is the COMMIT that looks

    futures = at_once(store, pool, lambda: commit(store, "b"), lambda: commit(store, "c", bad))
    assert all(isinstance(future.exception(), Internal) for future in futures)
    assert futures[0].exception() is not futures[1].exception()
    assert claims(store) == ["a"]
    assert [info.labels["name"] for info in store.walk()] == ["a"]
    for name in ("b", "c"):
        assert commit_again(store, name).labels == {"name": name}


def broken(call: Callable[..., Any], when: Callable[[str], bool], failure: BaseException) -> Callable[..., Any]:
    def wrapped(first: Any, *rest: Any, **named: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        if when(path):
            raise failure
        return call(first, *rest, **named)

    return wrapped


def data_of(store: LocalStore, name: str) -> str:
    return str(store._ingests.of(f"ref {name}").data)


def test_a_name_that_cannot_be_given_is_the_failure_of_one(
    store: LocalStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "rename", broken(os.rename, lambda path: path == data_of(store, "c"), full))
        b, c, d = at_once(store, pool, *(partial(commit, store, name) for name in NAMES[1:]))
    assert (b.result().labels, d.result().labels) == ({"name": "b"}, {"name": "d"})
    assert c.exception() is not None
    assert {info.labels["name"] for info in store.walk()} == {"a", "b", "d"}
    with store.metadata.reading() as connection:
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (3,)
    assert commit_again(store, "c").labels == {"name": "c"}


def test_names_that_cannot_be_made_durable_are_none(
    store: LocalStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [True]

    def others(path: str) -> bool:
        return path.endswith("/sha256") and not (first and first.pop())

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken(os.fsync, others, OSError(errno.EIO, "Input/output error")))
        futures = at_once(store, pool, lambda: commit(store, "b"), lambda: commit(store, "c"))
    assert all(isinstance(future.exception(), StorageError) for future in futures)
    causes = [future.exception().__cause__ for future in futures]  # type: ignore[union-attr]
    assert causes[0] is not causes[1], "threads that raise the same object add to each other's traceback"
    assert [info.labels["name"] for info in store.walk()] == ["a"]
    for name in ("b", "c"):
        assert os.stat(data_of(store, name)).st_mode & 0o200, "whoever is not root could not go on with it"
        assert commit_again(store, name).labels == {"name": name}


def test_an_interrupt_undoes_what_was_begun_for_all(
    store: LocalStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The second of the three has its name already.
        patch.setattr(os, "rename", broken(os.rename, lambda path: path == data_of(store, "c"), Killed()))
        futures = at_once(store, pool, *(partial(commit, store, name) for name in NAMES[1:]))
    raised = sorted(type(future.exception()).__name__ for future in futures)
    assert raised == sorted([Killed.__name__, Cancelled.__name__, Cancelled.__name__])
    assert [info.labels["name"] for info in store.walk()] == ["a"]
    with store.metadata.reading() as connection:
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (1,)
    for name in NAMES[1:]:
        assert commit_again(store, name).labels == {"name": name}


def test_an_interrupt_before_a_row_is_seen_leaves_the_row(
    store: LocalStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them cannot be written with the others, for the row that it has. Then somebody waits for the database."""
    commit(store, "c")
    store.update(DIGESTS["c"], {"of": "before"})
    assert store.evict(DIGESTS["c"], lambda: nullcontext(True))
    with store.metadata.transaction() as connection:
        connection.execute("DELETE FROM claims")

    def killed(works: Sequence[object]) -> list[Exception | None]:
        if len(works) > 1:
            raise Killed
        return transactions(works)  # type: ignore[arg-type]

    transactions = store.metadata.transactions
    with monkeypatch.context() as patch:
        patch.setattr(store.metadata, "transactions", killed)
        with pytest.raises((Killed, Cancelled)):
            several(store, pool, Joined)
    assert [dict(info.labels) for info in store.evicted()] == [{"name": "c", "of": "before"}]
    assert commit_again(store, "c").labels == {"name": "c", "of": "before"}


def test_an_interrupt_leaves_what_others_rely_on(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rights of the file they are told that the blob is there: then it is not undone any more."""
    seen: list[int] = []

    def interrupted(paths: Sequence[str], *rest: int) -> None:
        settle_files(paths, *rest)
        seen.extend(os.stat(path).st_mode & 0o222 for path in paths)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("blobtee.content.arrivals.settle_files", interrupted)
        with pytest.raises(Killed):
            commit(store, "a")
    assert seen == [0]
    assert store.info(DIGESTS["a"]).labels == {"name": "a"}
    assert claims(store) == ["a"]


def test_who_is_in_a_transaction_changes_no_blob(store: LocalStore, pool: ThreadPoolExecutor) -> None:
    """Whoever has the blob's lock waits for that transaction: waiting for the lock in turn would be for ever."""
    data = store.root / "data"
    data.write_bytes(b"a")
    commit(store, "b")
    waiting = store._blobs._arrivals._together
    with store.metadata.transaction():
        other = pool.submit(commit, store, "a")
        wait_until(lambda: waiting._working)
        for name, change in (
            ("a", lambda: store.take_in(data, DIGESTS["a"])),
            ("a", lambda: store.link(data, DIGESTS["a"])),
            ("a", lambda: store.delete(DIGESTS["a"])),
            ("b", lambda: store.update(DIGESTS["b"], {"name": "another"})),
            ("b", lambda: store.quarantine(DIGESTS["b"])),
            ("b", lambda: store.forget(DIGESTS["b"])),
        ):
            with pytest.raises(Internal, match=DIGESTS[name]):
                change()
        assert not other.done()
    assert other.result(10).labels == {"name": "a"}
    assert {info.labels["name"] for info in store.walk()} == {"a", "b"}
    assert data.read_bytes() == b"a"
    with pytest.raises(AlreadyExists):
        store.take_in(data, DIGESTS["a"])
