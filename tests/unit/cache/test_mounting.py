"""Refs as directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.cache import CacheManager, RefConfig
from blobtee.compression import Compression, Type
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import CorruptData, InvalidArgument, LazyUnavailable, NeedsRemoteProvider, NotFound
from blobtee.oci import Compressed
from blobtee.testing import images
from tests.unit.cache.support import Source, add, described, layers, read_tree, stack, untouched, write_tree


def test_a_whole_tree_is_its_own_directory(tmp_path: Path, manager: CacheManager) -> None:
    path = write_tree(tmp_path / "tree", {"a": "1"})
    with manager.mounted(manager.add_directory(path)) as mounted:
        assert mounted == path
    assert read_tree(path) == {"a": "1"}


@pytest.mark.parametrize("compression", list(Compressed))
def test_an_images_layers_are_put_on_each_other(
    compression: Compressed, tmp_path: Path, store: LocalStore, manager: CacheManager
) -> None:
    given = [
        images.layer({"a": b"1", "dir/b": b"1", "gone": b"1"}, compression=compression),
        images.layer({"a": b"2", ".wh.gone": b"", "dir/c": b"2"}, compression=compression),
        images.layer({"dir/.wh..wh..opq": b"", "dir/d": b"3", "link": "a"}, compression=compression),
    ]
    source = Source(*given)
    ref = stack(manager, source, given)
    with manager.mounted(ref) as path:
        assert path.is_relative_to(store.root)
        assert read_tree(path) == {"a": "2", "dir/d": "3", "link": "2"}
        assert (path / "link").readlink() == Path("a")
    assert sorted(source.opened) == sorted(layer.descriptor.digest for layer in given)
    untouched(manager, ref)
    with manager.mounted(ref) as path:
        assert (path / "a").exists()
    assert len(source.opened) == 3


def test_none_is_nothing_at_all_to_be_mounted_merged_and_built_on(tmp_path: Path, manager: CacheManager) -> None:
    with manager.mounted(None) as path:
        assert read_tree(path) == {}
    assert not path.exists()
    added = manager.add_directory(write_tree(tmp_path / "tree", {"a": "1"}), None)
    with manager.mounted(manager.merge([None, added])) as path:
        assert read_tree(path) == {"a": "1"}
    with pytest.raises(InvalidArgument):
        manager.merge([None])


def test_merges_and_diffs_are_trees_too(tmp_path: Path, manager: CacheManager) -> None:
    base = manager.add_directory(write_tree(tmp_path / "base", {"a": "1", "b": "1"}))
    left = manager.add_directory(write_tree(tmp_path / "left", {"a": "2", "b": "1"}), base)
    right = manager.add_directory(write_tree(tmp_path / "right", {"c": "3"}), base, overlay=True)
    (layer,) = layers(1)
    image = manager.get_by_blob(described(layer), None, Source(layer).handlers())
    with manager.mounted(right) as path:
        assert read_tree(path) == {"a": "1", "b": "1", "c": "3"}
    merged = manager.merge([left, manager.diff(base, right), image])
    with manager.mounted(merged) as path:
        assert {**read_tree(path), "file0": ""} == {"a": "2", "b": "1", "c": "3", "file0": ""}
        assert (path / "file0").exists()
    with manager.mounted(manager.diff(left, merged)) as path:
        assert sorted(read_tree(path)) == ["c", "file0"]
    with manager.mounted(manager.merge([image, left])) as path:
        assert sorted(read_tree(path)) == ["a", "b", "file0"]
    assert base.blob is None
    assert not (tmp_path / "store" / "scratch").exists()


def test_what_lies_under_a_whole_tree_is_not_looked_at(tmp_path: Path, manager: CacheManager) -> None:
    (layer,) = layers(1)
    source = Source(layer)
    image = manager.get_by_blob(described(layer), None, source.handlers())
    whole = manager.add_directory(write_tree(tmp_path / "whole", {"a": "1"}), image)
    top = manager.add_directory(write_tree(tmp_path / "upper", {"b": "2"}), whole, overlay=True)
    with manager.mounted(top) as path:
        assert read_tree(path) == {"a": "1", "b": "2"}
    assert source.opened == []


@pytest.mark.parametrize("kind", list(Type))
def test_a_blob_stands_in_for_the_directory_that_it_was_made_of(
    kind: Type, tmp_path: Path, manager: CacheManager
) -> None:
    upper = write_tree(tmp_path / "upper", {"a": "1", "dir/b": "2"})
    ref = manager.add_directory(upper, overlay=True)
    ref.get_remote(True, RefConfig(Compression(kind)))
    upper.rename(tmp_path / "elsewhere")
    with manager.mounted(ref) as path:
        assert read_tree(path) == {"a": "1", "dir/b": "2"}


def test_a_directory_that_is_gone_without_a_blob_is_said(tmp_path: Path, manager: CacheManager) -> None:
    upper, tree = write_tree(tmp_path / "upper", {"a": "1"}), write_tree(tmp_path / "tree", {"a": "1"})
    refs = [manager.add_directory(upper, overlay=True), manager.add_directory(tree)]
    for path in (upper, tree):
        (path / "a").unlink()
        path.rmdir()
    for ref in refs:
        with pytest.raises(NotFound, match="gone"), manager.mounted(ref):
            pass
    untouched(manager, *refs)


def test_layers_that_nobody_can_bring_are_said_and_nothing_is_left(tmp_path: Path, manager: CacheManager) -> None:
    given = layers(2)
    source = Source(*given)
    ref = stack(manager, source, given)
    with pytest.raises(NeedsRemoteProvider), manager.mounted(ref, {}):
        pass
    del source.blobs[given[1].descriptor.digest]
    with pytest.raises(LazyUnavailable), manager.mounted(ref):
        pass
    assert not (tmp_path / "store" / "scratch").exists()


def test_a_layer_that_is_no_tar_is_an_error_and_nothing_is_left(manager: CacheManager, tmp_path: Path) -> None:
    bad = images.layer(b"no tar at all" * 100)
    ref = manager.get_by_blob(described(bad), None, Source(bad).handlers())
    with pytest.raises(CorruptData), manager.mounted(ref):
        pass
    untouched(manager, ref)


def test_an_error_in_the_block_is_the_callers_and_the_directory_goes(manager: CacheManager) -> None:
    (layer,) = layers(1)
    ref = manager.get_by_blob(described(layer), None, Source(layer).handlers())
    seen: list[Path] = []

    def work() -> None:
        with manager.mounted(ref) as path:
            seen.append(path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not seen[0].exists()
    untouched(manager, ref)


def test_a_store_in_memory_uses_the_temporary_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (layer,) = layers(1)
    with MemoryStore() as store:
        manager = CacheManager(store)
        add(store, layer)
        with manager.mounted(manager.get_by_blob(described(layer), None)) as path:
            assert path.is_relative_to(tmp_path)
            assert (path / "file0").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path: Path, store: LocalStore) -> None:
    (store.root / "scratch" / "left" / "tree" / "deep").mkdir(parents=True)
    CacheManager(store)
    assert not (store.root / "scratch").exists()
