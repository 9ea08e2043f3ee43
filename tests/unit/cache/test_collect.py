"""What collecting removes, and what it never does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.cache import CacheManager, Collected, MetadataStore, Ref, RefConfig
from blobtee.cache.labels import UNCOMPRESSED
from blobtee.cache.leases import variants_lease
from blobtee.compression import Compression
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import InvalidArgument, InvalidDocument, NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.testing import MemoryRegistry, image
from blobtee.testing.images import Files, ImageSource

from .support import Source, add, described, layers, stack, write_tree

FILES: list[Files] = [{"a": b"base " * 99}, {"b": b"middle " * 99}, {"c": b"top " * 99}]
ZSTD = RefConfig(Compression("zstd", force=True))


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


def collect(store: MetadataStore, *, grace: float = 0, dry_run: bool = False) -> Collected:
    return CacheManager(store).collect(dry_run=dry_run, grace=grace)


def digests(store: MetadataStore) -> set[str]:
    return {info.digest for info in store.walk()}


def pulled(server: MemoryRegistry, store: LocalStore, name: str = "app", files: list[Files] | None = None) -> str:
    full = image(files or FILES).push(server, name)
    transfer.pull(full, store).close()
    return full


def write_skopeo(store: LocalStore, source: ImageSource, *, name: str | None = "v1") -> None:
    """The image as another program puts it into the root: files, and an entry in the index, no labels."""
    for data in (*(layer.data for layer in source.layers), source.config, source.manifest):
        (store.root / "blobs" / "sha256" / Digest.of(data).hex).write_bytes(data)
    entry = source.descriptor.bare().to_json()
    if name is not None:
        entry = {**entry, "annotations": {"org.opencontainers.image.ref.name": name}}
    index = json.loads((store.root / "index.json").read_text())
    index["manifests"].append(entry)
    (store.root / "index.json").write_text(json.dumps(index))


def put(store: MetadataStore, data: bytes, labels: dict[str, str] | None = None) -> Digest:
    digest = Digest.of(data)
    with store.writer(digest, expected=digest) as writer:
        writer.write(data)
        writer.commit(len(data), digest, labels)
    return digest


def test_named_images_stay_and_without_a_name_nothing_is_left(server: MemoryRegistry, store: LocalStore) -> None:
    one, other = pulled(server, store, "one"), pulled(server, store, "other", FILES[:1])
    before = digests(store)
    result = collect(store)
    assert (result.blobs, result.records, digests(store)) == ({}, (), before)
    assert result.images.nbytes == sum(info.size for info in store.walk())
    store.layout.remove(one)
    gone = collect(store)
    assert 0 < len(gone.blobs) < len(before)
    with transfer.open_image(other, store) as opened:
        assert opened.open("/a").read() == FILES[0]["a"]
    store.layout.remove(other)
    collect(store)
    manager = CacheManager(store)
    assert (digests(store), list(manager.records.all()), manager.leases.all()) == (set(), [], [])
    assert not any(path.is_file() for path in (store.root / "blobs").rglob("*"))


def test_images_that_end_in_the_same_layer_do_not_keep_each_other(server: MemoryRegistry, store: LocalStore) -> None:
    pulled(server, store, "one", [{"one": b"1"}, {"both": b"2"}])
    before = digests(store)
    store.layout.remove(pulled(server, store, "other", [{"other": b"1"}, {"both": b"2"}]))
    result = collect(store)
    assert (len(result.blobs), len(result.records), digests(store)) == (3, 2, before)


@pytest.mark.parametrize("name", ["v1", None])
def test_what_another_program_wrote_stays_without_labels_named_or_not(store: LocalStore, name: str | None) -> None:
    write_skopeo(store, image(FILES), name=name)
    before = digests(store)
    assert collect(store).blobs == {}
    assert digests(store) == before


def test_blobs_without_a_row_stay_while_they_are_young(store: LocalStore) -> None:
    path = store.root / "blobs" / "sha256" / Digest.of(b"x").hex
    path.write_bytes(b"x")
    assert collect(store, grace=60).blobs == {}
    os.utime(path, (1, 1))
    assert collect(store, grace=60).blobs == {Digest.of(b"x"): 1}


def test_variants_of_a_blob_that_stays_do_too(server: MemoryRegistry, store: LocalStore) -> None:
    name = pulled(server, store)
    with transfer.open_image(name, store) as opened:
        made = opened.get_remote(True, ZSTD).descriptors
    assert collect(store).blobs == {}
    assert {desc.digest for desc in made} <= digests(store)
    store.layout.remove(name)
    collect(store)
    assert digests(store) == set()


def test_an_open_ref_stays_whoever_has_it_open_and_goes_when_it_is_released(store: LocalStore) -> None:
    given = layers(3)
    for layer in given:
        add(store, layer)
    manager = CacheManager(store)
    ref = stack(manager, Source(*given), given)
    with LocalStore(store.root) as another:
        assert collect(another).records == ()
    assert collect(store).blobs == {}
    again = manager.get(ref.id)
    ref.release()
    assert collect(store).records == ()
    again.release()
    result = collect(store)
    assert result.records[0] == ref.id
    assert (len(result.records), len(result.blobs)) == (3, 3)
    with pytest.raises(NotFound):
        manager.get(ref.id)


def test_ancestors_and_variants_of_an_open_ref_stay(store: LocalStore) -> None:
    given = layers(3)
    manager = CacheManager(store)
    ref = stack(manager, Source(*given), given)
    made = ref.get_remote(True, ZSTD)
    assert (len(digests(store)), collect(store).blobs) == (6, {})
    ref.release()
    # A remote outlives its refs, but holds nothing.
    assert len(collect(store).blobs) == 6
    assert len(made.descriptors) == 3


def test_young_refs_stay_for_the_grace(store: LocalStore, tmp_path: Path) -> None:
    manager = CacheManager(store)
    with manager.add_directory(write_tree(tmp_path / "tree", {"f": "x"})) as ref:
        pass
    assert collect(store, grace=60).records == ()
    assert collect(store).records == (ref.id,)
    assert manager.snapshots.find(ref.snapshot_id) is None


@pytest.mark.parametrize("flat", [True, False])
def test_a_lease_holds_what_is_linked_unless_it_is_flat(store: LocalStore, flat: bool) -> None:
    inner = put(store, b"inner")
    outer = put(store, b"outer", {"containerd.io/gc.ref.content.x": inner})
    manager = CacheManager(store)
    lease = manager.leases.create("mine", flat=flat)
    manager.leases.add(lease.id, [outer, "no digest"])
    assert set(collect(store).blobs) == ({inner} if flat else set())
    assert collect(store).held.blobs == len(digests(store))
    manager.leases.delete(lease.id)
    collect(store)
    assert digests(store) == set()


def test_an_expired_lease_holds_nothing_and_goes(store: LocalStore) -> None:
    digest = put(store, b"x")
    manager = CacheManager(store)
    for name, seconds in (("over", 0), ("good", 1000)):
        manager.leases.create(name, expires_in=seconds)
        manager.leases.add(name, [digest])
    assert (collect(store).leases, digests(store)) == (("over",), {digest})
    manager.leases.delete("good")
    assert collect(store).blobs == {digest: 1}


def test_work_under_a_temporary_lease_is_safe(store: LocalStore) -> None:
    manager = CacheManager(store)
    with manager.leases.hold():
        digest = put(store, b"x")
        manager.leases.protect([digest])
        assert collect(store).blobs == {}
    assert collect(store).blobs == {digest: 1}


def test_roots_by_label_stay_with_what_they_link_to(store: LocalStore) -> None:
    inner = put(store, b"inner")
    root = put(store, b"root", {"containerd.io/gc.root": "1", "containerd.io/gc.ref.content": inner})
    other = put(store, b"other", {"containerd.io/gc.ref.content.x": root})
    assert set(collect(store).blobs) == {other}


def test_a_dry_run_tells_exactly_what_a_run_removes(server: MemoryRegistry, store: LocalStore) -> None:
    name = pulled(server, store)
    pulled(server, store, "stays", FILES[:2])
    store.layout.remove(name)
    CacheManager(store).leases.create("over", expires_in=0)
    with store.writer("partial") as writer:
        writer.write(b"12345")
    with store.writer("being written") as busy:
        busy.write(b"123")
        before = digests(store)
        planned = collect(store, dry_run=True)
        assert digests(store) == before
        assert store.status("partial").offset == 5
        done = collect(store)
    assert planned == done
    assert done.ingests == {"partial": 5}
    assert (len(done.blobs), len(done.records), done.leases) == (3, 1, ("over",))
    assert [status.ref for status in store.statuses()] == ["being written"]


def test_partial_blobs_stay_a_day_unless_there_is_no_grace(store: LocalStore) -> None:
    with store.writer("partial") as writer:
        writer.write(b"12345")
    assert collect(store, grace=1).ingests == {}
    assert collect(store, grace=0).nbytes == 5


@pytest.mark.parametrize("labelled", [True, False])
def test_a_damaged_document_loses_nothing(server: MemoryRegistry, store: LocalStore, labelled: bool) -> None:
    source = image(FILES)
    if labelled:
        transfer.pull(source.push(server, "app"), store).close()
    else:
        write_skopeo(store, source)
    loose = put(store, b"loose")
    path = store.root / "blobs" / "sha256" / source.descriptor.digest.hex
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"layers", b"Layers"))
    before = digests(store)
    result = collect(store)
    assert str(source.descriptor.digest) in result.problems[0]
    # Labels tell what belongs to it. Without them nobody knows, and everything stays.
    assert set(result.blobs) == ({loose} if labelled else set())
    assert digests(store) == before - set(result.blobs)


def test_a_document_that_is_set_aside_still_holds_what_it_names(server: MemoryRegistry, store: LocalStore) -> None:
    source = image(FILES)
    transfer.pull(source.push(server, "app"), store).close()
    store.quarantine(source.descriptor.digest)
    before = digests(store)
    assert collect(store).blobs == {}
    assert digests(store) == before


def test_a_missing_document_of_a_name_stops_everything(store: LocalStore) -> None:
    store.layout.set("gone", Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(b"gone"), 4))
    put(store, b"x")
    result = collect(store)
    assert (result.blobs, len(result.problems)) == ({}, 2)


def test_a_list_of_images_that_cannot_be_read_is_an_error_and_nothing_goes(store: LocalStore) -> None:
    digest = put(store, b"x")
    (store.root / "index.json").write_text("[")
    with pytest.raises(InvalidDocument):
        collect(store)
    assert digests(store) == {digest}


def test_lazy_images_survive(server: MemoryRegistry, store: LocalStore) -> None:
    name = image(FILES).push(server, "app")
    transfer.pull(name, store, lazy=True).close()
    assert (collect(store).blobs, collect(store).records) == ({}, ())
    with transfer.open_image(name, store) as opened:
        assert opened.open("/c").read() == FILES[2]["c"]


def test_an_image_that_is_open_can_be_read_after_its_name_is_gone(server: MemoryRegistry, store: LocalStore) -> None:
    name = pulled(server, store)
    with transfer.open_image(name, store) as opened:
        store.layout.remove(name)
        collect(store)
        assert opened.open("/a").read() == FILES[0]["a"]
    collect(store)
    assert digests(store) == set()


def test_pulls_while_collecting_lose_nothing(server: MemoryRegistry, store: LocalStore) -> None:
    names = [image([*FILES, {"own": b"%d" % n}]).push(server, f"app{n}") for n in range(8)]
    ended = threading.Event()
    failures: list[BaseException] = []

    def forever() -> None:
        try:
            with LocalStore(store.root) as another:
                while not ended.is_set():
                    collect(another)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=forever)
    thread.start()
    try:
        for name in names:
            transfer.pull(name, store).close()
            assert transfer.verify(store).problems == ()
            store.layout.remove(name)
            transfer.pull(name, store).close()
    finally:
        ended.set()
        thread.join()
    assert failures == []
    assert transfer.verify(store).problems == ()
    for number, name in enumerate(names):
        with transfer.open_image(name, store) as opened:
            assert opened.open("/own").read() == b"%d" % number
            assert all(not layer.is_lazy() for layer in opened.ref.layer_chain()) if opened.ref else False


def test_a_name_that_comes_between_the_look_and_the_removal_is_seen(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image(FILES)
    write_skopeo(store, source)
    entries = (store.root / "index.json").read_text()
    store.layout.remove("v1")
    before = digests(store)
    discard = store.discard
    late = iter([entries])

    def statuses(*filters: str) -> list[object]:
        for text in late:  # the last step of a look
            (store.root / "index.json").write_text(text)
        return []

    monkeypatch.setattr(store, "statuses", statuses)
    assert collect(store).blobs == {}
    assert (digests(store), store.discard) == (before, discard)


def test_a_lease_that_comes_between_the_look_and_the_removal_holds_what_is_linked(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = put(store, b"inner")
    outer = put(store, b"outer", {"containerd.io/gc.ref.content.x": inner})
    loose = put(store, b"loose")
    leases = CacheManager(store).leases
    late = iter(["late"])

    def statuses(*filters: str) -> list[object]:
        for name in late:
            leases.create(name)
            leases.add(name, [outer])
        return []

    monkeypatch.setattr(store, "statuses", statuses)
    assert set(collect(store).blobs) == {loose}


def test_a_store_in_memory_is_collected_too() -> None:
    with MemoryStore() as store:
        given = layers(2)
        manager = CacheManager(store)
        ref: Ref = stack(manager, Source(*given), given)
        ref.get_remote().unlazy()
        loose = put(store, b"x")
        assert set(collect(store).blobs) == {loose}
        ref.release()
        assert len(collect(store).blobs) == 2
        assert manager.leases.resources(variants_lease(ref.id)) == []


def test_the_age_of_a_ref_is_not_what_an_image_says(store: LocalStore) -> None:
    given = layers(1)[0]
    old = described(given).annotated({"buildkit/createdat": "2001-01-01T00:00:00Z"})
    assert UNCOMPRESSED in old.annotations
    add(store, given)
    CacheManager(store).get_by_blob(old).release()
    assert collect(store, grace=60).records == ()


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), "1"])
def test_a_grace_that_is_no_duration_is_refused(store: LocalStore, grace: float) -> None:
    with pytest.raises(InvalidArgument):
        collect(store, grace=grace)


def test_records_that_are_each_others_ancestors_end_in_a_problem_and_lose_nothing(
    store: LocalStore, tmp_path: Path
) -> None:
    given = layers(2)
    for layer in given:
        add(store, layer)
    manager = CacheManager(store)
    ref = stack(manager, Source(*given), given)
    base = ref.parents[0]
    with store.metadata.transaction() as connection:
        connection.execute("INSERT INTO cache_parents VALUES (?, 0, ?)", (base, ref.id))
    ref.release()
    result = collect(store)
    assert (result.blobs, result.records, len(result.problems)) == ({}, (), 1)
