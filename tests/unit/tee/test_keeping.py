"""What is kept of a blob over restarts, kills and power cuts, and when it goes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, Trust
from blobtee.errors import BlobteeError, DigestMismatch, SizeMismatch, StorageError, StorageFull
from blobtee.oci import Descriptor
from blobtee.tee import Tee, digests, leftovers
from blobtee.tee import map as maps
from blobtee.tee.claims import Claims
from blobtee.tee.map import CHUNK, HERE
from blobtee.tee.partial import Partial
from tests.unit.tee.support import Origin, chunks, desc_of, some_bytes

DATA = some_bytes(chunks(30) + 77)
DESC = desc_of(DATA)


def read(store: LocalStore, origin: Origin, *numbers: int, trust: Trust = Trust.RAW) -> None:
    """Read from each of the chunks, by a tee of its own."""
    tee = Tee(store)
    try:
        with tee.reader_at(DESC, origin.source, trust) as reader:
            for number in numbers:
                assert reader.read_at(chunks(number) + 3, 50) == DATA[chunks(number) + 3 :][:50]
    finally:
        tee.close()


def folder(store: LocalStore) -> Path:
    return store.root / "partial" / DESC.digest.algorithm / DESC.digest.hex


def asked(origin: Origin) -> set[int]:
    """Chunks that were asked for since the last look."""
    found = {number for start, end in origin.requests for number in range(start // CHUNK, -(-end // CHUNK))}
    origin.requests.clear()
    return found


def test_a_map_costs_a_ten_thousandth_of_the_blob() -> None:
    assert maps.map_nbytes(1 << 30) <= (1 << 30) / 10_000


def test_after_a_reboot_what_was_settled_is_checked_and_used(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin(DATA)
    read(store, origin, 3, 5, 9)
    assert asked(origin) == {3, 5, 9}
    monkeypatch.setattr(maps, "boot_id", lambda: "another")
    read(store, origin, 3, 5, 9, 11)
    assert asked(origin) == {11}


def test_after_a_reboot_what_rotted_is_fetched_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(DATA)
    read(store, origin, 3, 6)
    with open(folder(store) / "data", "r+b") as file:
        file.seek(chunks(6) + 10)
        file.write(b"rot")
    monkeypatch.setattr(maps, "boot_id", lambda: "another")
    asked(origin)
    read(store, origin, 3, 6)
    assert asked(origin) == {6}


def test_marks_that_were_not_settled_do_not_survive_a_power_cut(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marks reached the disk before anything was settled, by chance; the bytes did not."""
    origin = Origin(DATA)
    tee = Tee(store)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        reader.read_at(chunks(5), 10)
        before = (folder(store) / "map").read_bytes()
        assert before[1024 + 5] == HERE
        with monkeypatch.context() as cut:
            cut.setattr(Partial, "checkpoint", lambda *_: None)
            reader.close()
            tee.close()
    with open(folder(store) / "data", "r+b") as file:
        file.truncate(0)
        file.truncate(len(DATA))
    assert (folder(store) / "map").read_bytes() == before
    monkeypatch.setattr(maps, "boot_id", lambda: "another")
    asked(origin)
    read(store, origin, 5)
    assert asked(origin) == {5}


@pytest.mark.parametrize("name", ["map", "data", "lock"])
def test_a_lost_file_costs_what_it_held(store: LocalStore, name: str) -> None:
    origin = Origin(DATA)
    read(store, origin, 1)
    os.unlink(folder(store) / name)
    read(store, origin, 1, 5)
    read(store, origin, 1, 5)
    assert asked(origin) == {1, 5}


@pytest.mark.parametrize("damage", range(40))
def test_a_damaged_map_is_thrown_away_and_never_believed(store: LocalStore, damage: int) -> None:
    origin = Origin(DATA)
    read(store, origin, *range(0, 30, 4))
    path = folder(store) / "map"
    raw = bytearray(path.read_bytes())
    draw = random.Random(damage)
    if damage % 4 == 0:
        del raw[draw.randrange(len(raw)) :]
    elif damage % 4 == 1:
        raw += b"more"
    else:
        for _ in range(1 if damage % 4 == 2 else 20):
            raw[draw.randrange(1024)] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(raw))
    read(store, origin, *range(0, 30, 4))
    read(store, origin, 29, trust=Trust.BLOB)
    assert store.info(DESC.digest).size == len(DATA)


def test_the_map_of_another_blob_is_not_believed(store: LocalStore) -> None:
    other = some_bytes(len(DATA), 2)
    tee = Tee(store)
    with tee.reader_at(desc_of(other), Origin(other).source, Trust.RAW) as reader:
        reader.read_at(0, chunks(7))
    tee.close()
    origin = Origin(DATA)
    read(store, origin, 0)
    theirs = store.root / "partial" / "sha256" / desc_of(other).digest.hex
    for name in ("map", "data"):
        shutil.copy(theirs / name, folder(store) / name)
    asked(origin)
    read(store, origin, 0, 7)
    assert asked(origin) == {0, 7}


