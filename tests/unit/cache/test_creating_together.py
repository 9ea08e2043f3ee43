"""Blobs made of directories by many callers at once, and what a failure leaves: nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blobtee import conversion
from blobtee.cache import CacheManager, RefConfig
from blobtee.compression import Compression, Type
from blobtee.content import LocalStore
from blobtee.errors import (
    Cancelled,
    CorruptData,
    InvalidArgument,
    LazyUnavailable,
    NeedsRemoteProvider,
    NotFound,
)
from blobtee.tasks import Cancellation, scope, sleep
from tests.unit.cache.support import (
    Source,
    at_once,
    described,
    layers,
    names,
    read_tree,
    registered,
    stack,
    trees,
    untouched,
    wait_for,
    write_tree,
)

ZSTD = RefConfig(Compression("zstd"))
PLAIN = RefConfig(Compression("uncompressed"))


# ---- at once


class Counting:
    """Counts the packers that are made, and stops each at its first byte until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, before: Callable[[Any], object] | None = None) -> None:
        self.made: list[Type] = []
        self.reached = threading.Event()
        self.go = threading.Event()
        true = conversion.Packer

        def packer(compression: Compression, write: Any, **options: Any) -> conversion.Packer:
            self.made.append(compression.type)
            self.reached.set()
            while not self.go.is_set():
                sleep(0.002)
            if before is not None:
                before(compression)
            return true(compression, write, **options)

        monkeypatch.setattr(conversion, "Packer", packer)


