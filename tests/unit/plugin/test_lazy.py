"""Blobs that a server knows without having them, through its sockets."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.content.proxy import ProxyStore
from blobtee.errors import (
    AlreadyExists,
    BlobteeError,
    ConnectionFailed,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StorageError,
    Unimplemented,
)
from blobtee.oci import Compressed, Descriptor, Digest, Reference
from blobtee.plugin.client import Pulled, pull_lazily
from blobtee.plugin.known import KnownBlobs, Lazy
from blobtee.plugin.lazy import LazyBlobs
from blobtee.plugin.references import References
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.tenants import Tenant
from blobtee.registry import Registry
from blobtee.registry.settings import Settings
from blobtee.tee import leftovers
from blobtee.testing import Answer, MemoryRegistry, Request, image, layer
from blobtee.transfer.evicting import shrink
from tests.unit.cache.support import wait_for
from tests.unit.plugin.contentclient import serving

SOURCE = image([{"etc/name": b"base" * 50_000}, {"etc/name": b"top" * 3}])
QUICK = Settings(backoff=0.01, patience=0.1)
FIRST, SECOND = (layer.descriptor for layer in SOURCE.layers)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def server(store: LocalStore, tmp_path: Path) -> Iterator[Server]:
    listens = [Listen("one", tmp_path / "one.sock"), Listen("two", tmp_path / "two.sock")]
    with Registry(settings=QUICK) as client, Server(store, listens, registry=client) as server:
        yield server


@pytest.fixture
def one(server: Server, tmp_path: Path) -> Iterator[ProxyStore]:
    with ProxyStore(tmp_path / "one.sock") as one:
        yield one


@pytest.fixture
def two(server: Server, tmp_path: Path) -> Iterator[ProxyStore]:
    with ProxyStore(tmp_path / "two.sock") as two:
        yield two


@pytest.fixture
def known(server: Server, registry: MemoryRegistry, tmp_path: Path) -> Pulled:
    name = SOURCE.push(registry, "team/app", "v1")
    pulled = pull_lazily(tmp_path / "one.sock", name)
    registry.reset()
    return pulled


def read(store: ProxyStore, desc: Descriptor) -> bytes:
    with store.reader_at(desc) as reader:
        return reader.read_at(0, desc.size)


def moved(registry: MemoryRegistry) -> int:
    return registry.counters.sent["blob"]


def listed(store: ProxyStore) -> set[str]:
    return {info.digest for info in store.walk()}


def test_a_lazy_pull_moves_documents_and_makes_everything_known(
    known: Pulled, one: ProxyStore, registry: MemoryRegistry
) -> None:
    assert known.digest == SOURCE.descriptor.digest
    assert [(layer.digest, layer.size, layer.media_type) for layer in known.layers] == [
        (layer.digest, layer.size, layer.media_type) for layer in (FIRST, SECOND)
    ]
    assert listed(one) == set(), "nothing is listed that nobody has asked for"
    for desc in (SOURCE.descriptor, FIRST, SECOND):
        assert one.info(desc.digest).size == desc.size
    assert listed(one) == {SOURCE.descriptor.digest, FIRST.digest, SECOND.digest}
    assert moved(registry) == 0


def test_only_reading_starts_threads(known: Pulled, one: ProxyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a light handler started would stay on the processor that these share (`bt_huddle`)."""
    started: list[str] = []
    start = threading.Thread.start

    def start_and_tell(thread: threading.Thread) -> None:
        if threading.current_thread().name == "blobtee-rpc" and thread.name != "blobtee-rpc":
            started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_and_tell)
    data = b"anything"
    one.info(FIRST.digest)
    one.update(FIRST.digest, {"a": "b"})
    one.writer("given-up", total=len(data)).close()
    one.abort("given-up")
    with one.writer("new", total=len(data)) as writer:
        writer.write(data)
        one.status("new")
        digest = writer.commit(len(data)).digest
    with pytest.raises(AlreadyExists):
        one.writer("known", total=SECOND.size, expected=SECOND.digest)
    for each in (digest, FIRST.digest):
        one.delete(each)
    assert started == []
    read(one, SECOND)
    assert started


ALL = (SOURCE.descriptor.digest, *SOURCE.blobs)


def remove_from(tenant: ProxyStore) -> None:
    """As containerd does when an image is removed from it."""
    for digest in ALL:
        tenant.delete(digest)


def left(store: LocalStore) -> list[object]:
    rows = store.metadata.reading()
    with rows as connection:
        known = connection.execute("SELECT digest FROM lazy_blobs").fetchall()
    return [*(info.digest for info in store.walk()), *leftovers.leftovers(store.root), *known]


