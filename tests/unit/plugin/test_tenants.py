"""What tenants see of each other, and what stays on disk for whom."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blobtee.cache import CacheManager
from blobtee.content import Database, LocalStore
from blobtee.errors import AlreadyExists, DataLoss, DigestMismatch, InvalidArgument, NotFound, StorageFull
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant

DATA = b"a blob of somebody"
DIGEST = Digest.of(DATA)


@pytest.fixture
def references(store: LocalStore) -> References:
    return References(store.metadata)


@pytest.fixture
def one(store: LocalStore, references: References) -> Tenant:
    return Tenant("one", store, references)


@pytest.fixture
def two(store: LocalStore, references: References) -> Tenant:
    return Tenant("two", store, references)


@pytest.fixture
def sweeper(store: LocalStore, references: References) -> Sweeper:
    return Sweeper(store, references)


def put(store: Tenant | LocalStore, data: bytes = DATA, **labels: str) -> Digest:
    with store.writer("ref of " + Digest.of(data)) as writer:
        writer.write(data)
        return writer.commit(len(data), Digest.of(data), labels).digest


def digests(tenant: Tenant) -> list[str]:
    return [info.digest for info in tenant.walk()]


def on_disk(store: LocalStore) -> list[str]:
    return [info.digest for info in store.walk()]


@pytest.mark.parametrize("name", ["", "a/b", ".", "-x", "x" * 64, "ü"])
def test_names_of_tenants(name: str, store: LocalStore, references: References) -> None:
    with pytest.raises(InvalidArgument):
        Tenant(name, store, references)


def test_a_tenant_lists_its_own_alone(one: Tenant, two: Tenant) -> None:
    put(one)
    other = put(two, b"other")
    assert digests(one) == [DIGEST]
    assert digests(two) == [other]


def test_what_others_hold_is_there_for_who_asks_and_moves_nothing(one: Tenant, two: Tenant) -> None:
    put(one, label="of one")
    assert two.info(DIGEST).size == len(DATA)
    assert two.info(DIGEST).labels == {}
    assert digests(two) == [DIGEST]
    with pytest.raises(AlreadyExists):
        two.writer("ref", expected=DIGEST)


def test_a_reader_of_what_others_hold_holds_it_too(one: Tenant, two: Tenant) -> None:
    put(one)
    with two.reader_at(Descriptor("", DIGEST, -1)) as reader:
        assert reader.read_at(0, 100) == DATA
    assert digests(two) == [DIGEST]


def test_what_goes_and_comes_again_while_it_is_asked_for_is_there(
    store: LocalStore,
    one: Tenant,
    two: Tenant,
    references: References,
    sweeper: Sweeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(one)
    asked, size = itertools.count(), two._size

    def gone_for_a_moment(digest: Digest) -> int:
        if next(asked) != 1:
            return size(digest)
        references.let_go(two.name, digest)
        one.delete(digest)
        assert sweeper.sweep() == 1
        references.hold(two.name, digest)
        try:
            return size(digest)
        finally:
            put(one)

    monkeypatch.setattr(two, "_size", gone_for_a_moment)
    assert two.info(DIGEST).size == len(DATA)
    assert digests(two) == [DIGEST]


def test_what_one_removes_the_other_keeps(store: LocalStore, one: Tenant, two: Tenant, sweeper: Sweeper) -> None:
    put(one)
    two.info(DIGEST)
    one.delete(DIGEST)
    assert sweeper.sweep() == 0
    with two.reader_at(Descriptor("", DIGEST, -1)) as reader:
        assert reader.read_at(0, 100) == DATA
    two.delete(DIGEST)
    assert sweeper.sweep() == 1
    assert on_disk(store) == []


def test_what_nobody_holds_is_seen_by_nobody_before_it_is_swept(one: Tenant, two: Tenant, sweeper: Sweeper) -> None:
    put(one)
    one.delete(DIGEST)
    for tenant in (one, two):
        with pytest.raises(NotFound):
            tenant.info(DIGEST)
        with pytest.raises(NotFound):
            tenant.reader_at(Descriptor("", DIGEST, -1))
    with pytest.raises(NotFound):
        one.delete(DIGEST)
    assert sweeper.sweep() == 1


def test_what_is_written_again_before_the_sweep_stays(one: Tenant, two: Tenant, sweeper: Sweeper) -> None:
    put(one, label="old")
    one.delete(DIGEST)
    put(two, label="new")
    assert sweeper.sweep() == 0
    assert two.info(DIGEST).labels == {"label": "new"}


def test_a_blob_that_the_stores_own_image_needs_stays(store: LocalStore, one: Tenant, sweeper: Sweeper) -> None:
    manifest = b'{"schemaVersion": 2, "config": {"mediaType": "x", "digest": "%s", "size": 18}, "layers": []}'
    document = manifest % DIGEST.encode()
    put(store)
    put(store, document)
    media_type = "application/vnd.oci.image.manifest.v1+json"
    store.layout.set("image", Descriptor(media_type, Digest.of(document), len(document)))
    one.info(DIGEST)
    one.delete(DIGEST)
    assert sweeper.sweep() == 0
    assert one.info(DIGEST).size == len(DATA)
    store.layout.remove("image")
    one.delete(DIGEST)
    assert sweeper.sweep() == 1


def test_what_a_lease_leads_to_stays(store: LocalStore, one: Tenant, sweeper: Sweeper) -> None:
    put(one)
    parent = put(store, b"parent", **{"containerd.io/gc.ref.content.0": DIGEST})
    leases = CacheManager(store).leases
    leases.create("of a user")
    leases.add("of a user", [parent])
    one.delete(DIGEST)
    assert sweeper.sweep() == 0
    assert set(on_disk(store)) == {DIGEST, parent}


def test_a_lease_that_comes_during_a_sweep_is_followed(
    store: LocalStore, one: Tenant, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(one)
    parent = put(store, b"parent", **{"containerd.io/gc.ref.content.0": DIGEST})
    leases = CacheManager(store).leases
    one.delete(DIGEST)
    look = store.layout.all

    def while_somebody_leases() -> list[Descriptor]:
        if not leases.resources("of a user"):
            leases.create("of a user")
            leases.add("of a user", [parent])
        return look()

    monkeypatch.setattr(store.layout, "all", while_somebody_leases)
    assert [sweeper.sweep(), sweeper.sweep()] == [0, 0]
    assert DIGEST in on_disk(store)


def test_what_gc_took_and_another_program_brought_again_stays(
    store: LocalStore, one: Tenant, two: Tenant, sweeper: Sweeper
) -> None:
    put(one)
    one.delete(DIGEST)
    assert CacheManager(store).collect(grace=0).blobs == {DIGEST: len(DATA)}
    put(store)
    assert sweeper.sweep() == 0
    assert two.info(DIGEST).size == len(DATA)


def test_an_orphan_of_an_older_version_is_left_to_gc(store: LocalStore, one: Tenant, sweeper: Sweeper) -> None:
    put(one)
    one.delete(DIGEST)
    with store.metadata.transaction() as connection:
        connection.execute("UPDATE tenant_orphans SET since = 0")
    assert sweeper.sweep() == 0
    assert CacheManager(store).collect(grace=0).blobs == {DIGEST: len(DATA)}


def test_gc_leaves_what_a_tenant_holds(store: LocalStore, one: Tenant) -> None:
    put(one)
    put(store, b"of nobody")
    assert CacheManager(store).collect(grace=0).blobs == {Digest.of(b"of nobody"): 9}
    assert digests(one) == [DIGEST]


def test_a_commit_that_fails_leaves_no_reference(one: Tenant, references: References) -> None:
    with one.writer("ref") as writer:
        writer.write(b"wrong")
        with pytest.raises(DigestMismatch):
            writer.commit(0, DIGEST)
    assert list(references.pages("one")) == []
    assert references.orphans() == {}


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows changed by each transaction, of those that change any: each of these is a sync of the disk."""
    recorded: list[int] = []
    begin = Database.transaction

    @contextmanager
    def transaction(database: Database) -> Iterator[sqlite3.Connection]:
        with begin(database) as connection:
            before = connection.total_changes
            outermost, depth[0] = depth[0] == 0, depth[0] + 1
            try:
                yield connection
            finally:
                depth[0] -= 1
            if outermost and connection.total_changes > before:
                recorded.append(connection.total_changes - before)

    depth = [0]
    monkeypatch.setattr(Database, "transaction", transaction)
    return recorded


