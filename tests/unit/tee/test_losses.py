"""Disks that lose what they had taken, and processes that were killed at the wrong moment."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.cache import CacheManager
from blobtee.content import LocalStore, Trust
from blobtee.core import crc32c
from blobtee.errors import BlobteeError, ResourceExhausted, StorageError
from blobtee.oci import Descriptor
from blobtee.tee import Tee, digests, leftovers, partial
from blobtee.tee import map as maps
from blobtee.tee.claims import Claims
from blobtee.tee.hashing import Hasher
from blobtee.tee.map import CHUNK, HERE
from blobtee.tee.turns import BACKGROUND, READING, Turns
from tests.unit.tee.support import Origin, chunks, desc_of, some_bytes

DATA = some_bytes(chunks(40) + 77)
DESC = desc_of(DATA)


def folder(store: LocalStore) -> Path:
    return store.root / "partial" / DESC.digest.algorithm / DESC.digest.hex


def read(store: LocalStore, origin: Origin, number: int, trust: Trust = Trust.RAW) -> None:
    tee = Tee(store)
    try:
        with tee.reader_at(DESC, origin.source, trust) as reader:
            assert reader.read_at(chunks(number), 50) == DATA[chunks(number) :][:50]
    finally:
        tee.close()


def committed(store: LocalStore) -> bytes | None:
    """The blob, if the store has it."""
    with suppress(BlobteeError), store.reader_at(DESC) as reader:
        return reader.read_at(0, len(DATA))
    return None


# ---- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [(), ("lock",), ("lock", "data"), ("lock", "map"), ("data", "map")])
def test_what_a_killed_process_left_of_a_folder_can_be_collected_and_used(
    store: LocalStore, left: tuple[str, ...]
) -> None:
    """Killed while the folder was made, or was taken away."""
    origin = Origin(DATA)
    for use in (False, True):
        read(store, origin, 3)
        for name in {"lock", "data", "map"} - set(left):
            os.unlink(folder(store) / name)
        if use:
            read(store, origin, 3)
        else:
            assert [each.digest for each in leftovers.leftovers(store.root)] == [DESC.digest]
        assert set(CacheManager(store).collect(grace=0).partials) == {DESC.digest}
        assert not folder(store).exists()


def test_a_file_where_a_folder_should_be_does_not_stop_a_collection(store: LocalStore) -> None:
    folder(store).parent.mkdir(parents=True)
    folder(store).write_bytes(b"?")
    assert not CacheManager(store).collect(grace=0).partials


def test_what_is_left_of_a_blob_that_is_here_goes_although_an_image_has_it(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the blob's new name and the folder's end."""
    with monkeypatch.context() as killed:
        killed.setattr(partial, "remove_files", lambda _: None)
        Tee(store).fill(DESC, Origin(DATA).source)
    assert folder(store).exists()
    store.layout.set("name", DESC)
    done = CacheManager(store).collect(grace=0)
    assert not folder(store).exists()
    assert not done.blobs
    assert committed(store) == DATA


