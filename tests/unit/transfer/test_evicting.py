"""Making room: what goes, what stays and why, and that what went is as good as before."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.cache import labels as cache_labels
from blobtee.compression import Compression
from blobtee.content import LocalStore, Trust
from blobtee.errors import InvalidArgument, NotFound, PermissionDenied
from blobtee.image import Image
from blobtee.oci import Compressed, Descriptor, Digest, Reference
from blobtee.plugin.known import KnownBlobs
from blobtee.registry import Registry
from blobtee.tee import digests
from blobtee.tee.map import CHUNK
from blobtee.tee.proving import keep_proof
from blobtee.testing import MemoryRegistry, Request, image, layer
from blobtee.testing.images import ImageSource
from blobtee.transfer import evictable, evicting
from blobtee.transfer.evictable import Held
from blobtee.transfer.evicting import shrink, usage
from blobtee.transfer.obtaining import Obtaining


def noise(nbytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(nbytes)


BIG = noise(40 * CHUNK, 1)
SOURCE = image(
    [
        layer({"etc/name": b"base", "big": BIG}, compression=Compressed.NONE),
        layer({"etc/top": noise(20 * CHUNK, 2)}, compression=Compressed.NONE),
    ]
)
FIRST, SECOND = (each.descriptor for each in SOURCE.layers)


@contextmanager
def pulled(server: MemoryRegistry, client: Registry, store: LocalStore, source: ImageSource = SOURCE) -> Iterator[str]:
    """The image in the store, as a program that ended left it; a count of what is asked for starts anew."""
    name = source.push(server, "team/app")
    transfer.pull(name, store, registry=client).close()
    server.reset()
    yield name


@pytest.fixture
def name(server: MemoryRegistry, client: Registry, store: LocalStore) -> Iterator[str]:
    with pulled(server, client, store) as name:
        yield name


def present(store: LocalStore) -> set[Digest]:
    return {info.digest for info in store.walk()}


def used(store: LocalStore, desc: Descriptor, ago: float) -> None:
    """The blob was last used so many seconds ago."""
    path = store.root / "blobs" / desc.digest.algorithm / desc.digest.hex
    os.utime(path, ns=(time.time_ns() - int(ago * 1e9), path.stat().st_mtime_ns))


def moved(server: MemoryRegistry) -> int:
    return server.counters.sent["blob"]


def opened(name: str, store: LocalStore, client: Registry) -> Image:
    return transfer.open_image(name, store, registry=client)


def test_layers_go_the_image_stays_complete_and_chunks_come_again_proven(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    labels = store.info(FIRST.digest).labels
    done = shrink(store, 0)
    assert set(done.blobs) == {FIRST.digest, SECOND.digest}
    assert not done.reached
    assert (done.before - done.after, done.after) == (FIRST.size + SECOND.size, usage(store))
    assert done.held.keys() == {Held.DOCUMENTS, Held.INDEXES}
    with opened(name, store, client) as image:
        with image.get_remote().provider.reader_at(FIRST) as reader:
            assert reader.trust is Trust.BLOB
            assert reader.read_at(30 * CHUNK, 100) == SOURCE.layers[0].data[30 * CHUNK :][:100]
        assert 0 < moved(server) <= 2 * CHUNK
        image.get_remote().unlazy()
    assert moved(server) <= FIRST.size + SECOND.size, "what had come was not asked for again"
    assert store.info(FIRST.digest).labels == labels
    transfer.pull(name, store, registry=client).close()
    assert transfer.verify(store).good


def test_a_wrong_chunk_is_not_believed_after_eviction(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    shrink(store, 0)
    server.remove_blob(FIRST.digest)
    server.add_blob("team/app", bytes(FIRST.size), FIRST.digest)
    with opened(name, store, client) as image, image.get_remote().provider.reader_at(FIRST) as reader:
        with pytest.raises(Exception, match=FIRST.digest.hex[:12]):
            reader.read_at(30 * CHUNK, 100)


def test_the_longest_unused_goes_first_and_no_more_than_is_asked_for(name: str, store: LocalStore) -> None:
    used(store, FIRST, 100)
    used(store, SECOND, 200)
    total = usage(store)
    assert set(shrink(store, total).blobs) == set()
    planned = shrink(store, total - 1, dry_run=True)
    assert (set(planned.blobs), planned.reached, SECOND.digest in present(store)) == ({SECOND.digest}, True, True)
    done = shrink(store, total - 1)
    assert (done.blobs, done.after, done.reached) == (planned.blobs, planned.after, True)
    assert shrink(store, total - SECOND.size).blobs == {}


def test_reading_makes_a_blob_wanted_and_checking_does_not(name: str, store: LocalStore) -> None:
    used(store, FIRST, 300)
    used(store, SECOND, 200)
    before = store.last_used(FIRST.digest)
    assert transfer.verify(store).good
    assert store.last_used(FIRST.digest) == before
    store.reader_at(FIRST).close()
    assert store.last_used(FIRST.digest) > before
    assert set(shrink(store, usage(store) - 1).blobs) == {SECOND.digest}
    used(store, FIRST, 30)
    recent = store.last_used(FIRST.digest)
    store.reader_at(FIRST).close()
    assert store.last_used(FIRST.digest) == recent, "once a minute is enough"


def test_what_was_used_lately_can_be_spared(name: str, store: LocalStore) -> None:
    used(store, FIRST, 100)
    done = shrink(store, 0, spare=60)
    assert (set(done.blobs), done.held[Held.RECENT].blobs) == ({FIRST.digest}, 1)


def test_what_is_used_while_its_registry_is_asked_is_spared_too(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    used(store, FIRST, 100)
    used(store, SECOND, 100)

    def reading(request: Request) -> None:
        if request.method == "HEAD" and request.identifier == FIRST.digest:
            store.reader_at(FIRST).close()

    server.fault(reading)
    done = shrink(store, 0, spare=60, obtaining=Obtaining(client))
    assert (set(done.blobs), done.held[Held.USED].blobs) == ({SECOND.digest}, 1)


def test_where_else_a_blob_has_to_be_is_asked_too_when_that_is_said_meanwhile(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    known = KnownBlobs(store)

    def telling(request: Request) -> None:
        if request.method == "HEAD" and request.repository == "team/app":
            known.know([FIRST], Reference.parse(f"{server.host}/team/lost"))

    server.fault(telling)
    done = shrink(store, 0, clients=known, obtaining=Obtaining(client))
    assert (set(done.blobs), done.held[Held.UNOBTAINABLE].blobs) == ({SECOND.digest}, 1)
    assert "team/lost does not have it" in done.kept[0]


def test_an_open_reader_reads_on_what_it_has_open(name: str, store: LocalStore) -> None:
    with store.reader_at(FIRST) as reader:
        assert FIRST.digest in shrink(store, 0).blobs
        assert reader.read_at(0, FIRST.size) == SOURCE.layers[0].data
    with pytest.raises(NotFound):
        store.reader_at(FIRST)


def test_open_refs_keep_their_layers(name: str, store: LocalStore, client: Registry) -> None:
    with opened(name, store, client):
        for dry_run in (True, False):
            done = shrink(store, 0, dry_run=dry_run)
            assert (done.blobs, done.held[Held.USED].blobs) == ({}, 2)
    assert len(shrink(store, 0).blobs) == 2


def test_what_leases_hold_stays_but_for_an_image_that_is_known(name: str, store: LocalStore) -> None:
    leases = CacheManager(store).leases
    leases.create("flat", flat=True)
    leases.add("flat", [FIRST.digest])
    done = shrink(store, 0)
    assert (set(done.blobs), done.held[Held.LEASES].blobs) == ({SECOND.digest}, 1)
    leases.delete("flat")
    leases.create("image")
    leases.add("image", [SOURCE.descriptor.digest])
    assert set(shrink(store, 0).blobs) == {FIRST.digest}


def test_a_lease_that_comes_between_the_look_and_the_going_is_respected(
    name: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first blob only: as another program does it, the moment after the survey."""
    leases = CacheManager(store).leases
    real = keep_proof

    def and_hold(store: LocalStore, digest: Digest, size: int) -> None:
        real(store, digest, size)
        if not leases.all() or all(lease.id != "late" for lease in leases.all()):
            leases.create("late")
            leases.add("late", [digest])

    monkeypatch.setattr(evicting, "keep_proof", and_hold)
    done = shrink(store, 0)
    assert (len(done.blobs), done.held[Held.USED].blobs) == (1, 1)
    (kept,) = {FIRST.digest, SECOND.digest} - done.blobs.keys()
    assert leases.holders(kept).count("late") == 1
    assert kept in present(store)


