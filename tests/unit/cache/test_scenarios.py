"""Whole stories: all compressions at once over a shared lazy base, and what is in the store after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.cache import MAX_REMOTES, CacheManager, Ref, RefConfig, Remote, variants
from blobtee.cache.labels import UNCOMPRESSED
from blobtee.cache.leases import variants_lease
from blobtee.compression import Compression, Type
from blobtee.content import LocalStore
from blobtee.oci import Descriptor
from blobtee.testing import images
from tests.unit.cache.support import (
    Source,
    add,
    at_once,
    described,
    layers,
    names,
    stack,
    untouched,
    write_tree,
)

FORCED = {kind: RefConfig(Compression(kind, force=True)) for kind in Type}
DEPTH, WIDTH = 3, 2


def family(tmp_path: Path, manager: CacheManager, base: Ref) -> list[Ref]:
    """The leaves of three levels of two children each, overlays all, on `base`."""
    level = [base]
    made = 0
    for _ in range(DEPTH):
        above: list[Ref] = []
        for parent in level:
            for _ in range(WIDTH):
                made += 1
                path = write_tree(tmp_path / f"upper{made}", {f"file{made}": f"text {made} " * 500})
                above.append(manager.add_directory(path, parent, overlay=True))
        level = above
    return level


@pytest.mark.parametrize("lazy", [True, False])
def test_all_types_at_once_over_one_base_with_three_levels_of_two_children(
    lazy: bool, tmp_path: Path, store: LocalStore
) -> None:
    manager = CacheManager(store)
    given = layers(1, text="base " * 200)
    source = Source(*given)
    base = stack(manager, source, given)
    if not lazy:
        add(store, given[0])
    leaves = family(tmp_path, manager, base)
    assert len(leaves) == WIDTH**DEPTH

    def ask(leaf: Ref, kind: Type) -> list[Remote]:
        return list(leaf.get_remotes(True, FORCED[kind], all=True))

    wishes = [(leaf, kind) for leaf in leaves for kind in Type]
    outcomes = at_once(*[lambda leaf=leaf, kind=kind: ask(leaf, kind) for leaf, kind in wishes])
    found: dict[tuple[str, Type], Descriptor] = {}
    for (leaf, kind), remotes in zip(wishes, outcomes, strict=True):
        assert not isinstance(remotes, Exception), remotes
        (remote,) = remotes
        chain = leaf.layer_chain()
        assert len(remote.descriptors) == len(chain) == 1 + DEPTH
        for layer, desc in zip(chain, remote.descriptors, strict=True):
            assert desc.media_type == kind.media_type
            assert not variants.needs_conversion(store, desc, kind)
            # Sources are annotated only as long as the base is lazy: not for whoever came last.
            assert found.setdefault((layer.id, kind), desc).bare() == desc.bare()
            assert found[layer.id, kind].annotations[UNCOMPRESSED] == desc.annotations[UNCOMPRESSED]
    assert source.opened == ([given[0].descriptor.digest] if lazy else [])

    # Every blob of the store is accounted for by its layer and its type, and nothing else is there.
    count = 1 + sum(WIDTH**level for level in range(1, DEPTH + 1))
    assert len(found) == len({desc.digest for desc in found.values()}) == 4 * count
    assert {info.digest for info in store.walk()} == {desc.digest for desc in found.values()}
    for (layer_id, kind), desc in found.items():
        if kind is not Type.ESTARGZ:
            assert set(names(store, desc)) == set(names(store, found[layer_id, Type.UNCOMPRESSED]))
        layer = manager.get(layer_id, source.handlers())
        assert [digest for _, digest in manager.leases.resources(layer_id)] == [layer.blob]
        held = {digest for _, digest in manager.leases.resources(variants_lease(layer_id))}
        assert {*held, layer.blob} == {found[layer_id, each].digest for each in Type}
        assert variants.find(store, desc.digest, Type.GZIP).digest == found[layer_id, Type.GZIP].digest
    untouched(manager, *leaves)

    # Asking again makes nothing, also for a manager that starts later and may not create.
    before = sorted(info.digest for info in store.walk())
    late = CacheManager(store).get(leaves[0].id, source.handlers())
    for kind in Type:
        remote = late.get_remote(False, FORCED[kind])
        digests = [found[layer.id, kind].digest for layer in late.layer_chain()]
        assert [desc.digest for desc in remote.descriptors] == digests
    assert sorted(info.digest for info in store.walk()) == before


def test_every_combination_of_what_was_made_is_offered_once(tmp_path: Path, store: LocalStore) -> None:
    manager = CacheManager(store)
    paths = [write_tree(tmp_path / f"tree{n}", {f"file{m}": "x" * 500 for m in range(n + 1)}) for n in range(2)]
    ref = manager.add_directory(paths[1], manager.add_directory(paths[0]))
    for kind in Type:
        ref.get_remote(True, FORCED[kind])
    for kind in Type:
        remotes = list(ref.get_remotes(config=RefConfig(Compression(kind)), all=True))
        tops = {remote.descriptors[-1].digest for remote in remotes}
        wanted = ref.get_remote(config=FORCED[kind]).descriptors[-1].digest
        assert tops == {wanted, ref.blob}
        assert len(remotes) == len({tuple(d.digest for d in remote.descriptors) for remote in remotes})
        assert sum(remote.descriptors[-1].digest == wanted for remote in remotes) == 4
        for remote in remotes:
            for desc in remote.descriptors:
                remote.provider.reader_at(desc).close()


def test_forty_layers_with_variants_are_offered_one_at_a_time(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product has 4**40 members: what is counted here is what is made of it."""
    manager = CacheManager(store)
    pairs = [
        [images.layer({"f": b"%d" % n * 50}, compression=kind) for kind in images.Compressed]  # type: ignore[attr-defined]
        for n in range(40)
    ]
    given = [forms[1] for forms in pairs]
    ref = stack(manager, Source(*given), given)
    for layer, forms in zip(ref.layer_chain(), pairs, strict=True):
        for form in forms:
            add(store, form)
            variants.link(manager, layer, described(form))
    walks: list[str] = []
    true = variants.walk

    def walk(store: LocalStore, digest: str, *others: object) -> Iterator[Descriptor]:
        walks.append(digest)
        return true(store, digest, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(variants, "walk", walk)
    remotes = ref.get_remotes(config=RefConfig(Compression("zstd")), all=True)
    next(remotes)
    assert walks == []
    second = next(remotes)
    assert second.descriptors[-1].media_type == Type.ZSTD.media_type
    assert len(walks) == 40
    rest = list(remotes)
    assert 2 + len(rest) == MAX_REMOTES
    assert len(walks) == 40
    assert all(len(remote.descriptors) == 40 for remote in rest)