@pytest.mark.parametrize("parts", [False, True])
def test_who_removes_an_image_here_and_there_has_its_room_back(
    known: Pulled, one: ProxyStore, two: ProxyStore, store: LocalStore, server: Server, parts: bool
) -> None:
    for tenant in (one, two):
        for digest in ALL:
            tenant.info(digest)
    for desc in (FIRST, SECOND):
        read(one, desc)
    if parts:
        shrink(store, 0, clients=server._lazy)
        with server._lazy.reader_at(FIRST.digest) as reader:
            reader.read_at(0, 10)
        server._lazy.close()
    remove_from(one)
    server._sweeper.sweep()
    assert read(two, FIRST) == SOURCE.layers[0].data, "another has it"
    store.layout.remove(known.name)
    remove_from(two)
    deadline = time.monotonic() + 20
    while left(store) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left(store) == []
    assert list(CacheManager(store).records.all()) == []


def test_who_removes_the_name_last_has_the_room_back_by_collecting(
    known: Pulled, one: ProxyStore, store: LocalStore, server: Server
) -> None:
    for desc in (FIRST, SECOND):
        read(one, desc)
    for digest in ALL:
        one.info(digest)
    remove_from(one)
    server._sweeper.sweep()
    assert FIRST.digest in {info.digest for info in store.walk()}, "the store knows the image by name"
    store.layout.remove(known.name)
    collected = CacheManager(store).collect(grace=0)
    assert collected.blobs.keys() == set(ALL)


def test_bytes_come_when_they_are_read_once_for_all(
    known: Pulled, one: ProxyStore, two: ProxyStore, registry: MemoryRegistry, server: Server
) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: read((one, two)[number % 2], FIRST), range(8)))
    assert set(got) == {SOURCE.layers[0].data}
    assert moved(registry) == FIRST.size
    assert read(two, FIRST) == SOURCE.layers[0].data
    assert moved(registry) == FIRST.size
    text = server.metrics.text()
    assert f'blobtee_fetched_bytes_total{{source="{registry.host}"}} {FIRST.size}' in text
    assert 'blobtee_blobs_opened_total{tenant="two",result="hit"}' in text


def test_a_source_that_is_gone_is_a_failed_precondition_and_forgotten_when_it_is_back(
    known: Pulled, one: ProxyStore, registry: MemoryRegistry
) -> None:
    away = True

    def fault(request: Request) -> Answer | None:
        return Answer(status=404) if away and request.kind == "blob" else None

    registry.fault(fault)
    with pytest.raises(FailedPrecondition, match="not to be had now") as caught:
        read(one, FIRST)
    assert caught.value.code == "FAILED_PRECONDITION"
    assert one.info(FIRST.digest).size == FIRST.size
    away = False
    assert read(one, FIRST) == SOURCE.layers[0].data


def test_a_registry_that_is_down_is_a_failed_precondition(
    known: Pulled, one: ProxyStore, registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["blobtee.content.copy"], "RETRIES", 0)
    registry.stop()
    with pytest.raises(FailedPrecondition, match="not to be had now"):
        read(one, SECOND)


def test_wrong_bytes_are_never_served(known: Pulled, one: ProxyStore, registry: MemoryRegistry) -> None:
    wrong = b"x" * FIRST.size
    registry.remove_blob(FIRST.digest)
    registry.add_blob("team/app", wrong, FIRST.digest)
    with pytest.raises(BlobteeError, match=FIRST.digest.hex[:12]):
        read(one, FIRST)
    assert read(one, SECOND) == SOURCE.layers[1].data


def test_writers_of_known_blobs_are_told_so_before_they_send_anything(known: Pulled, one: ProxyStore) -> None:
    with pytest.raises(AlreadyExists):
        one.writer("ref", expected=FIRST.digest)
    assert one.statuses() == []
    one.writer("ref").close()


