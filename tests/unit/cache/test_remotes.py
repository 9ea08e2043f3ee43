"""Remotes: their descriptors, what they say without pulling, variants, and what is not to be had yet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from blobtee.cache import MAX_REMOTES, CacheManager, Ref, RefConfig, variants
from blobtee.cache.labels import CREATED_AT, IS_ESTARGZ, LINK, SOURCE, TOC_DIGEST, UNCOMPRESSED
from blobtee.cache.records import Kind, Record
from blobtee.compression import Compression, Type
from blobtee.content import MemoryStore
from blobtee.errors import InvalidReference, NeedsRemoteProvider, NoBlobs, NotFound, UnsupportedMediaType
from blobtee.oci import Compressed, Digest
from blobtee.oci.mediatypes import DOCKER_LAYER
from blobtee.testing import images
from tests.unit.cache.support import IMAGE, Source, add, content, described, layers, stack
from tests.unit.compression.test_estargz import footer, member

FORCED = {kind: RefConfig(Compression(kind, force=True)) for kind in Type}


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


def variant(store: MemoryStore, ref: Ref, layer: images.Layer) -> None:
    """Add `layer` to the store as a variant of the ref's blob."""
    add(store, layer)
    variants.link(ref.manager, ref, described(layer))


def two_forms(text: str, kind: Compressed = Compressed.ZSTD) -> tuple[images.Layer, images.Layer]:
    files = {"f": text.encode() * 40}
    return images.layer(files), images.layer(files, compression=kind)


def test_a_remote_has_the_layers_base_to_top_and_moves_nothing(store: MemoryStore) -> None:
    given = layers()
    source = Source(*given)
    remote = stack(CacheManager(store), source, given).get_remote()
    assert [desc.bare() for desc in remote.descriptors] == [layer.descriptor for layer in given]
    for desc, layer in zip(remote.descriptors, given, strict=True):
        assert desc.annotations[UNCOMPRESSED] == layer.diff_id
        assert desc.annotations[SOURCE + "registry.test:5000"] == "team/app"
    assert source.opened == []
    assert source.sessions == []


def test_info_of_a_lazy_blob_is_digest_and_size_without_pulling(store: MemoryStore) -> None:
    given = layers(2)
    source = Source(*given)
    provider = stack(CacheManager(store), source, given).get_remote().provider
    info = provider.info(given[1].descriptor.digest)
    assert (info.digest, info.size, dict(info.labels)) == (given[1].descriptor.digest, given[1].descriptor.size, {})
    assert source.opened == []
    add(store, given[1])
    assert provider.info(given[1].descriptor.digest).created_at > 0


def test_other_blobs_are_not_found(store: MemoryStore) -> None:
    (layer,) = layers(1)
    provider = stack(CacheManager(store), Source(layer), [layer]).get_remote().provider
    other = replace(layer.descriptor, digest=Digest.of(b"other"))
    with pytest.raises(NotFound):
        provider.reader_at(other)
    with pytest.raises(NotFound):
        provider.info(other.digest)