def test_a_blob_whose_promoter_was_killed_is_not_waited_for_by_those_who_have_it_open(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin(DATA)
    tee, other = Tee(store), Tee(store)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        assert reader.read_at(0, 10) == DATA[:10]
        with monkeypatch.context() as killed:
            killed.setattr(partial, "remove_files", lambda _: None)
            other.fill(DESC, origin.source)
        other.close()
        store.delete(DESC.digest)
        with tasks.scope() as patience:
            timer = threading.Timer(10, patience.cancel)
            timer.start()
            with tee.reader_at(DESC, origin.source, Trust.RAW) as late:
                assert late.read_at(chunks(8), 10) == DATA[chunks(8) : chunks(8) + 10]
            timer.cancel()
        assert reader.read_at(5, 10) == DATA[5:15]
    tee.close()


def test_a_folder_that_is_made_anew_while_it_is_collected_stays(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin(DATA)
    read(store, origin, 3)

    class Late(Claims):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            shutil.rmtree(folder(store))
            read(store, origin, 5)

    with monkeypatch.context() as patched:
        patched.setattr(leftovers, "Claims", Late)
        assert not leftovers.remove(store.root, DESC.digest)
    origin.requests.clear()
    read(store, origin, 5)
    assert not origin.requests


def test_a_fill_whose_file_was_replaced_commits_no_other(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed the folder by hand, and somebody else began it anew, with holes."""
    keep = digests.keep

    def replaced(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        shutil.rmtree(folder(store))
        read(store, Origin(DATA), 5)

    tee = Tee(store)
    with monkeypatch.context() as patched:
        patched.setattr(digests, "keep", replaced)
        with pytest.raises(StorageError):
            tee.fill(DESC, Origin(DATA).source)
    assert committed(store) is None
    tee.fill(DESC, Origin(DATA).source)
    assert committed(store) == DATA
    tee.close()


# ---- lost -----------------------------------------------------------------------------------------------------------


class Liar(Origin):
    """Good bytes once, and wrong ones to who asks for the same again."""

    def __init__(self) -> None:
        super().__init__(DATA, piece=30_000)
        self.seen: set[int] = set()

    def stream(self, start: int, end: int):  # type: ignore[no-untyped-def]
        stream = super().stream(start, end)
        wanted = set(range(start // CHUNK, -(-end // CHUNK)))
        if wanted & self.seen:
            stream._origin = Origin(bytes(len(DATA)))
        self.seen |= wanted
        return stream


class LosingDisk:
    """`fdatasync` fails at the calls `failing`, and what was not synced before is zeros afterwards."""

    def __init__(self, store: LocalStore, *failing: int) -> None:
        self._path = folder(store) / "data"
        self._failing = set(failing)
        self._calls = 0
        self._synced = bytes(len(DATA))
        self._sync = os.fdatasync

    def __call__(self, fd: int) -> None:
        self._calls += 1
        if self._calls not in self._failing:
            self._sync(fd)
            self._synced = os.pread(fd, len(DATA), 0)
            return
        os.pwrite(fd, self._synced, 0)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("liar", [False, True])
@pytest.mark.parametrize("failing", range(1, 9))
def test_a_sync_that_fails_while_a_blob_is_filled_never_makes_a_wrong_blob(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, failing: int, liar: bool
) -> None:
    monkeypatch.setattr(partial, "CHECKPOINT_NBYTES", chunks(6))
    origin = Liar() if liar else Origin(DATA, piece=30_000)
    tee = Tee(store)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", LosingDisk(store, failing))
        with suppress(BlobteeError):
            tee.fill(DESC, origin.source)
        assert committed(store) in (None, DATA)
    with suppress(BlobteeError):
        tee.fill(DESC, origin.source)
    assert committed(store) in (None, DATA)
    tee.fill(DESC, Origin(DATA).source)
    assert committed(store) == DATA
    tee.close()


def test_a_checkpoint_that_fails_after_all_has_come_is_not_covered_up_by_the_last_sync(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a failed write-back once, and here it told the checkpoint."""
    disk = LosingDisk(store, 1)
    finish = Hasher.finish

    def finish_late(self: Hasher) -> object:
        found = finish(self)
        with suppress(StorageError):
            self._partial.checkpoint()
        return found

    tee = Tee(store)
    with monkeypatch.context() as patched:
        patched.setattr(Hasher, "finish", finish_late)
        patched.setattr(os, "fdatasync", disk)
        with pytest.raises(StorageError):
            tee.fill(DESC, Origin(DATA).source)
    assert committed(store) is None
    tee.fill(DESC, Origin(DATA).source)
    assert committed(store) == DATA
    tee.close()


def test_chunks_that_are_lost_before_they_were_hashed_are_not_waited_for(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Hasher.ended

    def ended(self: Hasher) -> None:
        with suppress(StorageError):
            self._partial.checkpoint()
        run(self)

    tee = Tee(store)
    with monkeypatch.context() as patched:
        patched.setattr(Hasher, "_run", waiting_until_ended(Hasher._run))
        patched.setattr(Hasher, "ended", ended)
        patched.setattr(os, "fdatasync", LosingDisk(store, 1))
        with pytest.raises(StorageError):
            tee.fill(DESC, Origin(DATA).source)
    tee.fill(DESC, Origin(DATA).source)
    assert committed(store) == DATA
    tee.close()


def waiting_until_ended(run: Callable[[Hasher], None]) -> Callable[[Hasher], None]:
    def late(self: Hasher) -> None:
        while not self._ended:
            time.sleep(0.001)
        run(self)

    return late


def test_what_rotted_below_what_was_hashed_and_came_again_is_hashed_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine went down in the middle of a fill; the source that is asked for the lost chunk lies."""
    origin = Origin(DATA)
    origin.error, origin.break_at = StorageError("stop"), chunks(30)
    tee = Tee(store)
    with monkeypatch.context() as patched:
        patched.setattr(partial, "CHECKPOINT_NBYTES", chunks(4))
        origin.piece = 30_000
        with pytest.raises(StorageError):
            tee.fill(DESC, origin.source)
    tee.close()
    with open(folder(store) / "data", "r+b") as file:
        file.seek(chunks(2) + 10)
        file.write(b"rot")
    monkeypatch.setattr(maps, "boot_id", lambda: "another")
    wrong = bytearray(DATA)
    wrong[chunks(2) + 1] ^= 1
    tee = Tee(store)
    with suppress(BlobteeError):
        tee.fill(DESC, Origin(bytes(wrong)).source)
    assert committed(store) in (None, DATA)
    tee.fill(DESC, Origin(DATA).source)
    assert committed(store) == DATA
    tee.close()


def test_a_chunk_that_is_not_what_its_digest_says_is_not_proven_by_its_crc(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tee = Tee(store)
    tee.fill(DESC, Origin(DATA).source)
    tee.close()
    store.delete(DESC.digest)
    read(store, Origin(DATA), 3, Trust.BLOB)
    with open(folder(store) / "data", "r+b") as file:
        file.seek(chunks(3))
        file.write(bytes(CHUNK))
    monkeypatch.setattr(maps, "boot_id", lambda: "another")
    monkeypatch.setattr(maps, "crc32c", lambda data: 0 if len(data) == CHUNK else crc32c(data))
    raw = bytearray((folder(store) / "map").read_bytes())
    at = 1024 + 2 * 41 + 4 * 3
    raw[at : at + 4] = bytes(4)
    (folder(store) / "map").write_bytes(raw)
    read(store, Origin(DATA), 3, Trust.BLOB)


# ---- settled --------------------------------------------------------------------------------------------------------


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def durable(store: LocalStore, number: int) -> bool:
    return (folder(store) / "map").read_bytes()[1024 + 41 + number] == HERE


def test_what_came_last_is_settled_although_nothing_comes_after_it(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "CHECKPOINT_SECONDS", 0.05)
    tee = Tee(store)
    with tee.reader_at(DESC, Origin(DATA).source, Trust.RAW) as reader:
        for number in (3, 9):
            reader.read_at(chunks(number), 10)
            eventually(lambda: durable(store, number))  # noqa: B023
    tee.close()


def test_a_map_that_cannot_be_written_is_tried_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "CHECKPOINT_SECONDS", 0.05)
    monkeypatch.setattr("blobtee.tee.engine.CHECKPOINT_SECONDS", 0.05)
    tee = Tee(store)
    tried: list[None] = []

    def broken(_: int) -> None:
        tried.append(None)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with tee.reader_at(DESC, Origin(DATA).source, Trust.RAW) as reader:
        reader.read_at(chunks(0), 10)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", broken)
            reader.read_at(chunks(3), 10)
            eventually(lambda: len(tried) > 1)
        before = sequence(store)
        eventually(lambda: sequence(store) > before)
    tee.close()


def sequence(store: LocalStore) -> int:
    raw = (folder(store) / "map").read_bytes()
    return max(int.from_bytes(raw[slot + 8 : slot + 16], "little") for slot in (0, 512))


def test_a_close_that_cannot_settle_says_so_and_lets_go(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tee = Tee(store)
    reader = tee.reader_at(DESC, Origin(DATA).source, Trust.RAW)
    reader.read_at(0, 10)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", LosingDisk(store, 1))
        with pytest.raises(StorageError):
            reader.close()
    assert not tee._open
    tee.close()
    assert CacheManager(store).collect(grace=0).partials


def test_closing_lets_go_of_every_blob_whatever_becomes_of_one(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tee = Tee(store)
    readers = []
    for seed in range(3):
        data = some_bytes(chunks(9), seed)
        readers.append(tee.reader_at(desc_of(data), Origin(data).source, Trust.RAW))
        readers[-1].read_at(0, 10)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        with pytest.raises(StorageError):
            tee.close()
    assert not tee._open
    for reader in readers:
        reader.close()
    assert len(CacheManager(store).collect(grace=0).partials) == 3


def test_no_room_for_another_mapping_is_one_of_our_errors(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    real = mmap.mmap

    def full(*where: int, **how: int) -> mmap.mmap:
        if how:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*where)

    before = count_descriptors()
    tee = Tee(store)
    with tee.reader_at(DESC, Origin(DATA).source, Trust.RAW) as reader:
        with monkeypatch.context() as patched:
            patched.setattr(mmap, "mmap", full)
            with pytest.raises(ResourceExhausted):
                reader.read_at(0, 10)
        assert count_descriptors() <= before
        assert reader.read_at(0, 10) == DATA[:10]
    tee.close()


def test_who_cannot_say_that_he_waits_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    turns = Turns(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(ResourceExhausted), turns.waiting(READING):
            pass
    assert not turns.are_others(BACKGROUND)
    with turns.waiting(READING):
        assert turns.are_others(BACKGROUND)
    turns.close()


def test_nothing_of_a_blob_stays_open(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    # Records that are kept hold errors, and these what was going on.
    monkeypatch.setattr(logging.getLogger(partial.__name__), "disabled", True)

    def count() -> int:
        mapped = Path("/proc/self/maps").read_text().count("/partial/")
        return count_descriptors() + mapped

    read(store, Origin(DATA), 0)
    before = count()
    for number in range(5):
        read(store, Origin(DATA), number)
        wrong = Descriptor("", DESC.digest, len(DATA) + 1)
        tee = Tee(store)
        with suppress(BlobteeError), tee.reader_at(wrong, Origin(DATA).source, Trust.RAW) as reader:
            reader.read_at(0, 10)
        tee.close()
    assert count() == before