def test_a_writer_of_what_is_forgotten_at_that_moment_may_write(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep forgets a lazy blob that nobody holds, between two looks of a writer at it."""
    with Registry() as client:
        lazy = LazyBlobs(store, client)
        tenant = Tenant("one", store, References(store.metadata), lazy)
        desc = Descriptor("application/octet-stream", Digest.of(b"x"), 1)
        get = LazyBlobs.get
        for looks in range(6):
            lazy.know([desc], Reference.parse("r.example/app:1"))
            left = looks

            def forgotten(self: LazyBlobs, digest: Digest) -> Lazy:
                nonlocal left
                if left == 0:
                    lazy.forget([])
                left -= 1
                return get(self, digest)

            exists = False
            with monkeypatch.context() as patch:
                patch.setattr(LazyBlobs, "get", forgotten)
                try:
                    with tenant.writer("ref", total=1, expected=desc.digest) as writer:
                        writer.write(b"x")
                except AlreadyExists:
                    exists = True
            assert [info.digest for info in tenant.walk()] == [desc.digest] * exists
            tenant.abort("ref")
            if exists:
                tenant.delete(desc.digest)


def test_a_writer_that_cannot_be_had_leaves_no_lock(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry() as client:
        tenant = Tenant("one", store, References(store.metadata), LazyBlobs(store, client))

        def fail(self: LazyBlobs) -> bool:
            raise StorageError("the disk fails")

        with monkeypatch.context() as patch:
            patch.setattr(LazyBlobs, "any", fail)
            with pytest.raises(StorageError) as raised:
                tenant.writer("ref", expected=Digest.of(b"x"))
        assert raised.value is not None  # and with it all that its frames hold
        tenant.writer("ref").close()


def test_whether_any_blob_is_known_is_known_at_once_in_the_process_that_makes_it_known(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blobtee.plugin.known._NONE_SECONDS", 0.05)
    ours, theirs = KnownBlobs(store), KnownBlobs(store)
    assert not ours.any()
    assert not theirs.any()
    ours.know([FIRST], Reference.parse("example.com/image:tag"))
    assert ours.any()
    wait_for(theirs.any)
    ours.forget(())
    wait_for(lambda: not ours.any() and not theirs.any())


def test_bytes_that_somebody_sends_all_the_same_are_kept(
    known: Pulled, one: ProxyStore, registry: MemoryRegistry
) -> None:
    assert one.info(SECOND.digest).size == SECOND.size
    with one.writer("ref") as writer:
        writer.write(SOURCE.layers[1].data)
        assert writer.commit(SECOND.size, SECOND.digest, {"a": "b"}).labels == {"a": "b"}
    assert read(one, SECOND) == SOURCE.layers[1].data
    assert moved(registry) == 0


def test_deleting_lets_go_of_what_came_and_it_can_come_again(
    known: Pulled, one: ProxyStore, store: LocalStore, registry: MemoryRegistry
) -> None:
    one.update(FIRST.digest, {"label": "of before"})
    assert read(one, FIRST)
    one.delete(FIRST.digest)
    assert listed(one) == set()
    again = one.info(FIRST.digest)
    assert (again.size, dict(again.labels)) == (FIRST.size, {})
    assert read(one, FIRST) == SOURCE.layers[0].data


def test_what_is_known_outlives_a_restart_and_its_image_for_who_holds_it(
    store: LocalStore, registry: MemoryRegistry, tmp_path: Path
) -> None:
    name = SOURCE.push(registry, "team/app", "v1")
    path = tmp_path / "one.sock"
    with Registry() as client:
        with Server(store, [Listen("one", path)], registry=client), ProxyStore(path) as one:
            pull_lazily(path, name)
            one.info(FIRST.digest)
        store.layout.remove(name)
        CacheManager(store).collect(grace=0)
        with Server(store, [Listen("one", path)], registry=client) as server, ProxyStore(path) as one:
            server._lazy.forget(set())
            assert read(one, FIRST) == SOURCE.layers[0].data
            with pytest.raises(NotFound):
                one.info(SECOND.digest)


def test_a_reader_that_gives_up_ends_the_fetch_when_nobody_else_waits(
    known: Pulled, one: ProxyStore, registry: MemoryRegistry
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def fault(request: Request) -> Answer | None:
        if request.kind == "blob" and not go_on.is_set():
            asked.set()
            go_on.wait(20)
        return None

    registry.fault(fault)
    reader = ThreadPoolExecutor(1)
    failed = reader.submit(read, one, FIRST)
    try:
        assert asked.wait(20)
        one.close()
        with pytest.raises(BlobteeError):
            failed.result(20)
    finally:
        go_on.set()
        reader.shutdown()


@pytest.mark.parametrize("name", ["", "oci-archive:x.tar", "not a name", "a.example/B"])
def test_names_that_no_registry_has_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument):
        pull_lazily(tmp_path / "one.sock", name)


def test_an_image_that_is_not_there_is_not_found(server: Server, registry: MemoryRegistry, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        pull_lazily(tmp_path / "one.sock", f"{registry.host}/no/such:1")


def test_a_socket_of_nobody_or_of_somebody_else(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="absent"):
        pull_lazily(tmp_path / "absent.sock", "a.example/b")
    with serving(store, tmp_path / "other.sock"), pytest.raises(Unimplemented):
        pull_lazily(tmp_path / "other.sock", "a.example/b")


def test_sources_are_remembered_newest_first_and_damage_is_told(store: LocalStore) -> None:
    with Registry() as client:
        lazy = LazyBlobs(store, client)
        desc = Descriptor("application/octet-stream", Digest.of(b"x"), 1)
        for number in range(12):
            lazy.know([desc], Reference.parse(f"r.example/app:{number}"))
        lazy.know([desc], Reference.parse("r.example/app:9"))
        tags = [source.tag for source in lazy.get(desc.digest).sources]
        assert tags == ["9", "11", "10", "8", "7", "6", "5", "4"]
        sources = [f"sources = {text}" for text in ("'[[]'", "'[]'", "'{}'", "'[1]'", "'[[]]'", "x'ff'")]
        for damage in (*sources, "size = -1", "size = 'many'", "media_type = x'ff'"):
            lazy.know([desc], Reference.parse("r.example/app:9"))
            with store.metadata.transaction() as connection:
                connection.execute(f"UPDATE lazy_blobs SET {damage}")
            with pytest.raises(DataLoss, match="cannot be read"):
                lazy.get(desc.digest)
            with pytest.raises(DataLoss, match="cannot be read"):
                lazy.reader_at(desc.digest)
            assert lazy.sources(desc) == ()
        lazy.know([desc], Reference.parse("r.example/app:1"))
        assert [source.tag for source in lazy.get(desc.digest).sources] == ["1"]


@pytest.fixture
def proven(
    server: Server, one: ProxyStore, registry: MemoryRegistry, store: LocalStore, tmp_path: Path
) -> tuple[Descriptor, bytes]:
    """A large blob that was here once: what proves its chunks is kept."""
    big = image([layer({"data": random.Random(1).randbytes(20_000_000)}, compression=Compressed.NONE)])
    (desc,) = (each.descriptor for each in big.layers)
    pull_lazily(tmp_path / "one.sock", big.push(registry, "team/big", "v1"))
    assert read(one, desc) == big.layers[0].data
    store.delete(desc.digest)
    registry.reset()
    return desc, big.layers[0].data


def test_a_blob_that_was_here_once_is_read_by_parts_and_each_is_proven(
    store: LocalStore, registry: MemoryRegistry, proven: tuple[Descriptor, bytes]
) -> None:
    desc, data = proven
    with Registry(settings=QUICK) as client, LazyBlobs(store, client).reader_at(desc.digest) as reader:
        assert reader.read_at(1_000_000, 32 << 10) == data[1_000_000:][: 32 << 10]
    assert 0 < moved(registry) <= 128 << 10


def test_who_reads_a_few_parts_through_a_socket_has_the_server_fetch_few(
    one: ProxyStore, registry: MemoryRegistry, proven: tuple[Descriptor, bytes]
) -> None:
    """The call by which a reader outlives a delete fetches what flow control lets through, and no more."""
    desc, data = proven
    with one.reader_at(desc) as reader:
        for place in (11_000_000, 3_000_000, 17_000_000):
            assert reader.read_at(place, 100) == data[place : place + 100]
        assert moved(registry) <= 5 << 16
        # However much of another blob goes over the same socket meanwhile.
        with one.writer("another") as writer:
            writer.write(data[1:])
            info = writer.commit()
        assert read(one, Descriptor("", info.digest, info.size)) == data[1:]
        assert reader.read_at(3_000_000, 1000) == data[3_000_000:3_001_000]
        assert moved(registry) <= 5 << 16


def test_who_gives_up_a_part_ends_its_fetch_and_the_next_one_begins_another(
    server: Server, one: ProxyStore, two: ProxyStore, registry: MemoryRegistry, proven: tuple[Descriptor, bytes]
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(request: Request) -> Answer | None:
        if request.kind == "blob" and not go_on.is_set():
            asked.set()
            go_on.wait(20)
        return None

    registry.fault(hang)
    with ThreadPoolExecutor(1) as reader:
        failed = reader.submit(read, one, proven[0])
        try:
            assert asked.wait(20)
            one.close()
            assert server._serving is not None
            assert server._serving._server.wait_idle(10)
            with pytest.raises(BlobteeError):
                failed.result(20)
        finally:
            go_on.set()
    assert read(two, proven[0]) == proven[1]


def test_all_of_a_blob_that_is_read_by_parts_comes_once(
    one: ProxyStore, registry: MemoryRegistry, proven: tuple[Descriptor, bytes]
) -> None:
    desc, data = proven
    assert read(one, desc) == data
    assert moved(registry) == len(data)
