"""Forced compression: variants made to order, of blobs that are brought once."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blobtee import conversion
from blobtee.cache import CacheManager, Handler, Ref, RefConfig, Remote, labels, variants
from blobtee.cache.labels import CREATED_AT, IS_ESTARGZ, LINK, MEDIA_TYPE, SOURCE, TOC_DIGEST, UNCOMPRESSED
from blobtee.cache.leases import current_lease, variants_lease
from blobtee.compression import Compression, Type, is_estargz
from blobtee.content import LocalStore
from blobtee.errors import Cancelled, CorruptData, DigestMismatch, LazyUnavailable, NotFound
from blobtee.oci import Compressed, Descriptor, Digest
from blobtee.oci.mediatypes import OCI_LAYER, OCI_LAYER_NONDISTRIBUTABLE
from blobtee.registry import Registry
from blobtee.tasks import Cancellation, Event, reporting, scope, sleep
from blobtee.testing import MemoryRegistry, images
from blobtee.transfer import pull
from tests.unit.cache.support import (
    IMAGE,
    Source,
    add,
    at_once,
    content,
    described,
    layers,
    names,
    stack,
    untouched,
    wait_for,
    write_tree,
)

FORCED = {kind: RefConfig(Compression(kind, force=True)) for kind in Type}


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Digest, Type]]:
    """What was converted to what."""
    made: list[tuple[Digest, Type]] = []
    true = conversion.convert

    def convert(store: Any, desc: Descriptor, compression: Compression, **options: Any) -> Descriptor:
        made.append((desc.digest, compression.type))
        return true(store, desc, compression, **options)

    monkeypatch.setattr(conversion, "convert", convert)
    return made


@pytest.mark.parametrize("kind", [Type.UNCOMPRESSED, Type.ZSTD, Type.ESTARGZ])
def test_a_lazy_layer_is_brought_once_and_converted(kind: Type, manager: CacheManager) -> None:
    given = layers(2)
    source = Source(*given)
    ref = stack(manager, source, given)
    remote = ref.get_remote(True, FORCED[kind])
    assert sorted(source.opened) == sorted(layer.descriptor.digest for layer in given)
    for number, (desc, layer) in enumerate(zip(remote.descriptors, given, strict=True)):
        assert desc.media_type == kind.media_type
        assert desc.digest != layer.descriptor.digest
        assert desc.urls == ()
        assert desc.annotations[SOURCE + "registry.test:5000"] == "team/app"
        assert CREATED_AT not in desc.annotations
        assert f"file{number}" in names(manager.store, desc)
        if kind is not Type.ESTARGZ:
            assert desc.annotations[UNCOMPRESSED] == layer.diff_id
        else:
            assert TOC_DIGEST in desc.annotations
        labels = manager.store.info(desc.digest).labels
        assert labels[MEDIA_TYPE] == kind.media_type
        assert labels[UNCOMPRESSED] == desc.annotations[UNCOMPRESSED]
        assert labels[LINK + layer.descriptor.digest] == layer.descriptor.digest
        assert manager.store.info(layer.descriptor.digest).labels[LINK + desc.digest] == desc.digest
    untouched(manager, ref)
    again = ref.get_remote(False, FORCED[kind])
    assert [desc.digest for desc in again.descriptors] == [desc.digest for desc in remote.descriptors]
    assert len(source.opened) == 2
    for each, desc in zip(ref.layer_chain(), remote.descriptors, strict=True):
        held = manager.leases.resources(variants_lease(each.id))
        assert held == sorted(("content", digest) for digest in (each.blob or "", desc.digest))
        assert each.usage() == each.size + desc.size


def test_only_the_layers_that_need_it_are_brought_and_converted(
    manager: CacheManager, conversions: list[tuple[Digest, Type]]
) -> None:
    (zipped,), (packed,) = layers(1), layers(1, Compressed.ZSTD, text="other")
    source = Source(zipped, packed)
    ref = stack(manager, source, [zipped, packed])
    remote = ref.get_remote(True, FORCED[Type.ZSTD])
    assert source.opened == [zipped.descriptor.digest]
    assert conversions == [(zipped.descriptor.digest, Type.ZSTD)]
    assert remote.descriptors[1].bare() == packed.descriptor
    assert ref.is_lazy()


def test_a_lazy_image_of_a_real_registry_is_converted_without_a_second_download(tmp_path: Path) -> None:
    image = images.image([{"a": b"1" * 10_000}, {"b": b"2" * 10_000}])
    with MemoryRegistry() as server, LocalStore(tmp_path / "store") as store, Registry() as registry:
        name = image.push(server, "team/app")
        with pull(name, store, lazy=True, registry=registry) as pulled:
            assert pulled.ref is not None
            ref = pulled.ref
            found = at_once(
                *[
                    lambda config=FORCED[kind]: ref.get_remote(True, config).descriptors
                    for kind in Type
                    for _ in range(3)
                ]
            )
            assert server.counters.requests["GET", "blob"] == 2
            assert server.counters.sent["blob"] == sum(layer.descriptor.size for layer in image.layers)
            for descs in found:
                assert not isinstance(descs, Exception)
                assert [name for desc in descs for name in names(store, desc) if name in "ab"] == ["a", "b"]
            assert len({desc.digest for descs in found if not isinstance(descs, Exception) for desc in descs}) == 8
            untouched(ref.manager, ref)


def unsourced(remote: Remote) -> list[Descriptor]:
    """Without where it can be had, which is for those alone who come while the layer is lazy."""
    return [desc.bare().annotated(labels.kept(desc.annotations)) for desc in remote.descriptors]


def test_many_who_ask_for_the_same_share_one_conversion(
    store: LocalStore, conversions: list[tuple[Digest, Type]]
) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    refs = [stack(CacheManager(store), source, [layer]) for _ in range(4)]
    found = at_once(*[lambda ref=ref: unsourced(ref.get_remote(True, FORCED[Type.ZSTD])) for ref in refs * 4])
    assert not isinstance(found[0], Exception)
    assert all(each == found[0] for each in found)
    assert source.opened == [layer.descriptor.digest]
    assert conversions == [(layer.descriptor.digest, Type.ZSTD)]


def test_each_ref_that_waited_for_one_conversion_is_linked_to_it(
    manager: CacheManager, conversions: list[tuple[Digest, Type]]
) -> None:
    (layer,) = layers(1)
    other = images.layer({"other": b"base"}, compression=Compressed.ZSTD)
    source = Source(layer, other)
    refs = [stack(manager, source, [layer]), stack(manager, source, [other, layer])]
    found = at_once(*[lambda ref=ref: unsourced(ref.get_remote(True, FORCED[Type.ZSTD]))[-1] for ref in refs])
    assert not isinstance(found[0], Exception)
    assert found[0] == found[1]
    assert conversions == [(layer.descriptor.digest, Type.ZSTD)]
    # Whoever came after the conversion finds it by the links of the main blob, which its own lease holds.
    assert all(variants.find(manager.store, ref.blob or "", Type.ZSTD).digest == found[0].digest for ref in refs)


def test_a_variant_of_any_level_will_do(manager: CacheManager) -> None:
    (layer,) = layers(1)
    ref = stack(manager, Source(layer), [layer])
    found = [
        ref.get_remote(True, RefConfig(Compression("zstd", force=True, level=level))).descriptors for level in (1, 19)
    ]
    assert [desc.digest for desc in found[0]] == [desc.digest for desc in found[1]]


def test_estargz_that_only_its_bytes_can_tell_is_not_converted(
    manager: CacheManager, conversions: list[tuple[Digest, Type]]
) -> None:
    (layer,) = layers(1)
    base = stack(manager, Source(layer), [layer])
    (made,) = base.get_remote(True, FORCED[Type.ESTARGZ]).descriptors
    with manager.store.reader_at(made) as reader:
        assert is_estargz(reader)
    conversions.clear()
    blob = images.Layer(content(manager.store.reader_at(made)), made.bare(), Digest(made.annotations[UNCOMPRESSED]))
    with LocalStore(manager.store.root / "other") as other:  # type: ignore[attr-defined]
        source = Source(blob)
        ref = CacheManager(other).get_by_blob(described(blob), None, source.handlers())
        (desc,) = ref.get_remote(True, FORCED[Type.ESTARGZ]).descriptors
        assert desc.bare() == made.bare()
        assert source.opened == [made.digest]
        assert other.info(made.digest).labels[IS_ESTARGZ] == "true"
        assert conversions == []
        (plain,) = ref.get_remote(True, FORCED[Type.GZIP]).descriptors
        assert plain.annotations[UNCOMPRESSED] == layer.diff_id
        assert names(other, plain) == ["file0"]


# ---- layers that may not be distributed


@pytest.mark.parametrize("prefer", [False, True])
def test_foreign_layers_are_converted_to_distributable_ones_without_urls(prefer: bool, manager: CacheManager) -> None:
    """Forcing is stronger than the preference: a layer of another type cannot be had from its urls."""
    (layer,) = layers(1)
    foreign = replace(
        described(layer), media_type=OCI_LAYER_NONDISTRIBUTABLE + "+gzip", urls=("https://elsewhere.test/x",)
    )
    ref = manager.get_by_blob(foreign, None, Source(layer).handlers())
    config = replace(FORCED[Type.ZSTD], prefer_nondistributable=prefer)
    (desc,) = ref.get_remote(True, config).descriptors
    assert (desc.media_type, desc.urls) == (OCI_LAYER + "+zstd", ())


def test_foreign_layers_of_the_right_type_stay_foreign_when_that_is_preferred(manager: CacheManager) -> None:
    (layer,) = layers(1)
    foreign = replace(
        described(layer), media_type=OCI_LAYER_NONDISTRIBUTABLE + "+gzip", urls=("https://elsewhere.test/x",)
    )
    source = Source(layer)
    ref = manager.get_by_blob(foreign, None, source.handlers())
    (desc,) = ref.get_remote(True, replace(FORCED[Type.GZIP], prefer_nondistributable=True)).descriptors
    assert (desc.media_type, desc.urls) == (foreign.media_type, foreign.urls)
    (desc,) = ref.get_remote(True, FORCED[Type.GZIP]).descriptors
    assert (desc.media_type, desc.urls) == (OCI_LAYER + "+gzip", ())
    assert source.opened == []


# ---- failures


def test_a_source_that_is_down_is_unavailable_and_trying_again_works(manager: CacheManager) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    ref = stack(manager, source, [layer])
    data = source.blobs.pop(layer.descriptor.digest)
    with pytest.raises(LazyUnavailable):
        ref.get_remote(True, FORCED[Type.ZSTD])
    source.blobs[layer.descriptor.digest] = data
    assert names(manager.store, ref.get_remote(True, FORCED[Type.ZSTD]).descriptors[0]) == ["file0"]
    untouched(manager, ref)


def test_a_blob_that_does_not_decode_leaves_nothing_but_itself(manager: CacheManager) -> None:
    good = images.layer({"a": bytes(range(256)) * 50})
    data = good.data[:-20]
    bad = images.Layer(data, replace(good.descriptor, digest=Digest.of(data), size=len(data)), good.diff_id)
    ref = stack(manager, Source(bad), [bad])
    with pytest.raises(CorruptData):
        ref.get_remote(True, FORCED[Type.ZSTD])
    assert [info.digest for info in manager.store.walk()] == [bad.descriptor.digest]
    untouched(manager, ref)


def test_a_diff_id_that_is_a_lie_is_found_out(manager: CacheManager) -> None:
    (layer,) = layers(1)
    lying = replace(layer, diff_id=Digest.of(b"something else"))
    ref = stack(manager, Source(lying), [lying])
    with pytest.raises(DigestMismatch):
        ref.get_remote(True, FORCED[Type.ZSTD])
    assert [info.digest for info in manager.store.walk()] == [layer.descriptor.digest]
    untouched(manager, ref)


def test_an_error_in_one_layer_cancels_the_others(manager: CacheManager) -> None:
    given = layers(2)
    together = threading.Barrier(2)
    cancelled: list[BaseException] = []

    def before(desc: Descriptor) -> None:
        together.wait(30)
        if desc.digest == given[0].descriptor.digest:
            raise NotFound("this one fails")
        try:
            sleep(60)
        except Cancelled as error:
            cancelled.append(error)
            raise

    ref = stack(manager, Source(*given, before=before), given)
    with pytest.raises(LazyUnavailable, match="this one fails"):
        ref.get_remote(True, FORCED[Type.ZSTD])
    wait_for(lambda: len(cancelled) == 1)
    assert len(cancelled) == 1
    assert list(manager.store.walk()) == []


def test_one_who_gives_up_leaves_the_conversion_to_the_others(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layer,) = layers(1)
    reached, go = threading.Event(), threading.Event()
    true = conversion.convert

    def convert(*args: Any, **options: Any) -> Descriptor:
        reached.set()
        while not go.is_set():
            sleep(0.002)
        return true(*args, **options)

    monkeypatch.setattr(conversion, "convert", convert)
    ref = stack(manager, Source(layer), [layer])
    switch = Cancellation()
    outcome: dict[str, Any] = {}

    def ask(name: str, cancellation: Cancellation | None) -> None:
        try:
            with scope(cancellation):
                outcome[name] = ref.get_remote(True, FORCED[Type.ZSTD]).descriptors
        except Cancelled as error:
            outcome[name] = error

    first = threading.Thread(target=ask, args=("first", switch))
    first.start()
    assert reached.wait(30)
    second = threading.Thread(target=ask, args=("second", None))
    second.start()
    wait_for(lambda: sum(len(call.waiters) for call in shared(manager)) == 2)
    switch.cancel()
    first.join(60)
    go.set()
    second.join(60)
    assert isinstance(outcome["first"], Cancelled)
    assert outcome["second"][0].media_type == Type.ZSTD.media_type
    untouched(manager, ref)


def shared(manager: CacheManager) -> list[Any]:
    """The conversions under way: seen from outside it cannot be told, so this looks inside."""
    from blobtee.cache.flights import flights

    return list(flights(manager.store).convert._calls.values())


def test_a_failed_fetch_for_a_conversion_is_shown_as_failed(manager: CacheManager) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    ref = stack(manager, source, [layer])
    source.blobs.clear()
    events: list[Event] = []
    with reporting(events.append), pytest.raises(LazyUnavailable):
        ref.get_remote(True, FORCED[Type.ZSTD])
    finals = [event for event in events if event.final]
    assert finals
    assert all(event.error is not None and event.completed is None for event in finals)


# ---- leases, and what is gone


def test_a_variant_is_leased_before_it_is_a_blob(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,) = layers(1)
    ref = stack(manager, Source(layer), [layer])
    held: list[tuple[str, str]] = []
    true = manager.store.writer

    def writer(name: str, **options: Any) -> Any:
        opened = true(name, **options)
        commit = opened.commit

        def committing(*args: Any, **named: Any) -> Any:
            lease = current_lease()
            assert lease is not None
            held.append((opened.digest, lease))
            assert ("content", opened.digest) in manager.leases.resources(lease)
            return commit(*args, **named)

        monkeypatch.setattr(opened, "commit", committing)
        return opened

    assert isinstance(manager.store, LocalStore)
    take_in = manager.store.take_in

    def taking_in(path: Path, digest: Digest, labels: Any) -> Any:
        lease = current_lease()
        assert lease is not None
        held.append((digest, lease))
        assert ("content", digest) in manager.leases.resources(lease)
        return take_in(path, digest, labels)

    monkeypatch.setattr(manager.store, "writer", writer)
    monkeypatch.setattr(manager.store, "take_in", taking_in)
    with manager.leases.hold() as mine:
        (desc,) = ref.get_remote(True, FORCED[Type.ZSTD]).descriptors
        assert ("content", desc.digest) in manager.leases.resources(mine)
        assert mine not in [lease for _, lease in held]
    assert [digest for digest, _ in held] == [layer.descriptor.digest, desc.digest]


def test_a_variant_that_is_gone_is_made_again_when_it_is_read(manager: CacheManager) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    ref = stack(manager, source, [layer])
    remote = ref.get_remote(True, FORCED[Type.ZSTD])
    (desc,) = remote.descriptors
    before = content(remote.provider.reader_at(desc))
    for info in list(manager.store.walk()):
        manager.store.delete(info.digest)
    assert remote.provider.info(desc.digest).size == desc.size
    assert content(remote.provider.reader_at(desc)) == before
    assert source.opened == [layer.descriptor.digest] * 2
    untouched(manager, ref)


def test_a_variant_by_somebody_else_that_is_gone_cannot_be_made_again(manager: CacheManager) -> None:
    main = images.layer({"f": b"x" * 1000})
    twin = images.layer({"f": b"x" * 1000}, compression=Compressed.ZSTD, level=22)
    ref = stack(manager, Source(main), [main])
    add(manager.store, twin)
    variants.link(manager, ref, described(twin))
    remote = ref.get_remote(True, FORCED[Type.ZSTD])
    assert remote.descriptors[0].bare() == twin.descriptor
    manager.store.delete(twin.descriptor.digest)
    with pytest.raises(NotFound, match="not in the store any more"):
        remote.provider.reader_at(remote.descriptors[0])


def test_a_handler_for_a_variant_brings_it(manager: CacheManager) -> None:
    main, twin = images.layer({"f": b"x"}), images.layer({"f": b"x"}, compression=Compressed.ZSTD)
    source = Source(main, twin)
    ref = manager.get_by_blob(described(main), None, source.handlers())
    add(manager.store, twin)
    variants.link(manager, ref, described(twin))
    remote = ref.get_remote(True, FORCED[Type.ZSTD])
    manager.store.delete(twin.descriptor.digest)
    assert content(remote.provider.reader_at(remote.descriptors[0])) == twin.data
    assert source.opened == [twin.descriptor.digest]


def test_variants_are_seen_from_every_side_and_after_one_side_is_gone(tmp_path: Path, manager: CacheManager) -> None:
    ref = manager.add_directory(write_tree(tmp_path / "tree", {"f": "x" * 1000}))
    found = {kind: ref.get_remote(True, FORCED[kind]).descriptors[0] for kind in Type}
    for start in found.values():
        for kind, desc in found.items():
            assert variants.find(manager.store, start.digest, kind).digest == desc.digest
    # The same contents under another blob are another ref, with the variants that hang on that blob.
    other: Ref = manager.get_by_blob(found[Type.ZSTD], None)
    assert other.id != ref.id
    assert other.get_remote(False, FORCED[Type.GZIP]).descriptors[0].digest == found[Type.GZIP].digest
    ref.release()
    manager.remove(ref.id)
    for kind, desc in found.items():
        assert other.get_remote(False, FORCED[kind]).descriptors[0].digest == desc.digest


def test_a_main_blob_without_labels_is_seen_from_its_variants(manager: CacheManager) -> None:
    (layer,) = layers(1)
    add(manager.store, layer)
    ref = manager.get_by_blob(described(layer), None)
    assert MEDIA_TYPE not in manager.store.info(layer.descriptor.digest).labels
    (desc,) = ref.get_remote(True, FORCED[Type.ZSTD]).descriptors
    found = variants.find(manager.store, desc.digest, Type.GZIP)
    assert found.bare() == layer.descriptor
    assert found.annotations == {UNCOMPRESSED: layer.diff_id}


def test_the_same_contents_under_two_digests_are_two_layers_with_variants_of_their_own(manager: CacheManager) -> None:
    one, two = (images.layer({"f": b"x" * 1000}, level=level) for level in (1, 9))
    assert one.diff_id == two.diff_id
    assert one.descriptor.digest != two.descriptor.digest
    refs = [stack(manager, Source(layer), [layer]) for layer in (one, two)]
    assert refs[0].chain_id == refs[1].chain_id
    assert refs[0].blob_chain_id != refs[1].blob_chain_id
    zstd = [ref.get_remote(True, FORCED[Type.ZSTD]).descriptors[0] for ref in refs]
    assert zstd[0].digest == zstd[1].digest
    assert [ref.get_remote(True, FORCED[Type.GZIP]).descriptors[0].digest for ref in refs] == [
        layer.descriptor.digest for layer in (one, two)
    ]
    untouched(manager, *refs)


def test_an_origin_that_is_no_image_reference_makes_no_annotation(manager: CacheManager) -> None:
    (layer,) = layers(1)
    handler = Handler(Source(layer).for_session, ref="session:/some where")
    ref = manager.get_by_blob(described(layer), None, {layer.descriptor.digest: handler})
    (desc,) = ref.get_remote(True, FORCED[Type.ZSTD]).descriptors
    assert dict(desc.annotations) == {UNCOMPRESSED: layer.diff_id}
    assert IMAGE not in ref.image_refs