def test_however_many_ask_a_blob_is_made_once(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    counting.go.set()
    manager = CacheManager(store)
    top = registered(manager, *trees(tmp_path, {"a": "1"}, {"a": "1", "b": "2"}, {"c": "2"}))
    refs = [CacheManager(store).get(top.id) for _ in range(4)]
    found = at_once(*[lambda ref=ref: ref.get_remote(True, ZSTD).descriptors for ref in refs * 4])
    assert counting.made == [Type.ZSTD] * 3
    assert all(each == found[0] for each in found)
    assert sorted(info.digest for info in store.walk()) == sorted(each.blob or "" for each in top.layer_chain())
    untouched(manager, top)


def test_layers_are_made_at_the_same_time(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)
    counting = Counting(monkeypatch, before=lambda _: together.wait(30))
    counting.go.set()
    registered(manager, *trees(tmp_path, {"a": "1"}, {"a": "2"})).get_remote(True)


def test_unforced_the_first_wish_makes_the_blob_and_the_others_get_it(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    outcome: list[Any] = []
    first = threading.Thread(target=lambda: outcome.append(ref.get_remote(True, ZSTD).descriptors))
    first.start()
    assert counting.reached.wait(30)
    second = threading.Thread(target=lambda: outcome.append(ref.get_remote(True, RefConfig()).descriptors))
    second.start()
    counting.go.set()
    first.join(60)
    second.join(60)
    assert counting.made == [Type.ZSTD]
    assert outcome[0] == outcome[1]
    assert [info.digest for info in manager.store.walk()] == [ref.blob]


def test_forced_each_gets_exactly_its_type(tmp_path: Path, manager: CacheManager) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1" * 5000}, {"a": "1" * 5000, "b": "2" * 5000}))
    forced = [RefConfig(Compression(kind, force=True)) for kind in Type]
    found = at_once(*[lambda c=config: ref.get_remote(True, c).descriptors for config in forced])
    for kind, descs in zip(Type, found, strict=True):
        assert not isinstance(descs, Exception)
        assert [desc.media_type for desc in descs] == [kind.media_type] * 2
        assert ["a" in names(manager.store, descs[0]), "b" in names(manager.store, descs[1])] == [True, True]
    assert len({desc.digest for descs in found if not isinstance(descs, Exception) for desc in descs}) == 8
    assert len(list(manager.store.walk())) == 8
    untouched(manager, ref)


def test_an_error_that_is_due_to_ones_own_wish_is_not_the_others(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def before(compression: Compression) -> None:
        if compression.type is Type.ESTARGZ:
            raise InvalidArgument("not as eStargz")

    counting = Counting(monkeypatch, before=before)
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    outcome: list[Any] = []

    def ask(kind: str) -> None:
        try:
            outcome.append(ref.get_remote(True, RefConfig(Compression(kind))).descriptors[0].media_type)
        except InvalidArgument as error:
            outcome.append(str(error))

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("estargz", "zstd")]
    threads[0].start()
    assert counting.reached.wait(30)
    threads[1].start()
    counting.go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(outcome) == sorted(["not as eStargz", Type.ZSTD.media_type])
    untouched(manager, ref)


def test_a_caller_who_gives_up_leaves_the_work_to_the_others(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    switch = Cancellation()
    outcome: dict[str, Any] = {}

    def ask(name: str, cancellation: Cancellation | None) -> None:
        try:
            with scope(cancellation):
                outcome[name] = ref.get_remote(True).descriptors
        except Cancelled as error:
            outcome[name] = error

    first = threading.Thread(target=ask, args=("first", switch))
    first.start()
    assert counting.reached.wait(30)
    second = threading.Thread(target=ask, args=("second", None))
    second.start()
    wait_for(lambda: len(waiters(manager)) == 2)
    switch.cancel("Ctrl-C")
    first.join(60)
    assert isinstance(outcome["first"], Cancelled)
    assert [lease for lease in manager.leases.all() if lease.expires_at is not None] == []
    counting.go.set()
    second.join(60)
    assert outcome["second"][0].digest == ref.blob
    assert counting.made == [Type.GZIP]
    untouched(manager, ref)


def test_one_who_can_bring_what_lies_below_takes_over_from_one_who_cannot(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    (layer,) = layers(1)
    source = Source(layer)
    base = manager.get_by_blob(described(layer), None, source.handlers())
    ref = manager.add_directory(write_tree(tmp_path / "mine", {"f": "x"}), base)
    outcome: dict[str, Any] = {}
    first = threading.Thread(target=lambda: outcome.update(first=ref.get_remote(True, handlers={}).descriptors))
    first.start()
    assert counting.reached.wait(30)
    second = threading.Thread(target=lambda: outcome.update(second=ref.get_remote(True).descriptors))
    second.start()
    wait_for(lambda: len(waiters(manager)) == 2)
    counting.go.set()
    first.join(60)
    second.join(60)
    assert counting.made == [Type.GZIP] * 2
    assert [desc.digest for desc in outcome["first"]] == [desc.digest for desc in outcome["second"]]
    assert source.opened == [layer.descriptor.digest]
    untouched(manager, ref)


def test_when_all_give_up_nothing_is_left(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    switch = Cancellation()
    outcome = []

    def ask() -> None:
        try:
            with scope(switch):
                ref.get_remote(True)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert counting.reached.wait(30)
    switch.cancel()
    thread.join(60)
    assert len(outcome) == 1
    wait_for(lambda: not manager.store.statuses())
    counting.go.set()
    assert len(ref.get_remote(True).descriptors) == 1
    untouched(manager, ref)


def waiters(manager: CacheManager) -> list[object]:
    """Who waits for a blob to be made: seen from outside it cannot be told, so this looks inside."""
    from blobtee.cache.flights import flights

    calls = flights(manager.store).create._calls
    return [waiter for call in calls.values() for waiter in call.waiters]


# ---- failures


def test_an_error_in_one_layer_cancels_the_others_and_leaves_nothing(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = registered(manager, *trees(tmp_path, {"a": "1"}, {"a": "2"}))
    together = threading.Barrier(2)
    cancelled: list[BaseException] = []

    def before(_: Compression) -> None:
        if together.wait(30) == 0:
            raise CorruptData("this one fails")
        try:
            sleep(60)
        except Cancelled as error:
            cancelled.append(error)
            raise

    with monkeypatch.context() as patch:
        Counting(patch, before=before).go.set()
        with pytest.raises(CorruptData, match="this one fails"):
            top.get_remote(True)
    wait_for(lambda: len(cancelled) == 1 and not manager.store.statuses())
    assert list(manager.store.walk()) == []
    wait_for(lambda: all(lease.expires_at is None for lease in manager.leases.all()))
    assert len(top.get_remote(True).descriptors) == 2
    untouched(manager, top)


def test_a_failure_in_the_middle_of_a_blob_aborts_its_ingest(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1" * 100_000}))

    def fail(packer: object) -> None:
        raise CorruptData("at the end")

    with monkeypatch.context() as patch:
        patch.setattr(conversion.Packer, "finish", fail)
        with pytest.raises(CorruptData):
            ref.get_remote(True, PLAIN)
    untouched(manager, ref)
    assert manager.leases.resources(ref.id) == []
    assert ref.blob is None
    assert len(ref.get_remote(True).descriptors) == 1


def test_what_a_killed_process_left_of_a_blob_is_written_over(tmp_path: Path, manager: CacheManager) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    with manager.store.writer(f"create-{ref.id}-gzip") as writer:
        writer.write(b"half of something")
    assert names(manager.store, ref.get_remote(True).descriptors[0]) == ["a"]
    untouched(manager, ref)


def test_a_blob_that_another_process_makes_is_waited_for(tmp_path: Path, manager: CacheManager) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    with manager.store.writer(f"create-{ref.id}-gzip"):
        thread = threading.Thread(target=ref.get_remote, args=(True,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(60)
    assert ref.blob is not None


def test_a_directory_that_is_gone_is_said_and_coming_back_helps(tmp_path: Path, manager: CacheManager) -> None:
    base, upper = trees(tmp_path, {"a": "1"}, {"a": "1", "b": "2"})
    top = registered(manager, base, upper)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match=r"tree0.*gone"):
        top.get_remote(True)
    untouched(manager, top)
    (tmp_path / "elsewhere").rename(base)
    assert [names(manager.store, desc) for desc in top.get_remote(True).descriptors] == [["a"], ["b"]]


def test_a_parent_that_nobody_can_bring_is_said_and_a_handler_helps(tmp_path: Path, manager: CacheManager) -> None:
    given = layers(1)
    source = Source(*given)
    ref = manager.add_directory(write_tree(tmp_path / "mine", {"f": "x"}), stack(manager, source, given))
    with pytest.raises(NeedsRemoteProvider):
        ref.get_remote(True, handlers={})
    untouched(manager, ref)
    data = source.blobs.pop(given[0].descriptor.digest)
    with pytest.raises(LazyUnavailable):
        ref.get_remote(True)
    assert not (tmp_path / "store" / "scratch").exists()
    source.blobs[given[0].descriptor.digest] = data
    assert set(names(manager.store, ref.get_remote(True).descriptors[1])) == {"f", ".wh.file0"}
    untouched(manager, ref)


def test_the_parents_tree_is_made_of_its_blob_once_its_directory_is_gone(tmp_path: Path, manager: CacheManager) -> None:
    base, upper = trees(tmp_path, {"a": "1", "b": "1"}, {"a": "1", "c": "2"})
    bottom = manager.add_directory(base)
    bottom.get_remote(True)
    shutil.rmtree(base)
    top = manager.add_directory(upper, bottom)
    assert set(names(manager.store, top.get_remote(True).descriptors[1])) == {"c", ".wh.b"}
    with manager.mounted(bottom) as path:
        assert read_tree(path) == {"a": "1", "b": "1"}
