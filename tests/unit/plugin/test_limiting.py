"""A server that keeps its store small: blobs that it knows where to have are lazy again, and nobody notices."""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blobtee.content import LocalStore
from blobtee.content.files import digest_names
from blobtee.content.proxy import ProxyStore
from blobtee.errors import InvalidArgument
from blobtee.oci import Compressed, Descriptor, Digest, Reference
from blobtee.plugin import limiting
from blobtee.plugin import server as server_module
from blobtee.plugin.client import pull_lazily
from blobtee.plugin.limiting import Limiter
from blobtee.plugin.server import Listen, Server
from blobtee.registry import Registry
from blobtee.registry.settings import Settings
from blobtee.tee.map import CHUNK
from blobtee.testing import Answer, MemoryRegistry, Request, image, layer
from blobtee.transfer.evictable import Held
from blobtee.transfer.evicting import shrink, usage
from blobtee.transfer.obtaining import HASTY, LONGEST_PAUSE_SECONDS, Obtaining
from tests.unit.plugin.contentclient import Client

QUICK = Settings(backoff=0.01, patience=0.1)


def noise(nbytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(nbytes)


SOURCE = image([layer({"file": noise(nbytes * CHUNK, nbytes)}, compression=Compressed.NONE) for nbytes in (40, 20)])
FIRST, SECOND = (layer.descriptor for layer in SOURCE.layers)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def name(registry: MemoryRegistry) -> str:
    return SOURCE.push(registry, "team/app", "v1")


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
def obtaining(server: Server) -> Iterator[Obtaining]:
    with server._registry.with_settings(HASTY) as asking:
        yield Obtaining(asking, told=server.metrics.count_asked)


@pytest.fixture
def limiter(server: Server, store: LocalStore, obtaining: Obtaining) -> Callable[[int], Limiter]:
    """Looks when it is told to."""

    def make(limit: int) -> Limiter:
        return Limiter(store, limit, server._lazy, server.metrics, obtaining, spare=0)

    return make


def read(store: ProxyStore, desc: Descriptor) -> bytes:
    with store.reader_at(desc) as reader:
        return reader.read_at(0, desc.size)


def moved(registry: MemoryRegistry) -> int:
    return registry.counters.sent["blob"]


def used(store: LocalStore, desc: Descriptor, ago: float) -> None:
    path = store.root / "blobs" / desc.digest.algorithm / desc.digest.hex
    os.utime(path, ns=(time.time_ns() - int(ago * 1e9), path.stat().st_mtime_ns))


def present(store: LocalStore) -> set[Digest]:
    return {info.digest for info in store.walk()}


def test_blobs_go_the_longest_unused_first_and_are_found_present(
    name: str, one: ProxyStore, store: LocalStore, server: Server, registry: MemoryRegistry, tmp_path: Path,
    limiter: Callable[[int], Limiter],
) -> None:  # fmt: skip
    pull_lazily(tmp_path / "one.sock", name)
    for desc, data in zip((FIRST, SECOND), SOURCE.layers, strict=True):
        assert read(one, desc) == data.data
    one.update(FIRST.digest, {"of": "the tenant"})
    used(store, FIRST, 100)
    limit = usage(store)
    assert limiter(limit).look() is None
    shrunk = limiter(limit - 1).look()
    assert shrunk is not None
    assert (set(shrunk.blobs), shrunk.reached) == ({FIRST.digest}, True)
    info = one.info(FIRST.digest)
    assert (info.size, dict(info.labels)) == (FIRST.size, {"of": "the tenant"})
    assert FIRST.digest in {each.digest for each in one.walk()}
    assert FIRST.digest not in present(store)
    registry.reset()
    assert read(one, FIRST) == SOURCE.layers[0].data
    assert moved(registry) <= FIRST.size
    text = server.metrics.text()
    assert "blobtee_evictions_total 1" in text
    assert f"blobtee_evicted_bytes_total {FIRST.size}" in text


def test_what_clients_sent_or_hold_without_a_source_stays(
    name: str, one: ProxyStore, store: LocalStore, server: Server, tmp_path: Path, limiter: Callable[[int], Limiter]
) -> None:
    sent = noise(5 * CHUNK, 9)
    with one.writer("ref") as writer:
        writer.write(sent)
        writer.commit(len(sent), Digest.of(sent))
    pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    shrunk = limiter(0).look()
    assert shrunk is not None
    assert set(shrunk.blobs) == {FIRST.digest}
    assert shrunk.held[Held.LOCAL].nbytes == len(sent)
    assert one.reader_at(Descriptor("", Digest.of(sent), len(sent))).read_at(0, 10) == sent[:10]


def test_a_source_that_cannot_be_read_or_says_another_size_counts_as_none(
    name: str, one: ProxyStore, store: LocalStore, tmp_path: Path, limiter: Callable[[int], Limiter]
) -> None:
    pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    read(one, SECOND)
    with store.metadata.transaction() as connection:
        connection.execute("UPDATE lazy_blobs SET sources = '[[]' WHERE digest = ?", (FIRST.digest,))
        connection.execute("UPDATE lazy_blobs SET size = size + 1 WHERE digest = ?", (SECOND.digest,))
    shrunk = limiter(0).look()
    assert shrunk is not None
    assert (shrunk.blobs, shrunk.held[Held.LOCAL].blobs) == ({}, 2)


def test_who_knows_no_tenants_leaves_what_they_hold(
    name: str, one: ProxyStore, store: LocalStore, server: Server, tmp_path: Path
) -> None:
    pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    assert shrink(store, 0).blobs == {}
    assert set(shrink(store, 0, clients=server._lazy).blobs) == {FIRST.digest}


def test_what_is_known_alone_of_an_image_without_a_name_goes_too_and_comes_for_its_holder(
    name: str, one: ProxyStore, store: LocalStore, server: Server, tmp_path: Path, limiter: Callable[[int], Limiter]
) -> None:
    pulled = pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    store.layout.remove(pulled.name)
    shrunk = limiter(0).look()
    assert shrunk is not None
    assert FIRST.digest in shrunk.blobs
    server._sweeper.sweep()
    assert read(one, FIRST) == SOURCE.layers[0].data


def test_a_rest_that_may_not_go_is_said_once(
    one: ProxyStore, store: LocalStore, limiter: Callable[[int], Limiter], caplog: pytest.LogCaptureFixture
) -> None:
    sent = noise(CHUNK, 3)
    with one.writer("ref") as writer:
        writer.write(sent)
        writer.commit(len(sent), Digest.of(sent))
    looking = limiter(100)
    with caplog.at_level(logging.WARNING, "blobtee.plugin.limiting"):
        for _ in range(3):
            looking.look()
    (record,) = [record for record in caplog.records if record.name == "blobtee.plugin.limiting"]
    assert f"blobs that are only here: 1 ({len(sent)} bytes)" in record.getMessage()
    one.delete(Digest.of(sent))
    store.delete(Digest.of(sent))
    looking.look()
    with one.writer("ref") as writer:
        writer.write(sent)
        writer.commit(len(sent), Digest.of(sent))
    caplog.clear()
    looking.look()
    assert "may take 100" in caplog.text


def test_what_was_used_a_moment_ago_is_left_and_not_complained_of(
    name: str, one: ProxyStore, store: LocalStore, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    obtaining: Obtaining,
) -> None:  # fmt: skip
    pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    limit = usage(store) - FIRST.size
    looking = Limiter(store, limit, server._lazy, server.metrics, obtaining)
    for number in range(11):
        shrunk = looking.look()
        assert shrunk is not None
        assert (shrunk.blobs, shrunk.held[Held.RECENT].blobs) == ({}, 1)
        assert bool(caplog.records) is (number >= 9), "it may go later, for a while"
    used(store, FIRST, limiting.SPARE_SECONDS + 1)
    with caplog.at_level(logging.INFO, "blobtee.plugin.limiting"):
        shrunk = looking.look()
    assert caplog.messages[-1].startswith(f"1 blob made lazy again, {FIRST.size} bytes; the store takes ")
    assert shrunk is not None
    assert set(shrunk.blobs) == {FIRST.digest}


def lines(server: Server, name: str) -> list[str]:
    return [line for line in server.metrics.text().splitlines() if line.startswith(name)]


def test_what_its_registry_has_no_more_stays_and_can_be_read(
    name: str, one: ProxyStore, store: LocalStore, server: Server, registry: MemoryRegistry, tmp_path: Path,
    limiter: Callable[[int], Limiter],
) -> None:  # fmt: skip
    pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    read(one, SECOND)
    registry.remove_blob(FIRST.digest)
    looking = limiter(0)
    for _ in range(3):
        shrunk = looking.look()
        assert shrunk is not None
        assert shrunk.held[Held.UNOBTAINABLE].nbytes == FIRST.size
    assert FIRST.digest in present(store)
    assert SECOND.digest not in present(store)
    assert read(one, FIRST) == SOURCE.layers[0].data
    assert lines(server, "blobtee_eviction_checks_total") == [
        f'blobtee_eviction_checks_total{{registry="{registry.host}",answer="missing"}} 1',
        f'blobtee_eviction_checks_total{{registry="{registry.host}",answer="present"}} 1',
    ]
    assert f'blobtee_store_held_bytes{{reason="unobtainable"}} {FIRST.size}' in server.metrics.text()


def test_a_registry_that_is_down_keeps_its_blobs_is_told_of_once_and_asked_again_later(
    name: str, one: ProxyStore, store: LocalStore, server: Server, registry: MemoryRegistry, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pull_lazily(tmp_path / "one.sock", name)
    read(one, FIRST)
    read(one, SECOND)
    now = time.monotonic()
    with server._registry.with_settings(HASTY) as asking, caplog.at_level(logging.INFO, "blobtee.plugin.limiting"):
        obtaining = Obtaining(asking, told=server.metrics.count_asked, clock=lambda: now)
        looking = Limiter(store, 1, server._lazy, server.metrics, obtaining, spare=0)
        registry.stop()
        for _ in range(20):
            looking.look()
            now += 60
        assert {FIRST.digest, SECOND.digest} <= present(store)
        assert len([each for each in caplog.messages if "does not tell" in each]) == 1
        assert len([each for each in caplog.messages if "no registry was found to have" in each]) == 1
        (line,) = lines(server, "blobtee_eviction_checks_total")
        assert 3 <= int(line.rpartition(" ")[2]) <= 6
        registry.start()
        now += LONGEST_PAUSE_SECONDS
        looking.look()
        assert not {FIRST.digest, SECOND.digest} & present(store)
        assert len([each for each in caplog.messages if "tells again" in each]) == 1


def test_a_registry_that_hangs_holds_up_neither_rpcs_nor_the_end_of_the_server(
    name: str, store: LocalStore, registry: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.sock"
    asked = threading.Event()

    def hang(request: Request) -> Answer | None:
        if request.method != "HEAD" or request.kind != "blob":
            return None
        asked.set()
        return Answer(delay=280)

    registry.fault(hang)
    monkeypatch.setattr(server_module, "HASTY", replace(HASTY, answer=280.0))
    # Not 60 s between looks: on a busy machine a blob may be on the disk only after those that its arrival asks for.
    monkeypatch.setattr(Limiter.__init__, "__kwdefaults__", {"spare": 0.0, "interval": 1.0, "pause": 0.05})
    with Registry(settings=QUICK) as client, ProxyStore(path) as one:
        server = Server(store, [Listen("one", path)], registry=client, max_size=SECOND.size)
        server.start()
        try:
            pull_lazily(path, name)
            assert read(one, FIRST) == SOURCE.layers[0].data
            assert asked.wait(20)
            started = time.monotonic()
            pull_lazily(path, SOURCE.push(registry, "team/other", "v1"))
            assert read(one, SECOND) == SOURCE.layers[1].data
            one.update(FIRST.digest, {"of": "the tenant"})
            one.delete(FIRST.digest)
            assert time.monotonic() - started < 100, "the question is under way for 280 s"
        finally:
            started = time.monotonic()
            server.stop(0)
        assert time.monotonic() - started < 100
        registry.stop()  # what it still waits with


@pytest.mark.parametrize("limit", [-1, 0.5, float("nan"), "200GB"])
def test_what_is_no_size_is_refused(store: LocalStore, tmp_path: Path, limit: Any) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(repr(limit))):
        Server(store, [Listen("one", tmp_path / "one.sock")], max_size=limit)


def test_a_server_with_a_limit_makes_room_by_itself(
    name: str, store: LocalStore, registry: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.sock"
    limit = SECOND.size + 50_000
    with Registry(settings=QUICK) as client:
        # A second between looks, for the same reason as above.
        monkeypatch.setattr(Limiter.__init__, "__kwdefaults__", {"spare": 0.0, "interval": 1.0, "pause": 0.05})
        with Server(store, [Listen("one", path)], registry=client, max_size=limit) as server, ProxyStore(path) as one:
            pull_lazily(path, name)
            for _ in range(3):
                for desc, data in zip((FIRST, SECOND), SOURCE.layers, strict=True):
                    assert read(one, desc) == data.data
            deadline = time.monotonic() + 20
            while usage(store) > limit and time.monotonic() < deadline:
                time.sleep(0.02)
            assert usage(store) <= limit
            for desc in (FIRST, SECOND):
                assert one.info(desc.digest).size == desc.size
            assert f"blobtee_store_limit_bytes {limit}" in server.metrics.text()


def test_what_is_written_after_it_was_looked_for_is_found_soon(
    store: LocalStore, server: Server, obtaining: Obtaining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are told of when they come; the last of them are on the disk a moment later."""
    looks = threading.Semaphore(0)

    def size(_: LocalStore) -> int:
        looks.release()
        return 10

    monkeypatch.setattr(limiting, "usage", size)
    limiter = Limiter(store, 20, server._lazy, server.metrics, obtaining, interval=3600, pause=0.01)
    limiter.start()
    try:
        for _ in range(3):
            assert looks.acquire(timeout=10)
            assert looks.acquire(timeout=10), "whoever was told of bytes looks once more"
            assert not looks.acquire(timeout=0.5), "and then no more"
            limiter.arrived(20)
    finally:
        limiter.stop()


def test_a_look_that_fails_is_logged_and_there_is_another(
    store: LocalStore, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    obtaining: Obtaining,
) -> None:  # fmt: skip
    looks = []

    def failing(_: LocalStore) -> int:
        looks.append(1)
        raise OSError("a defect")

    monkeypatch.setattr(limiting, "usage", failing)
    limiter = Limiter(store, 1, server._lazy, server.metrics, obtaining, interval=0.01, pause=0.01)
    limiter.start()
    deadline = time.monotonic() + 20
    while len(looks) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    limiter.stop()
    assert len(looks) >= 3
    assert "cannot make room" in caplog.text


def test_what_made_room_and_is_read_in_order_by_many_calls_comes_back_whole_and_once(
    name: str, store: LocalStore, server: Server, registry: MemoryRegistry, tmp_path: Path
) -> None:
    pull_lazily(tmp_path / "one.sock", name)
    client = Client(tmp_path / "one.sock")
    with closing(client.channel):
        data = SOURCE.layers[0].data
        assert client.read(FIRST.digest) == data
        assert FIRST.digest in shrink(store, 0, clients=server._lazy).blobs
        registry.reset()
        for at in range(0, FIRST.size, CHUNK // 2):
            assert client.read(FIRST.digest, at, CHUNK // 2) == data[at : at + CHUNK // 2]
        assert moved(registry) == FIRST.size
        assert len(registry.entries("GET", "blob")) < 20
        deadline = time.monotonic() + 20
        while FIRST.digest not in present(store) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert FIRST.digest in present(store), "all of it was here, and became a blob"


def test_what_nobody_holds_any_more_leaves_nothing_behind(
    name: str, one: ProxyStore, store: LocalStore, server: Server
) -> None:
    server._lazy.know([FIRST, SECOND], Reference.parse(name))
    read(one, FIRST)
    read(one, SECOND)
    used(store, FIRST, 100)
    assert set(shrink(store, usage(store) - 1, clients=server._lazy).blobs) == {FIRST.digest}
    with server._lazy.reader_at(FIRST.digest) as reader:
        reader.read_at(0, 10)
    server._lazy.close()
    for digest in (FIRST.digest, SECOND.digest):
        one.delete(digest)
    server._sweeper.sweep()

    def left() -> list[object]:
        files = (digest_names(store.root / folder) for folder in ("digests", "partial", "index"))
        return [*present(store), *store.evicted(), *itertools.chain(*files)]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.02)  # the server's own sweep may have been first, and is still at it
    assert left() == []