def test_a_commit_is_one_transaction(one: Tenant, two: Tenant, changes: list[int]) -> None:
    put(one, label="of one")
    assert changes == [3]  # the blob, the reference, what the tenant's lease holds
    changes.clear()
    put(two, label="of two")
    assert changes == [2]
    assert (one.info(DIGEST).labels, two.info(DIGEST).labels) == ({"label": "of one"}, {"label": "of two"})
    changes.clear()
    with pytest.raises(AlreadyExists):
        put(one, label="anew")
    assert changes == []
    assert one.info(DIGEST).labels == {"label": "of one"}


def test_commits_of_several_tenants_at_once_are_as_each_alone(
    store: LocalStore, one: Tenant, two: Tenant, sweeper: Sweeper
) -> None:
    written = [f"blob {number}".encode() for number in range(40)]
    held_by_one, held_by_two, deleted = written[:3]
    sides = {data: (one, two)[number % 2] for number, data in enumerate(written)}
    # What one of them has to do with a blob already changes nothing for the others that come with it.
    one.hold(Digest.of(held_by_one), {"name": "before"})
    two.hold(Digest.of(held_by_two), {"name": "before"})
    put(one, deleted)
    one.delete(Digest.of(deleted))
    store.delete(Digest.of(deleted))
    start = threading.Barrier(len(written))

    def work(data: bytes) -> None:
        with sides[data].writer("ref of " + Digest.of(data)) as writer:
            writer.write(data)
            start.wait(10)
            info = writer.commit(len(data), Digest.of(data), {"name": data.decode()})
        assert info.labels == {"name": data.decode()}

    with ThreadPoolExecutor(len(written)) as pool:
        for done in [pool.submit(work, data) for data in written]:
            done.result(20)
    sweeper.sweep()
    for data in written:
        digest = Digest.of(data)
        assert sides[data].info(digest).labels == {"name": data.decode()}
        assert store.info(digest).size == len(data)
    assert {*digests(one), *digests(two)} == {Digest.of(data) for data in written}
    assert not {*digests(one)} & {*digests(two)}


