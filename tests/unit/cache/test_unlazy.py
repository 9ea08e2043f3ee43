"""One fetch for all who ask, whoever gives up; and what a fetch leaves behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from blobtee.cache import CacheManager, Handler, LazyProvider, Means, Ref, using_session
from blobtee.cache.flights import flights as flights_of
from blobtee.cache.labels import LINK, MEDIA_TYPE, SOURCE, UNCOMPRESSED
from blobtee.content import MemoryStore
from blobtee.content.api import Provider, ReaderAt
from blobtee.errors import (
    Cancelled,
    Closed,
    ConnectionFailed,
    DigestMismatch,
    LazyUnavailable,
    NeedsRemoteProvider,
    NotFound,
    Unauthenticated,
    UnsupportedMediaType,
)
from blobtee.oci import Compressed, Descriptor
from blobtee.tasks import Cancellation, Event, reporting, scope, sleep
from blobtee.testing import images
from tests.unit.cache.support import IMAGE, Source, add, content, described, layers, stack


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


@pytest.fixture
def layer() -> images.Layer:
    return layers(1)[0]


class Gate:
    """Holds the fetch until it is opened; says when somebody stands before it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, desc: Descriptor) -> None:
        self.reached.set()
        while not self.open.is_set():
            sleep(0.005)