def test_a_descriptor_that_lies_about_the_size(store: LocalStore) -> None:
    origin = Origin(DATA)
    wrong = Descriptor("", DESC.digest, len(DATA) + 1)
    tee = Tee(store)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        reader.read_at(0, 10)
        with tee.reader_at(wrong, origin.source, Trust.RAW) as other, pytest.raises(SizeMismatch):
            other.read_at(0, 10)
        assert reader.read_at(5, 10) == DATA[5:15]
    tee.close()


_PROCESS = """
import sys, threading
from pathlib import Path
from blobtee.content import LocalStore, Trust
from blobtee.tee import Tee
from tests.unit.tee.support import Origin, desc_of
data = Path(sys.argv[2]).read_bytes()
with LocalStore(sys.argv[1]) as store:
    tee = Tee(store)
    origin = Origin(data, piece=int(sys.argv[4]))
    exec(sys.argv[3])
    tee.close()
    print(origin.sent, flush=True)
"""


def spawn(store: LocalStore, tmp_path: Path, code: str, piece: int = 1 << 30) -> subprocess.Popen[str]:
    path = tmp_path / "origin"
    if not path.exists():
        path.write_bytes(DATA)
    arguments = [sys.executable, "-c", _PROCESS, str(store.root), str(path), code, str(piece)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_what_it_had_and_its_claims_to_others(store: LocalStore, tmp_path: Path) -> None:
    code = """
origin.gate = threading.Event()
with tee.reader_at(desc_of(data), origin.source, Trust.RAW) as reader:
    origin.gate.set()
    reader.read_at(0, 10)
    origin.gate.clear()
    print("stuck", flush=True)
    reader.read_at(20 * 65536, 10)
"""
    process = spawn(store, tmp_path, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    origin = Origin(DATA)
    tee = Tee(store)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        assert reader.read_at(0, 10) == DATA[:10]
        assert asked(origin) == set()
        claims = Claims(folder(store) / "lock")
        while claims.free(20, 21) == 21:
            assert process.poll() is None
        claims.close()
        waiting = threading.Thread(target=reader.read_at, args=(chunks(20), 10))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        waiting.join(10)
        assert asked(origin) == {20}
    tee.close()


def test_processes_that_fill_one_blob_ask_for_each_byte_once(store: LocalStore, tmp_path: Path) -> None:
    code = "print(tee.fill(desc_of(data), origin.source).size, flush=True)"
    processes = [spawn(store, tmp_path, code, 20_000) for _ in range(3)]
    lines = [process.communicate()[0].split() for process in processes]
    assert [line[0] for line in lines] == [str(len(DATA))] * 3
    assert sum(int(line[1]) for line in lines) == len(DATA)
    with store.reader_at(DESC) as reader:
        assert reader.read_at(0, len(DATA)) == DATA


def test_processes_that_read_all_over_ask_for_each_chunk_once(store: LocalStore, tmp_path: Path) -> None:
    code = """
import random
draw = random.Random(int(data[0]))
with tee.reader_at(desc_of(data), origin.source, Trust.RAW) as reader:
    for _ in range(200):
        at = draw.randrange(len(data) - 100)
        assert reader.read_at(at, 100) == data[at : at + 100]
print("read", flush=True)
"""
    processes = [spawn(store, tmp_path, code.replace("data[0]", f"{number}"), 20_000) for number in range(3)]
    lines = [process.communicate()[0].split() for process in processes]
    assert [line[0] for line in lines] == ["read"] * 3
    assert sum(int(line[1]) for line in lines) <= len(DATA)


def test_chunk_digests_are_kept_and_prove_single_chunks_later(store: LocalStore) -> None:
    tee = Tee(store)
    origin = Origin(DATA)
    tee.fill(DESC, origin.source)
    store.delete(DESC.digest)
    asked(origin)
    with tee.reader_at(DESC, origin.source) as reader:
        assert reader.read_at(chunks(20), 10) == DATA[chunks(20) : chunks(20) + 10]
    assert len(asked(origin)) == 1
    bad = Origin(bytes(len(DATA)))
    with tee.reader_at(DESC, bad.source) as reader, pytest.raises(DigestMismatch):
        reader.read_at(chunks(3), 10)
    with tee.reader_at(DESC, origin.source) as reader:
        assert reader.read_at(chunks(3), 10) == DATA[chunks(3) : chunks(3) + 10]
    tee.close()


def test_damaged_chunk_digests_prove_nothing(store: LocalStore) -> None:
    tee = Tee(store)
    origin = Origin(DATA)
    tee.fill(DESC, origin.source)
    store.delete(DESC.digest)
    path = digests.path_of(store.root, DESC.digest)
    raw = bytearray(path.read_bytes())
    raw[40] ^= 1
    path.write_bytes(bytes(raw))
    asked(origin)
    with tee.reader_at(DESC, origin.source) as reader:
        assert reader.read_at(chunks(20), 10) == DATA[chunks(20) : chunks(20) + 10]
    assert len(asked(origin)) == 31
    tee.close()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "fsync", "rename", "posix_fallocate"])
