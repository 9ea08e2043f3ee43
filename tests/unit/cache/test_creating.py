"""Blobs made of directories: what they hold, and under which ids."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blobtee import conversion
from blobtee.cache import CacheManager, Kind, Ref, RefConfig
from blobtee.cache.labels import LINK, MEDIA_TYPE, UNCOMPRESSED
from blobtee.cache.leases import current_lease
from blobtee.compression import Compression, Type, decompress
from blobtee.content import LocalStore
from blobtee.errors import (
    CorruptData,
    InvalidArgument,
    LazyUnavailable,
    NoBlobs,
    NotFound,
    TooLarge,
)
from blobtee.oci import Compressed, Digest, chain_id, chain_ids, mediatypes
from blobtee.tasks import Event, reporting
from blobtee.testing import images
from tests.unit.cache.support import (
    Source,
    add,
    content,
    described,
    layers,
    names,
    read_tree,
    registered,
    stack,
    trees,
    untouched,
    write_tree,
)

ZSTD = RefConfig(Compression("zstd"))
PLAIN = RefConfig(Compression("uncompressed"))


def test_a_directory_becomes_a_layer_when_it_is_asked_for(tmp_path: Path, manager: CacheManager) -> None:
    (path,) = trees(tmp_path, {"a/file": "one", "b": "two"})
    ref = manager.add_directory(path, description="mine")
    assert (ref.kind, ref.blob, ref.chain_id, ref.blob_only, ref.description) == (Kind.BASE, None, None, False, "mine")
    assert not ref.is_lazy()
    with pytest.raises(NoBlobs):
        ref.get_remote()
    assert list(manager.store.walk()) == []
    remote = ref.get_remote(True, ZSTD)
    (desc,) = remote.descriptors
    assert desc.media_type == mediatypes.OCI_LAYER + "+zstd"
    assert names(manager.store, desc) == ["a", "a/file", "b"]
    assert (ref.blob, ref.size, ref.diff_id) == (desc.digest, desc.size, desc.annotations[UNCOMPRESSED])
    assert ref.chain_id == ref.diff_id
    assert ref.blob_chain_id == chain_id(desc.digest, desc.annotations[UNCOMPRESSED])
    info = manager.store.info(desc.digest)
    assert info.labels[UNCOMPRESSED] == ref.diff_id
    assert info.labels[MEDIA_TYPE] == desc.media_type
    assert manager.leases.resources(ref.id) == [("content", desc.digest)]
    untouched(manager, ref)
    with remote.provider.reader_at(desc) as reader:
        assert reader.size == desc.size
    assert ref.get_remote().descriptors == remote.descriptors


def test_each_tree_is_what_differs_from_the_one_below(tmp_path: Path, manager: CacheManager) -> None:
    paths = trees(
        tmp_path,
        {"kept": "1", "changed": "1", "gone": "1"},
        {"kept": "1", "changed": "22", "new/file": "x"},
        {"kept": "1", "changed": "22"},
    )
    top = registered(manager, *paths)
    remote = top.get_remote(True, PLAIN)
    assert [set(names(manager.store, desc)) for desc in remote.descriptors] == [
        {"kept", "changed", "gone"},
        {"changed", "new", "new/file", ".wh.gone"},
        {".wh.new"},
    ]
    assert top.chain_id == chain_ids(desc.annotations[UNCOMPRESSED] for desc in remote.descriptors)[-1]
    pairs = [chain_id(desc.digest, desc.annotations[UNCOMPRESSED]) for desc in remote.descriptors]
    assert top.blob_chain_id == chain_ids(pairs)[-1]
    for number, each in enumerate(top.layer_chain(), 1):
        assert each.chain_id == chain_ids(desc.annotations[UNCOMPRESSED] for desc in remote.descriptors[:number])[-1]
    untouched(manager, top)


def test_an_overlay_directory_is_a_layer_as_it_is(tmp_path: Path, manager: CacheManager) -> None:
    base, upper = trees(tmp_path, {"kept": "1"}, {"new": "2"})
    ref = manager.add_directory(upper, manager.add_directory(base), overlay=True)
    remote = ref.get_remote(True)
    assert [names(manager.store, desc) for desc in remote.descriptors] == [["kept"], ["new"]]
    alone = manager.add_directory(upper, overlay=True)
    assert alone.get_remote(True).descriptors[0].digest == remote.descriptors[1].digest


def test_a_tree_on_a_pulled_image_is_compared_with_the_image(tmp_path: Path, manager: CacheManager) -> None:
    given = [images.layer({"kept": b"1" * 100, "gone": b"1"}), images.layer({"below": b"2"})]
    source = Source(*given)
    image = stack(manager, source, given)
    with manager.mounted(image) as mounted:
        shutil.copytree(mounted, tmp_path / "mine", symlinks=True)
    (tmp_path / "mine" / "gone").unlink()
    (tmp_path / "mine" / "new").write_text("3")
    ref = manager.add_directory(tmp_path / "mine", image)
    remote = ref.get_remote(True)
    assert [desc.digest for desc in remote.descriptors[:2]] == [layer.descriptor.digest for layer in given]
    assert set(names(manager.store, remote.descriptors[2])) == {"new", ".wh.gone"}
    assert sorted(source.opened) == sorted(layer.descriptor.digest for layer in given)
    untouched(manager, ref)


def test_an_overlay_on_a_lazy_image_brings_nothing(tmp_path: Path, manager: CacheManager) -> None:
    given = layers(2)
    source = Source(*given)
    ref = manager.add_directory(write_tree(tmp_path / "upper", {"f": "x"}), stack(manager, source, given), overlay=True)
    assert len(ref.get_remote(True).descriptors) == 3
    assert source.opened == []


def test_a_manager_started_later_makes_the_blob(tmp_path: Path) -> None:
    (path,) = trees(tmp_path, {"f": "x"})
    with LocalStore(tmp_path / "store") as store:
        ref_id = CacheManager(store).add_directory(path).id
    with LocalStore(tmp_path / "store") as store:
        ref = CacheManager(store).get(ref_id)
        assert names(store, ref.get_remote(True).descriptors[0]) == ["f"]
    with LocalStore(tmp_path / "store") as store:
        assert names(store, CacheManager(store).get(ref_id).get_remote().descriptors[0]) == ["f"]


def test_names_of_directories_may_be_any_bytes(tmp_path: Path, store: LocalStore) -> None:
    path = write_tree(tmp_path / os.fsdecode(b"odd \xff name"), {"f": "x"})
    manager = CacheManager(store)
    ref_id = manager.add_directory(path).id
    assert len(CacheManager(store).get(ref_id).get_remote(True).descriptors) == 1


def test_what_cannot_be_a_layer_is_refused_at_once(tmp_path: Path, manager: CacheManager) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotFound):
        manager.add_directory(tmp_path / "nothing")
    for bad in (tmp_path / "file", tmp_path, tmp_path / "store", str(tmp_path) + "/a\0b", "/"):
        with pytest.raises(InvalidArgument):
            manager.add_directory(bad)
    with pytest.raises(Exception) as caught:
        manager.add_directory(tmp_path / "loop")
    assert type(caught.value).__module__ == "blobtee.errors"
    assert list(manager.records.all()) == []
    assert manager.leases.all() == []


# ---- kinds


def test_a_diff_of_refs_is_one_layer_of_its_own(tmp_path: Path, manager: CacheManager) -> None:
    paths = trees(tmp_path, {"a": "1", "b": "1"}, {"a": "1", "b": "1", "c": "2"}, {"a": "1", "c": "2", "d": "3"})
    top = registered(manager, *paths)
    base = top.layer_chain()[0]
    diff = manager.diff(base, top)
    (desc,) = diff.get_remote(True).descriptors
    assert set(names(manager.store, desc)) == {".wh.b", "c", "d"}
    assert diff.blob == desc.digest
    assert top.blob is None
    assert diff.chain_id == desc.annotations[UNCOMPRESSED]
    assert diff.blob_chain_id == chain_id(desc.digest, desc.annotations[UNCOMPRESSED])
    (everything,) = manager.diff(None, top).get_remote(True).descriptors
    assert names(manager.store, everything) == ["a", "c", "d"]


def test_a_diff_over_its_uppers_parent_is_the_uppers_blob(tmp_path: Path, manager: CacheManager) -> None:
    top = registered(manager, *trees(tmp_path, {"a": "1"}, {"a": "1", "b": "2"}))
    base = top.layer_chain()[0]
    diff = manager.diff(base, top)
    (desc,) = diff.get_remote(True).descriptors
    assert (diff.blob, top.blob) == (None, desc.digest)
    assert diff.chain_id == desc.annotations[UNCOMPRESSED]
    assert base.blob is None
    assert top.chain_id is None


def test_a_merge_has_no_blob_of_its_own_and_ids_over_all_layers(tmp_path: Path, manager: CacheManager) -> None:
    one, two, three = trees(tmp_path, {"a": "1"}, {"a": "1", "b": "2"}, {"c": "3"})
    left, right = registered(manager, one, two), manager.add_directory(three)
    merged = manager.merge([left, right, left])
    remote = merged.get_remote(True)
    assert merged.blob is None
    assert [names(manager.store, desc) for desc in remote.descriptors] == [["a"], ["b"], ["c"], ["a"], ["b"]]
    assert merged.chain_id == chain_ids(desc.annotations[UNCOMPRESSED] for desc in remote.descriptors)[-1]
    pairs = [chain_id(desc.digest, desc.annotations[UNCOMPRESSED]) for desc in remote.descriptors]
    assert merged.blob_chain_id == chain_ids(pairs)[-1]
    on_top = manager.add_directory(write_tree(tmp_path / "top", {"a": "1", "b": "2", "c": "3", "d": "4"}), merged)
    last = on_top.get_remote(True).descriptors[-1]
    assert names(manager.store, last) == ["d"]
    assert on_top.chain_id == chain_id(merged.chain_id, last.annotations[UNCOMPRESSED])


def test_a_layer_may_lie_on_a_merge_that_has_its_ids(tmp_path: Path, manager: CacheManager) -> None:
    a, b, c = layers(3)
    source = Source(a, b, c)
    merged = manager.merge([stack(manager, source, [a]), stack(manager, source, [b])])
    merged.get_remote()
    top = manager.get_by_blob(described(c), merged, source.handlers())
    assert top.chain_id == stack(manager, source, [a, b, c]).chain_id
    assert [desc.digest for desc in top.get_remote().descriptors] == [x.descriptor.digest for x in (a, b, c)]
    assert source.opened == []


def test_layers_made_before_their_parents_get_their_ids_with_them(tmp_path: Path, manager: CacheManager) -> None:
    base, upper = trees(tmp_path, {"a": "1"}, {"b": "2"})
    bottom = manager.add_directory(base)
    top = manager.add_directory(upper, bottom, overlay=True)
    diff = manager.diff(bottom, top)  # is the upper's own layer: nothing below needs a blob
    diff.get_remote(True)
    assert top.blob is not None
    assert (top.chain_id, bottom.blob) == (None, None)
    top.get_remote(True)
    assert bottom.diff_id is not None
    assert top.diff_id is not None
    assert top.chain_id == chain_id(bottom.diff_id, top.diff_id)
    found = manager.get_by_blob(top.get_remote().descriptors[1], bottom)
    assert found.id == top.id


def test_diffs_nested_without_end_are_refused(tmp_path: Path, manager: CacheManager) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "3"}))
    base = ref.layer_chain()[0]
    for _ in range(40):
        ref = manager.diff(base, ref)
    with pytest.raises(TooLarge):
        ref.get_remote(True)
    untouched(manager, ref)


# ---- compression and epoch


@pytest.mark.parametrize("kind", list(Type))
def test_blobs_are_packed_as_wished(kind: Type, tmp_path: Path, manager: CacheManager) -> None:
    (path,) = trees(tmp_path, {"f": "text " * 1000})
    (desc,) = manager.add_directory(path).get_remote(True, RefConfig(Compression(kind))).descriptors
    assert desc.media_type == kind.media_type
    assert "f" in names(manager.store, desc)


def test_a_level_is_kept(tmp_path: Path, manager: CacheManager) -> None:
    (path,) = trees(tmp_path, {"f": "".join(f"{Digest.of(b'%d' % (n % 700))[7:30]} " for n in range(20_000))})
    found = {}
    for level in (1, 19):
        ref = manager.add_directory(path)
        found[level] = ref.get_remote(True, RefConfig(Compression("zstd", level=level))).descriptors[0].digest
        assert ref.recipe is not None
        assert ref.recipe.compression == Compression("zstd", level=level)
    assert found[1] != found[19]


def test_an_epoch_clamps_what_is_made_and_leaves_what_came(tmp_path: Path, manager: CacheManager) -> None:
    (given,) = layers(1)
    (path,) = trees(tmp_path, {"f": "x", "g": "y"})
    os.utime(path / "g", (5, 5))
    base = manager.get_by_blob(described(given), None, Source(given).handlers())
    ref = manager.add_directory(path, base, overlay=True)
    remote = ref.get_remote(True, RefConfig(Compression("gzip"), epoch=1000))
    assert remote.descriptors[0].bare() == given.descriptor
    with remote.provider.reader_at(remote.descriptors[1]) as reader, reader.open() as raw, decompress(raw) as tar:
        with tarfile.open(fileobj=io.BytesIO(tar.read())) as archive:
            assert {member.name: member.mtime for member in archive} == {"f": 1000, "g": 5}
    again = manager.add_directory(path, base, overlay=True)
    os.utime(path / "f", (2**31, 2**31))
    assert again.get_remote(True, RefConfig(epoch=1000)).descriptors[1].digest == remote.descriptors[1].digest
    for bad in ("now", -1, True, 2**63):
        with pytest.raises(InvalidArgument, match="whole number of seconds"):
            RefConfig(epoch=bad)  # type: ignore[arg-type]


def test_a_layer_that_has_a_blob_is_not_made_again_for_another_epoch(tmp_path: Path, manager: CacheManager) -> None:
    ref = registered(manager, *trees(tmp_path, {"f": "x"}))
    first = ref.get_remote(True, RefConfig(epoch=1000))
    assert ref.get_remote(True, RefConfig(epoch=5)).descriptors == first.descriptors


# ---- progress and leases


def test_making_a_blob_reports_its_progress_and_its_failure(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1" * 10_000}))
    events: list[Event] = []

    def fail(packer: object) -> None:
        raise CorruptData("at the end")

    with monkeypatch.context() as patch:
        patch.setattr(conversion.Packer, "finish", fail)
        with reporting(events.append), pytest.raises(CorruptData):
            ref.get_remote(True)
    mine = [event for event in events if event.action == "create"]
    assert (mine[-1].error, mine[-1].completed) == ("at the end", None)
    with reporting(events.append):
        ref.get_remote(True)
    last = [event for event in events if event.action == "create"][-1]
    assert last.completed is not None
    assert last.current >= 10_000
    assert last.digest == ref.id


def test_a_blob_is_leased_before_it_is_one(
    tmp_path: Path, manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1"}))
    held: list[tuple[str, str]] = []
    true = manager.store.writer

    def writer(name: str, **options: Any) -> Any:
        opened = true(name, **options)
        commit = opened.commit

        def committing(size: int = 0, expected: str | None = None, labels: Any = None) -> Any:
            lease = current_lease()
            assert lease is not None
            held.extend(manager.leases.resources(lease))
            return commit(size, expected, labels)

        monkeypatch.setattr(opened, "commit", committing)
        return opened

    monkeypatch.setattr(manager.store, "writer", writer)
    with manager.leases.hold() as mine:
        ref.get_remote(True)
        assert manager.leases.resources(mine) == [("content", ref.blob)]
    assert held == [("content", ref.blob)]
    untouched(manager, ref)


# ---- made again


@pytest.mark.parametrize("kind", list(Type))
def test_a_blob_that_is_gone_is_made_again_as_it_was(kind: Type, tmp_path: Path, manager: CacheManager) -> None:
    ref = registered(manager, *trees(tmp_path, {"a": "1" * 1000}, {"a": "2" * 1000}))
    level = {Type.UNCOMPRESSED: None, Type.ZSTD: 7}.get(kind, 3)
    remote = ref.get_remote(True, RefConfig(Compression(kind, level=level), epoch=1000))
    before = [content(remote.provider.reader_at(desc)) for desc in remote.descriptors]
    for desc in remote.descriptors:
        manager.store.delete(desc.digest)
    assert ref.is_lazy()
    assert ref.get_remote().descriptors == remote.descriptors
    assert [content(remote.provider.reader_at(desc)) for desc in remote.descriptors] == before
    assert not ref.is_lazy()
    untouched(manager, ref)


def test_a_directory_that_has_changed_since_is_found_out(tmp_path: Path, manager: CacheManager) -> None:
    (path,) = trees(tmp_path, {"a": "1"})
    ref = manager.add_directory(path)
    remote = ref.get_remote(True)
    manager.store.delete(remote.descriptors[0].digest)
    write_tree(path, {"a": "2"})
    with pytest.raises(LazyUnavailable, match=r"cannot be made again: .* digest is .*, expected sha256:"):
        remote.unlazy()
    assert list(manager.store.walk()) == []
    shutil.rmtree(path)
    with pytest.raises(LazyUnavailable, match="tree0"):
        remote.unlazy()
    untouched(manager, ref)
    write_tree(path, {"a": "1"})
    remote.unlazy()


# ---- size, and forgetting


def test_usage_is_directory_blob_and_variants(tmp_path: Path, manager: CacheManager) -> None:
    (path,) = trees(tmp_path, {"a": "1" * 100_000, "sub/b": "2"})
    os.link(path / "a", path / "again")
    ref = manager.add_directory(path)
    taken = sum(each.lstat().st_blocks * 512 for each in (path, path / "a", path / "sub", path / "sub" / "b"))
    assert ref.usage() == taken
    (main,) = ref.get_remote(True).descriptors
    (other,) = ref.get_remote(True, RefConfig(Compression("zstd", force=True))).descriptors
    assert ref.usage() == taken + main.size + other.size
    shutil.rmtree(path)
    assert ref.usage() == main.size + other.size


def test_removing_a_ref_forgets_its_directory_and_leaves_it_alone(tmp_path: Path, manager: CacheManager) -> None:
    (path,) = trees(tmp_path, {"a": "1"})
    with manager.add_directory(path) as ref:
        desc = ref.get_remote(True).descriptors[0]
        # The same contents under another blob share the snapshot.
        twin = images.layer(path_tar(manager, ref), compression=Compressed.ZSTD)
        add(manager.store, twin)
        other = manager.get_by_blob(described(twin), None)
        assert other.snapshot_id == ref.snapshot_id
        assert not other.blob_only
    manager.remove(ref.id)
    assert manager.snapshots.find(other.snapshot_id) is not None
    other.release()
    manager.remove(other.id)
    assert manager.snapshots.find(other.snapshot_id) is None
    assert manager.leases.all() == []
    assert read_tree(path) == {"a": "1"}
    assert LINK + desc.digest not in manager.store.info(desc.digest).labels


def path_tar(manager: CacheManager, ref: Ref) -> bytes:
    desc = ref.oci_desc()
    with manager.store.reader_at(desc) as reader, reader.open() as raw, decompress(raw) as tar:
        return tar.read() or b""