def test_a_commit_that_the_disk_refuses_leaves_no_reference(
    one: Tenant, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, one.writer("ref") as writer:
        writer.write(DATA)
        patch.setattr(os, "rename", full)
        with pytest.raises(StorageFull):
            writer.commit()
    assert list(references.pages("one")) == []
    with one.writer("ref") as writer:
        assert writer.status.offset == len(DATA)
        writer.commit()
    assert digests(one) == [DIGEST]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_ingests_are_apart(one: Tenant, two: Tenant) -> None:
    with one.writer("same") as first, two.writer("same") as second:
        first.write(b"1")
        second.write(b"22")
        assert (one.status("same").offset, two.status("same").offset) == (1, 2)
        assert [status.ref for status in one.statuses("ref==same")] == ["same"]
    two.abort("same")
    assert one.status("same").ref == "same"
    assert two.statuses() == []


def test_a_reference_whose_blob_never_came_is_not_there(one: Tenant, references: References) -> None:
    """As SIGKILL leaves it between the two steps of a commit."""
    references.hold("one", DIGEST)
    assert digests(one) == []
    with pytest.raises(NotFound):
        one.info(DIGEST)
    put(one)
    assert digests(one) == [DIGEST]


def test_everything_is_there_after_a_restart(store: LocalStore, one: Tenant, tmp_path: Path) -> None:
    put(one, label="v")
    one.writer("half").write(b"half")
    store.close()
    with LocalStore(tmp_path / "root") as again:
        tenant = Tenant("one", again, References(again.metadata))
        assert [info.labels for info in tenant.walk()] == [{"label": "v"}]
        assert tenant.status("half").offset == 4


def test_a_walk_pages_and_may_delete(one: Tenant) -> None:
    for number in range(1203):
        put(one, b"%d" % number)
    for info in one.walk():
        one.delete(info.digest)
    assert digests(one) == []


def test_a_damaged_blob_is_not_listed(store: LocalStore, one: Tenant) -> None:
    damaged, kept = put(one), put(one, b"kept")
    path = store.root / "blobs" / "sha256" / damaged.hex
    path.chmod(0o644)
    path.write_bytes(b"shorter")
    assert [(info.digest, info.size) for info in one.walk()] == [(kept, 4)]
    assert store.sizes([damaged, kept, Digest.of(b"never there")]) == {kept: 4}


def test_the_sweeper_wakes_by_itself(store: LocalStore, references: References) -> None:
    sweeper = Sweeper(store, references)
    tenant = Tenant("one", store, references, on_delete=sweeper.wake)
    put(tenant)
    sweeper.start()
    try:
        tenant.delete(DIGEST)
        for _ in range(1000):
            if not on_disk(store):
                break
            threading.Event().wait(0.01)
        assert on_disk(store) == []
    finally:
        sweeper.stop()


def test_what_is_in_hands_is_looked_for_again_after_ever_longer(
    store: LocalStore, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = Sweeper(store, references)
    tenant = Tenant("one", store, references, on_delete=sweeper.wake)
    put(tenant)
    waits: list[float | None] = []
    looks = 0
    discard = store.discard

    def in_hands(digest: str) -> bool:
        nonlocal looks
        looks += 1
        return looks > 9 and discard(digest)

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(0 if timeout is not None else None)

    monkeypatch.setattr(store, "discard", in_hands)
    sweeper._wanted = Clock()
    tenant.delete(DIGEST)
    sweeper.start()
    try:
        for _ in range(1000):
            if not on_disk(store) and waits[-1] is None:
                break
            threading.Event().wait(0.01)
        assert on_disk(store) == []
        assert waits == [None, 1, 2, 4, 8, 16, 32, 60, 60, 60, None]
    finally:
        sweeper.stop()


def test_deleting_writing_and_sweeping_at_once_loses_nothing_that_is_held(
    store: LocalStore, one: Tenant, two: Tenant, sweeper: Sweeper
) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(tenant: Tenant) -> None:
        try:
            for number in range(60):
                data = b"%d" % (number % 3)
                try:
                    with tenant.writer(f"{number}") as writer:
                        writer.write(data)
                        writer.commit(len(data))
                except AlreadyExists:
                    pass
                # From a commit or `AlreadyExists` on until its own delete, the tenant can read it.
                with tenant.reader_at(Descriptor("", Digest.of(data), -1)) as reader:
                    assert reader.read_at(0, 9) == data
                tenant.delete(Digest.of(data))
        except BaseException as error:
            failures.append(error)

    def sweep() -> None:
        while not stop.is_set():
            sweeper.sweep()

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    threads = [threading.Thread(target=work, args=(tenant,)) for tenant in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    sweeping.join()
    assert failures == []
    sweeper.sweep()
    assert on_disk(store) == []


@pytest.mark.parametrize("labels", ["{", "null", "[]", '{"a": 1}'])
def test_a_reference_that_cannot_be_read_hides_no_other(
    labels: str, one: Tenant, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [put(one, data) for data in (b"1", b"2", b"3")]
    broken = put(one)
    with store.metadata.transaction() as connection:
        connection.execute("UPDATE tenant_blobs SET labels = ? WHERE digest = ?", (labels, broken))
    assert digests(one) == sorted(kept)
    assert broken in caplog.text
    with pytest.raises(DataLoss):
        one.info(broken)
    one.delete(broken)
    put(one)
    assert digests(one) == sorted([*kept, broken])


def test_a_reference_to_no_digest_hides_no_other(one: Tenant, store: LocalStore) -> None:
    digest, other = put(one), put(one, b"2")
    with store.metadata.transaction() as connection:
        connection.execute("UPDATE tenant_blobs SET digest = 'nonsense' WHERE digest = ?", (other,))
    assert digests(one) == [digest]


def test_one_file_that_cannot_be_removed_keeps_no_other(
    store: LocalStore, one: Tenant, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, free = put(one), put(one, b"goes")
    one.delete(stuck)
    one.delete(free)
    unlink = os.unlink

    def refuse(path: str | Path, **given: Any) -> None:
        if str(path).endswith(stuck.hex):
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, **given)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert sweeper.sweep() == 1
    assert on_disk(store) == [stuck]
    assert sweeper.sweep() == 1
    assert on_disk(store) == []