def test_a_lease_on_what_leads_to_a_blob_is_seen_too(
    name: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = CacheManager(store).leases

    def and_hold(store: LocalStore, digest: Digest, size: int) -> None:
        keep_proof(store, digest, size)
        if all(lease.id != "late" for lease in leases.all()):
            leases.create("late")
            leases.add("late", [SOURCE.descriptor.digest])

    monkeypatch.setattr(evicting, "keep_proof", and_hold)
    assert shrink(store, 0).blobs == {}
    monkeypatch.undo()
    assert len(shrink(store, 0).blobs) == 2, "seen from the beginning, it says that the image is known"


def test_a_name_that_comes_or_goes_meanwhile_asks_for_another_look(
    name: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keep_proof

    def and_name(store: LocalStore, digest: Digest, size: int) -> None:
        real(store, digest, size)
        if "only-here" not in store.layout.names():
            store.layout.set("only-here", SOURCE.descriptor)

    monkeypatch.setattr(evicting, "keep_proof", and_name)
    used(store, FIRST, 500)
    # The new name is no reference: what it stands for may be had where its manifest came from.
    assert len(shrink(store, 0).blobs) == 2


def test_what_is_only_here_stays(store: LocalStore, server: MemoryRegistry, client: Registry, tmp_path: Path) -> None:
    """Built, imported, converted; and pushed, which says nothing of where it is to be had."""
    (tmp_path / "app").write_bytes(noise(3 * CHUNK, 5))
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "app").write_bytes(noise(3 * CHUNK, 6))
    imported = image([{"imported": noise(3 * CHUNK, 7)}])
    transfer.pull(f"oci:{imported.write_layout(tmp_path / 'layout')}", store, name="imported").close()
    manager = CacheManager(store)
    with manager.add_directory(tmp_path / "dir") as ref:
        transfer.build(ref, store, f"{server.host}/team/built:1").close()
    with pulled(server, client, store) as name:
        packed = transfer.pull(
            name, store, compression=Compression("zstd"), registry=client, name="converted.example/app:1"
        )
        made = [layer.digest for layer in packed.manifest.layers]
        packed.close()
    here = present(store)
    done = shrink(store, 0)
    assert set(done.blobs) == {FIRST.digest, SECOND.digest}
    assert not done.blobs.keys() & set(made)
    assert done.held[Held.LOCAL].blobs == 4
    assert present(store) == here - done.blobs.keys()


def test_a_layer_that_an_image_without_a_source_needs_too_stays(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry, tmp_path: Path
) -> None:
    other = image([SOURCE.layers[0]])
    transfer.pull(f"oci:{other.write_layout(tmp_path / 'layout')}", store, name="imported").close()
    done = shrink(store, 0)
    assert (set(done.blobs), done.held[Held.LOCAL].blobs) == ({SECOND.digest}, 1)
    store.layout.remove("imported")
    assert set(shrink(store, 0).blobs) == {FIRST.digest}


def test_layers_that_were_here_before_are_known_from_the_second_image_too(
    store: LocalStore, server: MemoryRegistry, client: Registry, tmp_path: Path
) -> None:
    transfer.pull(f"oci:{SOURCE.write_layout(tmp_path / 'layout')}", store, name="imported").close()
    assert shrink(store, 0).blobs == {}
    with pulled(server, client, store):
        store.layout.remove("imported")
        assert set(shrink(store, 0).blobs) == {FIRST.digest, SECOND.digest}


def test_an_entry_without_a_name_counts_on_its_blobs(name: str, store: LocalStore) -> None:
    index = store.root / "index.json"
    value = store.layout._read()
    value["manifests"].append(SOURCE.descriptor.bare().to_json())
    index.write_text(json.dumps(value))
    store.layout.remove(name)
    assert shrink(store, 0).blobs == {}


def test_nothing_goes_while_a_document_is_damaged(name: str, store: LocalStore) -> None:
    store.layout.set("other.example/app:1", SOURCE.descriptor)
    bad = Descriptor(SOURCE.descriptor.media_type, Digest("sha256:" + "0" * 64), 100)
    store.layout.set("bad.example/app:1", bad)
    done = shrink(store, 0)
    assert done.blobs == {}
    assert any("nothing goes" in problem for problem in done.problems)


def test_a_damaged_blob_stays_and_is_told(name: str, store: LocalStore) -> None:
    digests.forget(store.root, FIRST.digest)
    path = store.root / "blobs" / "sha256" / FIRST.digest.hex
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(10)
        file.write(b"rot")
    done = shrink(store, 0)
    assert (set(done.blobs), done.held[Held.DAMAGED].blobs) == ({SECOND.digest}, 1)
    assert FIRST.digest in done.problems[0]
    assert not digests.ChunkDigests.are_kept(store.root, FIRST.digest, FIRST.size)


def test_digests_are_made_of_a_blob_that_came_another_way(
    store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    with pulled(server, client, store) as name:
        for desc in (FIRST, SECOND):
            digests.forget(store.root, desc.digest)
        done = shrink(store, 0)
        assert (len(done.blobs), done.after) == (2, usage(store)), "they take room, too"
        with opened(name, store, client) as image, image.get_remote().provider.reader_at(FIRST) as reader:
            assert reader.read_at(9 * CHUNK, 10) == SOURCE.layers[0].data[9 * CHUNK :][:10]
        assert moved(server) <= 2 * CHUNK


def test_partial_blobs_go_by_their_age_too_but_not_open_ones(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    shrink(store, 0)
    with opened(name, store, client) as image:
        with image.get_remote().provider.reader_at(FIRST) as reader:
            reader.read_at(9 * CHUNK, 10)
            done = shrink(store, 0)
            assert (done.partials, done.held[Held.USED].blobs) == ({}, 1)
    done = shrink(store, 0)
    assert (set(done.partials), done.nbytes >= CHUNK) == ({FIRST.digest}, True)
    assert not (store.root / "partial" / "sha256" / FIRST.digest.hex).exists()


def test_parts_of_a_blob_stay_too_while_its_registry_does_not_tell(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    shrink(store, 0)
    with opened(name, store, client) as image:
        for desc in (FIRST, SECOND):
            with image.ref.get_remote().provider.reader_at(desc) as reader:  # type: ignore[union-attr]
                reader.read_at(9 * CHUNK, 10)
    server.remove_blob(FIRST.digest)
    done = shrink(store, 0, obtaining=Obtaining(client))
    assert (set(done.partials), done.held[Held.UNOBTAINABLE].blobs) == ({SECOND.digest}, 1)
    with opened(name, store, client) as image:
        with image.ref.get_remote().provider.reader_at(FIRST) as reader:  # type: ignore[union-attr]
            assert reader.read_at(9 * CHUNK, 10) == SOURCE.layers[0].data[9 * CHUNK :][:10]
    store.layout.remove(name)
    server.stop()
    assert set(shrink(store, 0, obtaining=Obtaining(client)).partials) == {FIRST.digest}, "nobody needs it"


def test_all_that_the_store_takes_is_counted(
    store: LocalStore, server: MemoryRegistry, client: Registry, tmp_path: Path
) -> None:
    foreign = image([layer({"a": noise(3 << 20, 1), "b": b"found"}), *SOURCE.layers])
    with pulled(server, client, store, foreign) as name:
        with opened(name, store, client) as image_, image_.open("/b") as file:
            assert file.read() == b"found"  # and an index of the gzip is kept
        (first, *_) = (each.descriptor for each in foreign.layers)
        used(store, first, ago=300)
        shrink(store, usage(store) - 1)
        with opened(name, store, client) as image_:
            for desc in (first, FIRST):
                with image_.ref.get_remote().provider.reader_at(desc) as reader:  # type: ignore[union-attr]
                    reader.read_at(desc.size - 10, 5)
        store.writer("unfinished").write(noise(1 << 20, 3))
        store.quarantine(SECOND.digest)
        du = 0
        for folder in ("blobs", "partial", "ingest", "digests", "index", "broken"):
            for path in (store.root / folder).rglob("*"):
                found = path.stat()
                du += 0 if path.is_dir() else min(found.st_size, found.st_blocks * 512)
        assert abs(usage(store) - du) < 64 << 10, "what is small and of no layer"
        done = shrink(store, 0)
        assert done.after == sum(share.nbytes for share in done.held.values()) == usage(store)
        assert done.held[Held.INDEXES].blobs == 3
        assert done.held[Held.DAMAGED].nbytes == SECOND.size
        assert done.held[Held.UNFINISHED].nbytes == 1 << 20


def test_what_a_killed_process_left_without_data_goes_and_nobody_is_asked(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    shrink(store, 0)
    folder = store.root / "partial" / "sha256" / FIRST.digest.hex
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    server.stop()
    assert set(shrink(store, 0, obtaining=Obtaining(client)).partials) == {FIRST.digest}


def test_a_use_that_is_yet_to_come_spares_nothing(name: str, store: LocalStore) -> None:
    """As one looks that was noted while the clock went wrong."""
    used(store, FIRST, -1e8)
    used(store, SECOND, -30)
    assert set(shrink(store, 0, spare=60).blobs) == {FIRST.digest}


def test_collecting_leaves_what_is_lazy_again_and_takes_all_of_it_with_its_image(name: str, store: LocalStore) -> None:
    shrink(store, 0)
    manager = CacheManager(store)
    assert manager.collect(grace=0).records == ()
    assert digests.ChunkDigests.are_kept(store.root, FIRST.digest, FIRST.size)
    assert {info.digest for info in store.evicted()} == {FIRST.digest, SECOND.digest}
    assert store.quarantined() == []
    store.layout.remove(name)
    manager.collect(grace=0)
    assert (store.evicted(), present(store)) == ([], set())
    assert not digests.ChunkDigests.are_kept(store.root, FIRST.digest, FIRST.size)


def test_labels_of_a_blob_that_is_lazy_again_still_hold_what_they_link_to(name: str, store: LocalStore) -> None:
    variant = Digest.of(b"variant")
    with store.writer("variant") as writer:
        writer.write(b"variant")
        writer.commit()
    store.update(FIRST.digest, {cache_labels.LINK + variant: variant})
    shrink(store, 0)
    CacheManager(store).collect(grace=0)
    assert variant in present(store)


def test_readers_fills_and_making_room_at_once_end_well(
    name: str, store: LocalStore, server: MemoryRegistry, client: Registry
) -> None:
    """Each byte is right, whoever comes first; nothing fails for anybody."""
    ending = threading.Event()
    failures: list[BaseException] = []

    def read(number: int) -> None:
        rng = random.Random(number)
        try:
            while not ending.is_set():
                at = rng.randrange(FIRST.size - 100)
                with opened(name, store, client) as image:
                    provider = image.get_remote().provider
                with provider.reader_at(FIRST) as reader:
                    assert reader.read_at(at, 100) == SOURCE.layers[0].data[at : at + 100]
                if number == 0:
                    provider.unlazy()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    went = 0
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and not failures:
        went += len(shrink(store, 0).blobs)
    ending.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert went > 2
    transfer.pull(name, store, registry=client).close()
    assert transfer.verify(store).good


@pytest.mark.parametrize(
    ("size", "spare"),
    [(-1, 0), (0, -1), (0, float("nan")), (0, float("inf")), (float("nan"), 0), (float("inf"), 0), ("0", 0)],
)
def test_sizes_and_times_that_make_no_sense(store: LocalStore, size: Any, spare: float) -> None:
    with pytest.raises(InvalidArgument):
        shrink(store, size, spare=spare)


def test_a_survey_that_never_holds_ends(name: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def outdated(survey: evictable.Survey, candidate: object, asked: object) -> None:
        raise evictable.Outdated

    monkeypatch.setattr(evictable.Survey, "may_go", outdated)
    done = shrink(store, 0)
    assert done.blobs == {}
    assert "run it again" in done.problems[-1]


@pytest.mark.parametrize("call", ["fsync", "unlink", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPERM])
def test_a_disk_that_refuses_is_told_and_loses_nothing(
    name: str, store: LocalStore, client: Registry, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    for desc in (FIRST, SECOND):
        digests.forget(store.root, desc.digest)
    labels = {desc.digest: store.info(desc.digest).labels for desc in (FIRST, SECOND)}

    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        done = shrink(store, 0)
    assert (done.blobs, done.held[Held.DAMAGED].blobs, len(done.problems)) == ({}, 2, 2)
    assert shrink(store, 0).blobs.keys() == labels.keys()
    transfer.pull(name, store, registry=client).close()
    assert {digest: store.info(digest).labels for digest in labels} == labels
    assert transfer.verify(store).good


def test_a_store_that_may_only_be_read(name: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    with LocalStore(store.root) as read_only, pytest.raises(PermissionDenied):
        shrink(read_only, 0)
