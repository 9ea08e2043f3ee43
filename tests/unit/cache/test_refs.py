"""Records, chains, and finding refs by their blobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blobtee.cache import CacheManager, Kind, Ref
from blobtee.cache.labels import CREATED_AT, UNCOMPRESSED
from blobtee.cache.records import Record
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import (
    Closed,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    InvalidDigest,
    InvalidReference,
    NeedsRemoteProvider,
    NotFound,
    SizeMismatch,
    TooLarge,
)
from blobtee.oci import Compressed, chain_id, chain_ids
from blobtee.oci.mediatypes import DOCKER_LAYER, DOCKER_LAYER_FOREIGN, OCI_LAYER
from blobtee.testing import images
from tests.unit.cache.support import IMAGE, Source, add, described, layers, stack


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


def test_a_layers_record_says_what_it_is(store: MemoryStore) -> None:
    given = layers()
    ref = stack(CacheManager(store), Source(*given), given)
    assert (ref.kind, ref.blob, ref.size) == (Kind.LAYER, given[2].descriptor.digest, given[2].descriptor.size)
    assert (ref.media_type, ref.diff_id, ref.blob_only) == (given[2].descriptor.media_type, given[2].diff_id, True)
    assert ref.chain_id == chain_ids(layer.diff_id for layer in given)[-1]
    pairs = [chain_id(layer.descriptor.digest, layer.diff_id) for layer in given]
    assert ref.blob_chain_id == chain_ids(pairs)[-1]
    assert ref.snapshot_id == ref.chain_id
    assert ref.image_refs == (IMAGE,)
    assert ref.description == ""
    assert ref.created_at > 0
    chain = ref.layer_chain()
    assert [(each.kind, each.blob) for each in chain] == [
        (Kind.BASE, given[0].descriptor.digest),
        (Kind.LAYER, given[1].descriptor.digest),
        (Kind.LAYER, given[2].descriptor.digest),
    ]


def test_records_outlive_the_process(tmp_path: Path) -> None:
    given = layers()
    source = Source(*given)
    with LocalStore(tmp_path) as store:
        before = stack(CacheManager(store), source, given)
        before.description = "the app"
    with LocalStore(tmp_path) as store:
        manager = CacheManager(store)
        found = manager.get(before.id, source.handlers())
        assert found.description == "the app"
        assert [each.blob for each in found.layer_chain()] == [layer.descriptor.digest for layer in given]
        assert stack(manager, source, given).id == before.id


def test_the_same_blobs_are_the_same_record_which_learns_the_new_image(store: MemoryStore) -> None:
    given = layers()
    manager = CacheManager(store)
    first = stack(manager, Source(*given), given)
    parent = manager.get(first.parents[0], Source(*given).handlers())
    again = manager.get_by_blob(
        described(given[2]), parent, Source(*given).handlers(), image_ref="docker.io/library/other:1"
    )
    assert again.id == first.id
    assert first.image_refs == (IMAGE, "docker.io/library/other:1")
    assert len(list(manager.records.all())) == 3


def test_the_same_contents_in_other_blobs_share_only_the_snapshot(store: MemoryStore) -> None:
    zipped, plain = layers(1), layers(1, Compressed.ZSTD)
    manager = CacheManager(store)
    first = stack(manager, Source(*zipped), zipped)
    snapshot = replace(manager.records.get(first.id), id="with-a-snapshot", snapshot_id="snapshot", blob_only=False)
    manager.records.remove(first.id)
    manager.records.insert(snapshot)
    other = stack(manager, Source(*plain), plain)
    assert other.id != snapshot.id
    assert (other.snapshot_id, other.blob_only, other.blob) == ("snapshot", False, plain[0].descriptor.digest)


def test_merges_and_diffs_of_the_same_contents_lend_no_snapshot(store: MemoryStore) -> None:
    zipped, plain = layers(1), layers(1, Compressed.ZSTD)
    manager = CacheManager(store)
    first = stack(manager, Source(*zipped), zipped)
    for derived in (manager.merge([first]), manager.diff(None, first)):
        derived.get_remote()
        assert derived.chain_id == first.chain_id
    first.release()
    with store.metadata.transaction() as connection:
        connection.execute("DELETE FROM cache_records WHERE id = ?", (first.id,))
    other = stack(manager, Source(*plain), plain)
    assert other.blob_only
    assert other.snapshot_id == other.chain_id


def test_order_and_parents_make_other_records(store: MemoryStore) -> None:
    given = layers()
    manager = CacheManager(store)
    forth, back = (stack(manager, Source(*given), order) for order in (given, given[::-1]))
    assert forth.id != back.id
    assert forth.chain_id != back.chain_id


@pytest.mark.parametrize("lie", [{"size": 5}, {"media_type": OCI_LAYER + "+zstd"}, {"urls": ("https://a.test/x",)}])
@pytest.mark.parametrize("position", [0, 2])
def test_a_manifest_that_lies_does_not_stand_in_the_way_of_the_true_one(
    store: MemoryStore, lie: dict[str, object], position: int
) -> None:
    given = layers()
    source = Source(*given)
    manager = CacheManager(store)
    lying = list(given)
    lying[position] = replace(given[position], descriptor=replace(given[position].descriptor, **lie))  # type: ignore[arg-type]
    stack(manager, source, lying)
    remote = stack(manager, source, given).get_remote()
    said = [(desc.digest, desc.size, desc.media_type, desc.urls) for desc in remote.descriptors]
    assert said == [(each.descriptor.digest, each.descriptor.size, each.descriptor.media_type, ()) for each in given]
    remote.unlazy()
    assert stack(manager, source, given).id == stack(manager, source, given).id


def test_a_size_that_the_store_knows_better_is_refused(store: MemoryStore) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    manager = CacheManager(store)
    lying = replace(layer, descriptor=replace(layer.descriptor, size=5))
    lazy = stack(manager, source, [lying]).get_remote()
    add(store, layer)
    with pytest.raises(SizeMismatch):
        lazy.unlazy()
    with pytest.raises(SizeMismatch):
        stack(manager, source, [lying])
    assert source.opened == []


def test_a_diff_id_is_mandatory(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    with pytest.raises(InvalidArgument, match=UNCOMPRESSED):
        manager.get_by_blob(layer.descriptor, None, Source(layer).handlers())
    with pytest.raises(InvalidDigest):
        manager.get_by_blob(layer.descriptor.annotated({UNCOMPRESSED: "sha256:x"}), None, Source(layer).handlers())
    assert list(manager.records.all()) == []


def test_a_blob_that_nobody_can_bring_is_refused(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    with pytest.raises(NeedsRemoteProvider) as caught:
        manager.get_by_blob(described(layer), None, {})
    assert caught.value.digests == (layer.descriptor.digest,)
    add(store, layer)
    assert not manager.get_by_blob(described(layer), None, {}).is_lazy()


def test_loading_names_every_ancestor_that_nobody_can_bring(store: MemoryStore) -> None:
    given = layers()
    manager = CacheManager(store)
    ref = stack(manager, Source(*given), given)
    with pytest.raises(NeedsRemoteProvider) as caught:
        manager.get(ref.id)
    assert caught.value.digests == tuple(layer.descriptor.digest for layer in given)
    add(store, given[1])
    with pytest.raises(NeedsRemoteProvider) as caught:
        manager.get(ref.id, Source(given[2]).handlers())
    assert caught.value.digests == (given[0].descriptor.digest,)


def test_a_parent_brings_its_handlers(store: MemoryStore) -> None:
    lower, upper = layers(2)
    manager = CacheManager(store)
    parent = manager.get_by_blob(described(lower), None, Source(lower).handlers())
    ref = manager.get_by_blob(described(upper), parent, Source(upper).handlers())
    assert set(ref.handlers) == {lower.descriptor.digest, upper.descriptor.digest}


def test_image_names_are_checked_and_other_origins_are_not_taken_for_names(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    with pytest.raises(InvalidReference):
        manager.get_by_blob(described(layer), None, Source(layer).handlers(), image_ref="NOT A NAME")
    ref = manager.get_by_blob(described(layer), None, Source(layer).handlers(ref="session:/some where"))
    assert ref.image_refs == ()


def test_unknown_refs_are_not_found(store: MemoryStore) -> None:
    with pytest.raises(NotFound):
        CacheManager(store).get("nothing")


# ---- lazy


def test_the_store_decides_what_is_lazy(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    assert ref.is_lazy()
    add(store, layer)
    assert not ref.is_lazy()
    store.delete(layer.descriptor.digest)
    assert ref.is_lazy()


def test_a_blob_that_is_gone_is_lazy_when_a_snapshot_can_make_it_again(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    add(store, layer)
    made = manager.get_by_blob(described(layer), None)
    rebuildable = replace(manager.records.get(made.id), id="rebuildable", blob_only=False)
    manager.records.insert(rebuildable)
    store.delete(layer.descriptor.digest)
    assert manager.get("rebuildable").is_lazy()
    with pytest.raises(NeedsRemoteProvider):
        made.is_lazy()


# ---- oci_desc


def test_a_descriptor_has_diff_id_and_creation_time(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    created = described(layer).annotated({CREATED_AT: "2024-05-01T12:00:00.123456789+02:00"})
    desc = manager.get_by_blob(created, None, Source(layer).handlers()).oci_desc()
    assert desc.bare() == layer.descriptor.bare()
    assert desc.annotations == {UNCOMPRESSED: layer.diff_id, CREATED_AT: "2024-05-01T10:00:00.123456789Z"}


def test_a_lazy_descriptor_takes_only_the_blobs_own_annotations_of_the_handler(store: MemoryStore) -> None:
    (layer,) = layers(1)
    toc = {"containerd.io/snapshot/stargz/toc.digest": "sha256:" + "1" * 64, "something.else": "x"}
    manager = CacheManager(store)
    ref = manager.get_by_blob(described(layer), None, Source(layer).handlers(annotations=toc))
    assert "something.else" not in ref.oci_desc().annotations
    assert ref.oci_desc().annotations["containerd.io/snapshot/stargz/toc.digest"] == "sha256:" + "1" * 64
    assert "containerd.io/snapshot/stargz/toc.digest" not in ref.oci_desc({}).annotations


def test_foreign_layers_stay_foreign_only_on_request_and_with_urls(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    foreign = replace(described(layer), media_type=DOCKER_LAYER_FOREIGN + ".gzip", urls=("https://elsewhere/x",))
    ref = manager.get_by_blob(foreign, None, Source(layer).handlers())
    plain = ref.oci_desc()
    assert (plain.media_type, plain.urls) == (DOCKER_LAYER + ".gzip", ())
    kept = ref.oci_desc(prefer_nondistributable=True)
    assert (kept.media_type, kept.urls) == (DOCKER_LAYER_FOREIGN + ".gzip", ("https://elsewhere/x",))
    other = images.layer({"f": b"1"})
    without = replace(described(other), media_type=DOCKER_LAYER_FOREIGN + ".gzip")
    ref = manager.get_by_blob(without, None, Source(other).handlers())
    assert ref.oci_desc(prefer_nondistributable=True).media_type == DOCKER_LAYER + ".gzip"


def test_a_ref_without_a_blob_has_no_descriptor(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    with pytest.raises(NotFound, match="no blob"):
        manager.merge([stack(manager, Source(layer), [layer])]).oci_desc()


# ---- merges and diffs


def test_a_merge_is_its_parents_layers_one_after_another(store: MemoryStore) -> None:
    a, b, c = layers(3)
    manager = CacheManager(store)
    left, right = stack(manager, Source(a, b), [a, b]), stack(manager, Source(c), [c])
    merged = manager.merge([left, right, left])
    wanted = [layer.descriptor.digest for layer in (a, b, c, a, b)]
    assert [ref.blob for ref in merged.layer_chain()] == wanted
    twice = manager.get(manager.merge([merged, right]).id, Source(a, b, c).handlers())
    assert [ref.blob for ref in twice.layer_chain()] == [*wanted, c.descriptor.digest]
    with pytest.raises(InvalidArgument):
        manager.merge([])
    with pytest.raises(InvalidArgument, match="no blobs of its own"):
        manager.get_by_blob(described(c), merged, Source(c).handlers())


def test_a_diff_over_its_uppers_parent_is_the_upper_layer(store: MemoryStore) -> None:
    given = layers()
    manager = CacheManager(store)
    upper = stack(manager, Source(*given), given)
    lower = manager.get(upper.parents[0], Source(*given).handlers())
    base = lower.layer_chain()[0]
    assert [ref.id for ref in manager.diff(lower, upper).layer_chain()] == [upper.id]
    assert [ref.id for ref in manager.diff(None, base).layer_chain()] == [base.id]
    several = manager.diff(base, upper)
    assert [ref.id for ref in several.layer_chain()] == [several.id]


def test_merges_of_merges_are_bounded(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    for _ in range(40):
        ref = manager.merge([ref, ref])
    with pytest.raises(TooLarge):
        ref.layer_chain()


# ---- broken records


def test_a_parent_that_is_gone_is_reported_and_replaced(store: MemoryStore) -> None:
    given = layers()
    source = Source(*given)
    manager = CacheManager(store)
    ref = stack(manager, source, given)
    manager.records.remove(ref.parents[0])
    with pytest.raises(DataLoss, match="gone"):
        manager.get(ref.id, source.handlers())
    fresh = stack(manager, source, given)
    assert fresh.id != ref.id
    assert len(manager.get(fresh.id, source.handlers()).layer_chain()) == 3


def test_records_that_are_each_others_ancestors_are_damage(store: MemoryStore) -> None:
    manager = CacheManager(store)
    manager.records.insert(Record("a", Kind.MERGE, ("b",)))
    manager.records.insert(Record("b", Kind.MERGE, ("c", "a")))
    manager.records.insert(Record("c", Kind.BASE))
    with pytest.raises(DataLoss, match="own ancestor"):
        manager.get("a")
    manager.records.insert(Record("self", Kind.MERGE, ("self",)))
    with pytest.raises(DataLoss, match="own ancestor"):
        manager.get("self")


def test_a_damaged_record_is_data_loss(store: MemoryStore) -> None:
    manager = CacheManager(store)
    manager.records.insert(Record("a", Kind.BASE))
    with store.metadata.transaction() as connection:
        connection.execute("UPDATE cache_records SET kind = 'nonsense'")
    with pytest.raises(DataLoss, match="cannot be read"):
        manager.get("a")
    assert sqlite3.sqlite_version


# ---- counting


def test_refs_are_counted_and_released_once(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    twin = ref.clone()
    assert manager.in_use(ref.id) == 2
    for _ in range(2):
        ref.release()
    assert manager.in_use(ref.id) == 1
    with pytest.raises(Closed):
        ref.clone()
    with twin:
        pass
    assert manager.in_use(ref.id) == 0


def test_a_ref_is_removed_with_its_leases_when_nobody_needs_it(store: MemoryStore) -> None:
    given = layers(2)
    manager = CacheManager(store)
    ref = stack(manager, Source(*given), given)
    ref.get_remote().unlazy()
    base = ref.parents[0]
    assert [lease.id for lease in manager.leases.all()] == sorted(
        [ref.id, base, f"{ref.id}-variants", f"{base}-variants"]
    )
    with pytest.raises(FailedPrecondition, match="in use"):
        manager.remove(ref.id)
    ref.release()
    with pytest.raises(FailedPrecondition, match="built on it"):
        manager.remove(base)
    manager.remove(ref.id)
    manager.remove(base)
    manager.remove(base)
    assert manager.leases.all() == []
    assert list(manager.records.all()) == []
    assert manager.leases.resources(f"{ref.id}-variants") == []


def test_usage_counts_blob_and_variants_once(store: MemoryStore) -> None:
    (layer,) = layers(1)
    ref: Ref = stack(CacheManager(store), Source(layer), [layer])
    assert ref.usage() == 0
    ref.get_remote().unlazy()
    assert ref.usage() == layer.descriptor.size