def test_every_image_of_a_lazy_layer_is_a_source_and_none_of_a_local_one(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    for name in ("registry.test:5000/other:1", "python", "registry.test:5000/team/app@sha256:" + "0" * 64):
        manager.get_by_blob(described(layer), None, Source(layer).handlers(), image_ref=name)
    annotations = ref.get_remote().descriptors[0].annotations
    assert annotations[SOURCE + "registry.test:5000"] == "team/app,other"
    assert annotations[SOURCE + "docker.io"] == "library/python"
    add(store, layer)
    assert not any(key.startswith(SOURCE) for key in ref.get_remote().descriptors[0].annotations)


def test_an_image_name_that_does_not_parse_is_an_error(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    manager.records.add_image_ref(ref.id, "NOT A NAME")
    with pytest.raises(InvalidReference):
        ref.get_remote()


def test_merges_are_remotes_of_all_their_layers(store: MemoryStore) -> None:
    a, b, c = layers(3)
    manager = CacheManager(store)
    source = Source(a, b, c)
    merged = manager.merge([stack(manager, source, [a, b]), stack(manager, source, [c])])
    remote = merged.get_remote()
    assert [desc.digest for desc in remote.descriptors] == [layer.descriptor.digest for layer in (a, b, c)]
    assert content(remote.provider.reader_at(remote.descriptors[2])) == c.data


def test_a_merge_in_a_store_that_can_only_be_read_is_a_remote_all_the_same(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = layers(2)
    manager = CacheManager(store)
    source = Source(a, b)
    merged = manager.merge([stack(manager, source, [a]), stack(manager, source, [b])])
    monkeypatch.setattr(store.metadata, "_read_only", True)
    assert len(merged.get_remote().descriptors) == 2
    assert merged.chain_id is None


def test_a_ref_without_a_blob_is_no_remote_unless_one_may_be_created(store: MemoryStore) -> None:
    given = layers(3)
    manager = CacheManager(store)
    source = Source(*given)
    upper = stack(manager, source, given)
    several = manager.diff(upper.layer_chain()[0], upper)
    with pytest.raises(NoBlobs):
        several.get_remote()
    assert source.opened == []


def test_creating_is_no_matter_where_all_blobs_are(store: MemoryStore) -> None:
    given = layers()
    ref = stack(CacheManager(store), Source(*given), given)
    assert ref.get_remote(create_if_needed=True).descriptors == ref.get_remote().descriptors


def test_a_blob_that_nobody_can_bring_is_said_when_the_remote_is_made(store: MemoryStore) -> None:
    (layer,) = layers(1)
    ref = stack(CacheManager(store), Source(layer), [layer])
    with pytest.raises(NeedsRemoteProvider):
        ref.get_remote(handlers={})


@pytest.mark.parametrize("kind", list(Compressed))
def test_a_missing_media_type_is_detected_from_the_bytes(kind: Compressed, store: MemoryStore) -> None:
    (layer,) = layers(1, kind)
    add(store, layer)
    ref = CacheManager(store).get_by_blob(replace(described(layer), media_type=""), None)
    suffix = "" if kind is Compressed.NONE else f".{kind.value}"
    assert ref.get_remote().descriptors[0].media_type == DOCKER_LAYER + suffix
    store.delete(layer.descriptor.digest)
    with pytest.raises(UnsupportedMediaType, match="no media type"):
        ref.get_remote(handlers=Source(layer).handlers())


# ---- forced compression


def test_forced_and_no_conversion_needed_a_lazy_layer_stays_lazy(store: MemoryStore) -> None:
    for kind in Compressed:
        given = layers(2, kind, text=kind.value)
        source = Source(*given)
        ref = stack(CacheManager(store), source, given)
        remote = ref.get_remote(True, FORCED[Type(kind.value)])
        assert [desc.bare() for desc in remote.descriptors] == [layer.descriptor for layer in given]
        assert all(each.is_lazy() for each in ref.layer_chain())
        assert source.opened == []


def test_a_conversion_that_is_needed_and_not_allowed_is_said_before_anything_is_fetched(store: MemoryStore) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    ref = stack(CacheManager(store), source, [layer])
    for wanted in (Type.ZSTD, Type.UNCOMPRESSED, Type.ESTARGZ):
        with pytest.raises(NotFound, match=wanted.value):
            ref.get_remote(False, FORCED[wanted])
    assert source.opened == []


def test_a_known_variant_is_used_when_forced(store: MemoryStore) -> None:
    main, twin = two_forms("text")
    manager = CacheManager(store)
    foreign = replace(described(main), urls=("https://elsewhere/x",))
    ref = manager.get_by_blob(foreign, None, Source(main).handlers())
    add(store, main)
    variant(store, ref, twin)
    config = RefConfig(Compression("zstd", force=True), prefer_nondistributable=True)
    remote = ref.get_remote(config=config)
    (desc,) = remote.descriptors
    assert desc.bare() == twin.descriptor
    assert desc.urls == ()
    assert desc.annotations == {UNCOMPRESSED: twin.diff_id}
    assert CREATED_AT not in desc.annotations
    assert content(remote.provider.reader_at(desc)) == twin.data


def test_a_known_variant_of_a_lazy_layer_is_found_and_keeps_the_sources_that_were_added(store: MemoryStore) -> None:
    main, twin = two_forms("text")
    source = Source(main)
    manager = CacheManager(store)
    ref = stack(manager, source, [main])
    add(store, main)
    variant(store, ref, twin)
    store.delete(main.descriptor.digest)
    # What is lazy has no labels, so nothing links from it any more: the lease of the ref knows.
    (desc,) = ref.get_remote(config=FORCED[Type.ZSTD]).descriptors
    assert desc.bare() == twin.descriptor
    assert desc.annotations == {UNCOMPRESSED: twin.diff_id, SOURCE + "registry.test:5000": "team/app"}
    assert source.opened == []
    assert ref.usage() == twin.descriptor.size


def estargz(text: str) -> images.Layer:
    body = member(text)
    data = body + member("stargz.index.json") + footer(len(body))
    plain = images.layer({"f": text.encode()})
    desc = replace(plain.descriptor, digest=Digest.of(data), size=len(data))
    return images.Layer(data, desc, plain.diff_id)


def test_estargz_is_told_from_gzip_by_its_bytes_and_remembered(store: MemoryStore) -> None:
    layer = estargz("one")
    add(store, layer)
    ref = CacheManager(store).get_by_blob(described(layer), None)
    with pytest.raises(NotFound, match="gzip"):
        ref.get_remote(False, FORCED[Type.GZIP])
    assert store.info(layer.descriptor.digest).labels[IS_ESTARGZ] == "true"
    assert ref.get_remote(True, FORCED[Type.ESTARGZ]).descriptors[0].digest == layer.descriptor.digest
    (plain,) = layers(1)
    add(store, plain)
    assert variants.needs_conversion(store, plain.descriptor, Type.ESTARGZ)
    assert store.info(plain.descriptor.digest).labels[IS_ESTARGZ] == "false"
    assert not variants.needs_conversion(store, plain.descriptor, Type.GZIP)


def test_a_lazy_estargz_layer_is_told_by_its_annotation(store: MemoryStore) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    handlers = source.handlers(annotations={TOC_DIGEST: "sha256:" + "1" * 64})
    ref = CacheManager(store).get_by_blob(described(layer), None, handlers)
    assert ref.get_remote(True, FORCED[Type.ESTARGZ]).descriptors[0].annotations[TOC_DIGEST]
    with pytest.raises(NotFound, match="gzip"):
        ref.get_remote(False, FORCED[Type.GZIP])
    assert source.opened == []


def test_what_is_no_layer_needs_no_conversion(store: MemoryStore) -> None:
    (layer,) = layers(1)
    odd = replace(layer.descriptor, media_type="application/x-odd")
    assert not any(variants.needs_conversion(store, odd, kind) for kind in Type)


# ---- all combinations


def test_all_gives_main_first_then_each_combination_with_the_right_top(store: MemoryStore) -> None:
    (base, base_zstd), (top, top_zstd) = two_forms("base"), two_forms("top")
    source = Source(base, top)
    ref = stack(CacheManager(store), source, [base, top])
    for layer in (base, top):
        add(store, layer)
    lower, upper = ref.layer_chain()
    zstd = RefConfig(Compression("zstd"))
    assert len(list(ref.get_remotes(config=zstd, all=True))) == 1
    variant(store, lower, base_zstd)
    variant(store, upper, top_zstd)
    found = [tuple(desc.digest for desc in remote.descriptors) for remote in ref.get_remotes(config=zstd, all=True)]
    names = {
        layer.descriptor.digest: name for layer, name in ((base, "b"), (top, "t"), (base_zstd, "B"), (top_zstd, "T"))
    }
    assert ["".join(names[digest] for digest in remote) for remote in found] == ["bt", "bT", "BT"]
    assert len(list(ref.get_remotes(config=zstd))) == 1
    assert len(list(ref.get_remotes(config=FORCED[Type.ZSTD], all=True))) == 1
    gzip = ["".join(names[d.digest] for d in remote.descriptors) for remote in ref.get_remotes(all=True)]
    assert gzip == ["bt", "Bt"]


def test_a_lazy_layer_in_a_combination_can_still_be_read(store: MemoryStore) -> None:
    (base, _), (top, top_zstd) = two_forms("base"), two_forms("top")
    source = Source(base, top)
    ref = stack(CacheManager(store), source, [base, top])
    add(store, top)
    variant(store, ref.layer_chain()[1], top_zstd)
    _, other = ref.get_remotes(config=RefConfig(Compression("zstd")), all=True)
    assert [desc.digest for desc in other.descriptors] == [base.descriptor.digest, top_zstd.descriptor.digest]
    assert content(other.provider.reader_at(other.descriptors[0])) == base.data
    assert content(other.provider.reader_at(other.descriptors[1])) == top_zstd.data
    assert source.opened == [base.descriptor.digest]


def test_many_combinations_are_made_one_at_a_time_and_capped(store: MemoryStore) -> None:
    forms = [two_forms(f"layer {number}") for number in range(40)]
    given = [main for main, _ in forms]
    ref = stack(CacheManager(store), Source(*given), given)
    for layer, (main, twin) in zip(ref.layer_chain(), forms, strict=True):
        add(store, main)
        variant(store, layer, twin)
    remotes = ref.get_remotes(config=RefConfig(Compression("zstd")), all=True)
    assert len(list(itertools.islice(remotes, 3))) == 3
    everything = list(ref.get_remotes(config=RefConfig(Compression("zstd")), all=True))
    assert len(everything) == MAX_REMOTES
    assert len({tuple(desc.digest for desc in remote.descriptors) for remote in everything}) == MAX_REMOTES


# ---- variants


def test_links_that_form_loops_or_lead_nowhere_are_walked_once_in_order(store: MemoryStore) -> None:
    files = {"f": b"x" * 100}
    forms = [images.layer(files, compression=kind) for kind in Compressed]
    ref = CacheManager(store).get_by_blob(described(forms[0]), None, Source(forms[0]).handlers())
    add(store, forms[0])
    for layer in forms:
        if layer is not forms[0]:
            variant(store, ref, layer)
    variants.link(ref.manager, ref, described(forms[0]))
    digests = [layer.descriptor.digest for layer in forms]
    gone = Digest.of(b"gone")
    store.update(digests[1], {LINK + gone: gone, LINK + digests[2]: digests[2], LINK + "odd": "not a digest"})
    store.update(digests[2], {LINK + digests[1]: digests[1]})
    walked = [desc.digest for desc in variants.walk(store, digests[0])]
    assert walked == [digests[0], *sorted(digests[1:])]
    assert [desc.digest for desc in variants.walk(store, digests[0])] == walked
    assert variants.find(store, digests[0], Type.ZSTD).digest == digests[list(Compressed).index(Compressed.ZSTD)]
    with pytest.raises(NotFound):
        variants.find(store, digests[0], Type.ESTARGZ)
    assert ref.usage() == sum(layer.descriptor.size for layer in forms)
    assert ref.manager.leases.resources(f"{ref.id}-variants") == sorted(("content", digest) for digest in digests)
    assert list(variants.walk(store, gone)) == []


def test_linking_a_blob_that_is_not_there_is_not_found(store: MemoryStore) -> None:
    main, twin = two_forms("x")
    ref = stack(CacheManager(store), Source(main), [main])
    with pytest.raises(NotFound):
        variants.link(ref.manager, ref, described(twin))


# ---- leases


def test_temporary_leases_are_there_only_while_something_is_protected(store: MemoryStore) -> None:
    leases = CacheManager(store).leases
    with leases.hold() as outer:
        assert leases.all() == []
        leases.protect(["sha256:x"])
        (lease,) = leases.all()
        assert (lease.id, lease.labels["buildkit/lease.temporary"]) == (outer, "true")
        assert lease.expires_at == lease.created_at + 3600 * 10**9
        with leases.hold() as inner:
            assert inner == outer
            leases.protect(["sha256:y"])
        assert leases.resources(outer) == [("content", "sha256:x"), ("content", "sha256:y")]
    assert leases.all() == []
    leases.protect(["sha256:z"])
    assert leases.all() == []
    with pytest.raises(NotFound):
        leases.add("nothing", ["sha256:z"])


def test_a_lease_goes_when_its_work_fails(store: MemoryStore) -> None:
    leases = CacheManager(store).leases

    def work() -> None:
        with leases.hold():
            leases.protect(["sha256:x"])
            assert len(leases.all()) == 1
            raise NotFound("anything")

    with pytest.raises(NotFound):
        work()
    assert leases.all() == []


def test_leases_of_processes_that_are_gone_are_dropped_at_start(store: MemoryStore) -> None:
    leases = CacheManager(store).leases
    with leases.hold() as mine:
        leases.protect(["sha256:x"])
        with store.metadata.transaction() as connection:
            insert = "INSERT INTO cache_leases VALUES (?, 0, ?, 0, ?, '{}')"
            far = 2**62
            connection.execute(insert, ("dead", far, "999999999:other"))
            connection.execute(insert, ("another's number", far, "1:other:not when 1 began"))
            connection.execute(insert, ("expired, at work", 1, "1:other"))
            connection.execute(insert, ("alive", far, "1:other"))
        leases.ensure("a ref's")
        CacheManager(store)
        assert [lease.id for lease in leases.all()] == sorted([mine, "alive", "a ref's", "expired, at work"])


def test_nothing_stays_leased_after_a_remote_was_made_and_fetched(store: MemoryStore) -> None:
    (layer,) = layers(1)
    manager = CacheManager(store)
    ref = stack(manager, Source(layer), [layer])
    ref.get_remote().unlazy()
    assert {lease.id for lease in manager.leases.all()} == {ref.id, f"{ref.id}-variants"}
    manager.records.insert(Record("bare", Kind.BASE))
    assert IMAGE in ref.image_refs