def run(count: int, function: Callable[[int], object]) -> tuple[list[threading.Thread], dict[int, object]]:
    outcomes: dict[int, object] = {}

    def call(number: int) -> None:
        try:
            outcomes[number] = function(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads, outcomes


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def wait_for_waiters(store: MemoryStore, layer: images.Layer, count: int) -> None:
    """Until `count` callers share the fetch: seen from outside it cannot be told, so this looks inside."""
    flights = flights_of(store).unlazy
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        call = flights._calls.get(layer.descriptor.digest)
        if call is not None and len(call.waiters) == count:
            return
        time.sleep(0.002)
    raise AssertionError("the callers did not gather")


def test_64_threads_over_several_managers_make_one_download(store: MemoryStore, layer: images.Layer) -> None:
    gate = Gate()
    source = Source(layer, before=gate)
    refs = [stack(CacheManager(store), source, [layer]) for _ in range(4)]

    def ask(number: int) -> bytes:
        remote = refs[number % 4].get_remote()
        return content(remote.provider.reader_at(remote.descriptors[0]))

    threads, outcomes = run(64, ask)
    wait_for_waiters(store, layer, 64)
    gate.open.set()
    join(threads)
    assert list(outcomes.values()) == [layer.data] * 64
    assert source.opened == [layer.descriptor.digest]


def test_one_is_cancelled_and_the_others_get_it(store: MemoryStore, layer: images.Layer) -> None:
    gate = Gate()
    source = Source(layer, before=gate)
    ref = stack(CacheManager(store), source, [layer])
    switches = [Cancellation() for _ in range(8)]

    def ask(number: int) -> str:
        with scope(switches[number]):
            ref.get_remote().unlazy()
        return "got it"

    first, first_outcome = run(1, ask)
    assert gate.reached.wait(30)
    rest, outcomes = run(8, lambda number: ask(number) if number else "the leader")
    wait_for_waiters(store, layer, 8)
    switches[0].cancel("Ctrl-C")
    join(first)
    assert isinstance(first_outcome[0], Cancelled)
    gate.open.set()
    join(rest)
    assert [outcomes[number] for number in range(1, 8)] == ["got it"] * 7
    assert source.opened == [layer.descriptor.digest]
    assert store.info(layer.descriptor.digest).size == layer.descriptor.size


def test_when_all_give_up_the_fetch_ends_and_the_next_one_starts_afresh(
    store: MemoryStore, layer: images.Layer
) -> None:
    gate = Gate()
    source = Source(layer, before=gate)
    ref = stack(CacheManager(store), source, [layer])
    switch = Cancellation()

    def ask(number: int) -> None:
        with scope(switch):
            ref.get_remote().unlazy()

    threads, outcomes = run(3, ask)
    wait_for_waiters(store, layer, 3)
    assert gate.reached.wait(30)
    switch.cancel()
    join(threads)
    assert all(isinstance(outcome, Cancelled) for outcome in outcomes.values())
    gate.open.set()
    ref.get_remote().unlazy()
    assert not ref.is_lazy()


def with_sessions(layer: images.Layer, source: Source, check: Callable[[object], None]) -> dict[str, Handler]:
    def provider(session: object) -> Provider:
        check(session)
        return source.for_session(session)

    return {layer.descriptor.digest: Handler(provider, ref=IMAGE)}


@pytest.mark.parametrize("failure", [Unauthenticated, Closed, LazyUnavailable])
def test_a_waiter_takes_over_with_its_own_session_when_the_leaders_is_gone(
    failure: type[Exception], store: MemoryStore, layer: images.Layer
) -> None:
    source = Source(layer)
    gate = Gate()

    def check(session: object) -> None:
        if session == 0:
            gate(layer.descriptor)
            raise failure("this session is over")

    manager = CacheManager(store)
    ref = manager.get_by_blob(described(layer), None, with_sessions(layer, source, check))
    first, first_outcome = run(1, lambda number: ref.get_remote(session=0).unlazy())
    assert gate.reached.wait(30)
    rest, outcomes = run(3, lambda number: ref.get_remote(session=number + 1).unlazy())
    wait_for_waiters(store, layer, 4)
    gate.open.set()
    join([*first, *rest])
    assert first_outcome == {0: None}
    assert set(outcomes.values()) == {None}
    assert len(source.sessions) == 1
    assert source.sessions[0] != 0


def test_the_session_of_the_context_is_used_and_kept(store: MemoryStore, layer: images.Layer) -> None:
    source = Source(layer)
    ref = stack(CacheManager(store), source, [layer])
    with using_session("mine"):
        remote = ref.get_remote()
    remote.unlazy()
    assert source.sessions == ["mine"]


def test_an_unknown_media_type_is_refused_before_the_download(store: MemoryStore, layer: images.Layer) -> None:
    source = Source(layer)
    manager = CacheManager(store)
    odd = replace(described(layer), media_type="application/x-odd")
    ref = manager.get_by_blob(odd, None, source.handlers())
    with pytest.raises(UnsupportedMediaType, match="application/x-odd"):
        ref.get_remote().unlazy()
    assert source.opened == []
    assert source.sessions == []


def test_a_lazy_blob_without_a_handler_is_refused(store: MemoryStore, layer: images.Layer) -> None:
    ref = stack(CacheManager(store), Source(layer), [layer])
    with pytest.raises(NeedsRemoteProvider):
        LazyProvider(ref, ref.oci_desc(), Means({})).unlazy()


def test_a_source_that_is_down_is_unavailable_and_no_blob_is_left(
    store: MemoryStore, layer: images.Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blobtee.tasks.sleep", lambda seconds: None)

    def fail(desc: Descriptor) -> None:
        raise ConnectionFailed("no route to host")

    source = Source(layer, before=fail)
    ref = stack(CacheManager(store), source, [layer])
    with pytest.raises(LazyUnavailable, match="no route to host"):
        ref.get_remote().unlazy()
    assert len(source.opened) == 4
    assert ref.is_lazy()
    assert list(store.walk()) == []
    assert ref.description == ""


def test_a_source_that_has_the_blob_no_more_is_unavailable(store: MemoryStore, layer: images.Layer) -> None:
    source = Source(layer)
    ref = stack(CacheManager(store), source, [layer])
    source.blobs.clear()
    with pytest.raises(LazyUnavailable) as caught:
        ref.get_remote().unlazy()
    assert isinstance(caught.value.__cause__, NotFound)


def test_a_source_that_lies_is_found_out(store: MemoryStore, layer: images.Layer) -> None:
    source = Source(layer)
    ref = stack(CacheManager(store), source, [layer])
    source.blobs[layer.descriptor.digest] = bytes(layer.descriptor.size)
    with pytest.raises(DigestMismatch):
        ref.get_remote().unlazy()
    assert list(store.walk()) == []
    source.blobs[layer.descriptor.digest] = layer.data
    ref.get_remote().unlazy()
    assert not ref.is_lazy()


def test_what_is_there_is_not_fetched(store: MemoryStore, layer: images.Layer) -> None:
    source = Source(layer)
    ref = stack(CacheManager(store), source, [layer])
    add(store, layer)
    remote = ref.get_remote()
    remote.unlazy()
    assert content(remote.provider.reader_at(remote.descriptors[0])) == layer.data
    assert source.opened == []


def test_a_blob_that_went_after_the_remote_was_made_is_fetched(store: MemoryStore, layer: images.Layer) -> None:
    source = Source(layer)
    ref = stack(CacheManager(store), source, [layer])
    add(store, layer)
    remote = ref.get_remote()
    store.delete(layer.descriptor.digest)
    assert content(remote.provider.reader_at(remote.descriptors[0])) == layer.data


class Outcomes:
    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def __call__(self, desc: Descriptor) -> Iterator[None]:
        self.seen.append("started")
        try:
            yield
        except Exception as error:
            self.seen.append(type(error).__name__)
            raise
        self.seen.append("done")


def test_the_handlers_progress_ends_with_the_real_outcome(store: MemoryStore, layer: images.Layer) -> None:
    outcomes = Outcomes()
    source = Source(layer)
    handlers: dict[str, Handler] = {layer.descriptor.digest: Handler(source.for_session, outcomes, ref=IMAGE)}
    ref = CacheManager(store).get_by_blob(described(layer), None, handlers)
    data = source.blobs.pop(layer.descriptor.digest)
    with pytest.raises(LazyUnavailable):
        ref.get_remote().unlazy()
    source.blobs[layer.descriptor.digest] = data
    ref.get_remote().unlazy()
    ref.get_remote().unlazy()
    assert outcomes.seen == ["started", "NotFound", "started", "done"]


def test_everybody_who_waits_is_told_of_the_progress(store: MemoryStore, layer: images.Layer) -> None:
    gate = Gate()
    ref = stack(CacheManager(store), Source(layer, before=gate), [layer])
    told: dict[int, list[Event]] = {number: [] for number in range(3)}

    def ask(number: int) -> None:
        with reporting(told[number].append):
            ref.get_remote().unlazy()

    threads, _ = run(3, ask)
    wait_for_waiters(store, layer, 3)
    gate.open.set()
    join(threads)
    for events in told.values():
        assert events[-1].completed is not None
        assert (events[-1].digest, events[-1].current) == (layer.descriptor.digest, layer.descriptor.size)


def test_a_fetched_blob_is_described_labelled_and_leased(store: MemoryStore, layer: images.Layer) -> None:
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    ref.get_remote().unlazy()
    digest = layer.descriptor.digest
    assert ref.description == f"pulled from {IMAGE}"
    assert dict(store.info(digest).labels) == {
        MEDIA_TYPE: layer.descriptor.media_type,
        "buildkit.io/blob/annotation." + UNCOMPRESSED: layer.diff_id,
        SOURCE + "registry.test:5000": "team/app",
    }
    assert manager.leases.resources(f"{ref.id}-variants") == [("content", digest)]
    assert manager.leases.resources(ref.id) == [("content", digest)]


def test_a_description_is_not_overwritten(store: MemoryStore, layer: images.Layer) -> None:
    ref = stack(CacheManager(store), Source(layer), [layer])
    ref.description = "mine"
    ref.get_remote().unlazy()
    assert ref.description == "mine"


def test_each_ref_that_waited_for_one_blob_is_linked_to_it(store: MemoryStore, layer: images.Layer) -> None:
    other = images.layer({"other": b"base"})
    gate = Gate()
    source = Source(layer, other, before=lambda desc: gate(desc) if desc.digest == layer.descriptor.digest else None)
    manager = CacheManager(store)
    refs = [stack(manager, source, [layer]), stack(manager, source, [other, layer])]
    threads, outcomes = run(2, lambda number: refs[number].get_remote().unlazy())
    wait_for_waiters(store, layer, 2)
    gate.open.set()
    join(threads)
    assert set(outcomes.values()) == {None}
    for ref in refs:
        assert manager.leases.resources(f"{ref.id}-variants") == [("content", layer.descriptor.digest)]
        assert ref.description


def test_a_ref_removed_meanwhile_leaves_nothing(store: MemoryStore, layer: images.Layer) -> None:
    manager = CacheManager(store)
    with stack(manager, Source(layer), [layer]) as ref:
        remote = ref.get_remote()
    manager.remove(ref.id)
    assert content(remote.provider.reader_at(remote.descriptors[0])) == layer.data
    assert manager.leases.all() == []


def test_a_remote_brings_its_layers_at_once_and_the_first_error_cancels_the_rest(store: MemoryStore) -> None:
    given = layers(4)
    together = threading.Barrier(3)
    cancelled: list[str] = []

    def before(desc: Descriptor) -> None:
        if desc.digest == given[0].descriptor.digest:
            return
        together.wait(30)
        if desc.digest == given[1].descriptor.digest:
            raise Unauthenticated("not for you")
        try:
            sleep(60)
        except Cancelled:
            cancelled.append(desc.digest)
            raise

    source = Source(*given, before=before)
    ref = stack(CacheManager(store), source, given)
    started = time.monotonic()
    with pytest.raises(Unauthenticated, match="not for you"):
        ref.get_remote().unlazy()
    assert time.monotonic() - started < 30
    deadline = time.monotonic() + 30
    while len(cancelled) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sorted(cancelled) == sorted(layer.descriptor.digest for layer in given[2:])
    assert ref.layer_chain()[2].is_lazy()


def test_a_remote_is_brought_whole(store: MemoryStore) -> None:
    given = layers(5, Compressed.ZSTD)
    source = Source(*given)
    remote = stack(CacheManager(store), source, [*given, given[0]]).get_remote()
    assert len(remote.descriptors) == 6
    remote.unlazy()
    assert sorted(source.opened) == sorted(layer.descriptor.digest for layer in given)
    for layer in given:
        assert store.info(layer.descriptor.digest).size == layer.descriptor.size


def test_a_slow_layer_of_several_slots_arrives_whole(store: MemoryStore) -> None:
    big = images.layer({"f": bytes(range(256)) * 20_000}, compression=Compressed.NONE)
    source = Source(big)
    remote = stack(CacheManager(store), source, [big]).get_remote()
    assert content(remote.provider.reader_at(remote.descriptors[0])) == big.data


def test_flights_do_not_keep_a_store_alive() -> None:
    store = MemoryStore()
    flights_of(store)
    seen = weakref.ref(store)
    store.close()
    del store
    gc.collect()
    assert seen() is None


def test_a_variant_linked_to_a_lazy_blob_is_no_error(store: MemoryStore, layer: images.Layer) -> None:
    from blobtee.cache import variants

    twin = images.layer({"file0": b"0" * 50}, compression=Compressed.ZSTD)
    manager = CacheManager(store)
    ref: Ref = stack(manager, Source(layer), [layer])
    add(store, twin)
    variants.link(manager, ref, described(twin))
    assert LINK + layer.descriptor.digest not in store.info(twin.descriptor.digest).labels
    reader: ReaderAt = store.reader_at(twin.descriptor)
    reader.close()