@pytest.mark.parametrize("number", [28, 5])
def test_a_disk_that_fails_says_so_and_loses_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    origin = Origin(DATA)
    for after in range(12):
        left = [after]
        real = getattr(os, call)

        def failing(*args: object, left: list[int] = left, real: object = real) -> object:
            if left[0] == 0:
                raise OSError(number, os.strerror(number))
            left[0] -= 1
            return real(*args)  # type: ignore[operator]

        tee = Tee(store)
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            try:
                with tee.reader_at(DESC, origin.source, Trust.RAW) as raw:
                    assert raw.read_at(chunks(after), 10) == DATA[chunks(after) : chunks(after) + 10]
                tee.fill(DESC, origin.source)
            except BlobteeError as error:
                assert isinstance(error, (StorageFull, StorageError))  # noqa: PT017
        tee.close()
        tee = Tee(store)
        with tee.reader_at(DESC, origin.source) as reader:
            assert reader.read_at(0, len(DATA)) == DATA
        tee.close()
        store.delete(DESC.digest)
        digests.forget(store.root, DESC.digest)


def test_collecting_takes_what_no_image_needs_and_nobody_has_open(store: LocalStore) -> None:
    origin = Origin(DATA)
    tee = Tee(store)
    manager = CacheManager(store)
    with tee.reader_at(DESC, origin.source, Trust.RAW) as reader:
        reader.read_at(0, 10)
        assert not manager.collect(grace=0).partials
    tee.close()
    assert not manager.collect(grace=3600).partials
    assert [left.digest for left in leftovers.leftovers(store.root)] == [DESC.digest]
    assert set(manager.collect(grace=0, dry_run=True).partials) == {DESC.digest}
    done = manager.collect(grace=0)
    assert set(done.partials) == {DESC.digest}
    assert done.nbytes >= CHUNK
    assert not list(leftovers.leftovers(store.root))
    read(store, origin, 0)


def test_forgetting_a_blob_of_which_no_chunk_is_known_writes_nothing(tmp_path: Path) -> None:
    """A sweep asks it of every blob that goes, and a folder for the lock costs a sync each."""
    assert leftovers.forget(tmp_path, DESC.digest)
    assert not list(tmp_path.iterdir())


def test_what_proves_chunks_stays_while_anything_of_the_blob_is_here(store: LocalStore) -> None:
    origin = Origin(DATA)
    tee = Tee(store)
    tee.fill(DESC, origin.source)
    store.delete(DESC.digest)
    with tee.reader_at(DESC, origin.source) as reader:
        assert reader.read_at(0, 10) == DATA[:10]
        assert not leftovers.forget(store.root, DESC.digest)
    tee.close()
    assert not leftovers.forget(store.root, DESC.digest)
    with Tee(store).reader_at(DESC, origin.source) as again:
        assert again.read_at(0, 10) == DATA[:10]
    assert leftovers.remove(store.root, DESC.digest)
    assert leftovers.forget(store.root, DESC.digest)
    assert not list(leftovers.digested(store.root))
    assert not list(leftovers.leftovers(store.root))


def test_a_full_disk_is_collected_all_the_same(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tee = Tee(store)
    tee.fill(DESC, Origin(DATA).source)
    tee.close()
    store.delete(DESC.digest)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(leftovers, "make_directory", full)
        CacheManager(store).collect(grace=0)
        assert list(leftovers.digested(store.root)) == [DESC.digest]
    CacheManager(store).collect(grace=0)
    assert not list(leftovers.digested(store.root))


def test_chunks_that_nothing_proved_are_not_taken_for_proven_when_the_digests_are_back(store: LocalStore) -> None:
    """Digests that cannot be read at the moment, for want of a descriptor, say."""
    tee = Tee(store)
    tee.fill(DESC, Origin(DATA).source)
    store.delete(DESC.digest)
    read(store, Origin(DATA), 2)
    path = digests.path_of(store.root, DESC.digest)
    aside = path.rename(path.with_name("aside"))
    bad = Origin(bytes(len(DATA)))
    with tee.reader_at(DESC, bad.source, Trust.RAW) as reader:
        assert reader.read_at(chunks(9), 10) == bytes(10)
    aside.rename(path)
    good = Origin(DATA)
    with tee.reader_at(DESC, good.source) as reader:
        assert reader.read_at(chunks(9), 10) == DATA[chunks(9) : chunks(9) + 10]
    tee.close()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["map", "data", "digests"])
def test_a_pipe_in_place_of_what_was_kept_holds_up_nobody(store: LocalStore, name: str) -> None:
    origin = Origin(DATA)
    read(store, origin, 3)
    path = folder(store) / name if name != "digests" else digests.path_of(store.root, DESC.digest)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    read(store, origin, 3, 5)
    assert asked(origin) >= {3, 5}
