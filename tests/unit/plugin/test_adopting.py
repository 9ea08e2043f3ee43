"""Taking over a content root of containerd's, with and without its metadata, whole and damaged."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.content.files import os_errors
from blobtee.content.ingests import MAX_REF
from blobtee.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.adopting import adopt, taking
from blobtee.plugin.adopting.bolt import Bolt
from blobtee.plugin.adopting.metadata import read
from blobtee.plugin.adopting.taking import CONTENT, METADATA
from blobtee.plugin.references import Reference, References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from tests.unit.plugin.boltfile import BoltFile, Tree

ONE, TWO, GARBAGE = b"one blob", b"another blob" * 1000, b"nobody knows this"


def go_time(seconds: int, nanos: int = 0) -> bytes:
    return struct.pack(">BqiH", 1, seconds + 62135596800, nanos, 0xFFFF)


def blob(seconds: int, labels: dict[bytes, bytes] | None = None) -> Tree:
    times = {b"createdat": go_time(seconds, 5), b"updatedat": go_time(seconds + 1), b"size": b"\x02"}
    return {**times, **({b"labels": labels} if labels else {})}


def metadata_of(namespaces: dict[str, dict[bytes, Tree]]) -> Tree:
    return {
        b"v1": {
            b"version": b"\x04",
            **{name.encode(): {b"content": {b"blob": blobs}, b"labels": {}} for name, blobs in namespaces.items()},
        }
    }


@pytest.fixture
def containerd(tmp_path: Path) -> Path:
    """containerd's root, with three blobs, an unfinished one, and metadata of two namespaces."""
    root = tmp_path / "containerd"
    for data in (ONE, TWO, GARBAGE):
        file = root / CONTENT / "blobs" / "sha256" / Digest.of(data).hex
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    ref = b"k8s.io/3/layer-x"
    ingest = root / CONTENT / "ingest" / hashlib.sha256(ref).hexdigest()
    ingest.mkdir(parents=True)
    for name, content in {"ref": ref, "data": b"half", "total": b"8", "startedat": b"", "updatedat": b""}.items():
        (ingest / name).write_bytes(content)
    one, two = (Digest.of(data).encode() for data in (ONE, TWO))
    database = root / METADATA
    database.parent.mkdir()
    namespaces = {
        "default": {one: blob(1000, {b"a": b"default", b"b": b"b"})},
        "k8s.io": {one: blob(900, {b"a": b"k8s", b"c": b"c"}), two: blob(2000), b"nonsense": blob(1)},
    }
    database.write_bytes(BoltFile(metadata_of(namespaces)).data)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "store") as store:
        yield store


def tenant(store: LocalStore) -> Tenant:
    return Tenant("default", store, References(store.metadata))


def read_of(store: Tenant, data: bytes) -> bytes:
    with store.reader_at(Descriptor("", Digest.of(data), len(data))) as reader:
        return reader.read_at(0, len(data))


def during_hashing(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[object]:
    """Let something happen while a blob is being hashed; what came of it each time."""
    seen = []
    pieces = taking._pieces

    def meanwhile(file: Path) -> Iterator[memoryview]:
        seen.append(work())
        return pieces(file)

    monkeypatch.setattr(taking, "_pieces", meanwhile)
    return seen


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_blobs_are_linked_with_the_labels_and_times_of_all_namespaces(containerd: Path, store: LocalStore) -> None:
    before = snapshot(containerd)
    done = adopt(containerd, store, "default")
    assert (done.held, done.linked, done.copied, done.garbage, done.ingests) == (2, 2, 0, 1, 1)
    assert (done.damaged, done.notes) == ([], [])
    held = tenant(store)
    info = held.info(Digest.of(ONE))
    assert dict(info.labels) == {"a": "default", "b": "b", "c": "c"}
    assert (info.created_at, info.updated_at) == (900 * 10**9 + 5, 1001 * 10**9)
    assert read_of(held, TWO) == TWO
    assert os.stat(containerd / CONTENT / "blobs" / "sha256" / Digest.of(TWO).hex).st_nlink == 2
    with pytest.raises(NotFound):
        held.info(Digest.of(GARBAGE))
    assert [(status.ref, status.offset, status.total) for status in held.statuses()] == [("k8s.io/3/layer-x", 4, 8)]
    assert snapshot(containerd) == before
    assert CacheManager(store).collect(grace=0).blobs == {}


def test_a_second_run_takes_what_is_new(containerd: Path, store: LocalStore) -> None:
    adopt(containerd, store, "default")
    tenant(store).update(Digest.of(ONE), {"a": "changed since"})
    new = b"new since then"
    (containerd / CONTENT / "blobs" / "sha256" / Digest.of(new).hex).write_bytes(new)
    (containerd / METADATA).unlink()
    done = adopt(containerd / CONTENT, store, "default")
    assert (done.held, done.linked, done.garbage) == (4, 2, 0)
    assert len(done.notes) == 1
    assert tenant(store).info(Digest.of(ONE)).labels["a"] == "changed since"
    assert read_of(tenant(store), new) == new


def test_in_place_the_folder_is_the_store(containerd: Path) -> None:
    with LocalStore(containerd / CONTENT) as store:
        done = adopt(containerd, store, "default")
        assert (done.held, done.linked, done.garbage, done.ingests) == (2, 0, 1, 1)
        held = tenant(store)
        assert {info.digest for info in held.walk()} == {Digest.of(ONE), Digest.of(TWO)}
        with held.writer("k8s.io/3/layer-x", total=8) as writer:
            assert writer.status.offset == 4
            writer.write(b"done")
            writer.commit(8, Digest.of(b"halfdone"))
        assert adopt(containerd, store, "default").ingests == 0


def test_wrong_bytes_are_named_and_never_taken(containerd: Path, store: LocalStore) -> None:
    bad = containerd / CONTENT / "blobs" / "sha256" / Digest.of(TWO).hex
    bad.write_bytes(b"x" * len(TWO))
    done = adopt(containerd, store, "default")
    assert done.damaged == [Digest.of(TWO)]
    with pytest.raises(NotFound):
        tenant(store).info(Digest.of(TWO))
    with LocalStore(containerd / CONTENT) as inside:
        assert adopt(containerd, inside, "default").damaged == [Digest.of(TWO)]
        assert not bad.exists()
        assert [info.digest for info in inside.quarantined()] == [Digest.of(TWO)]


def test_another_file_system_is_copied_to_and_checked(
    containerd: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    (containerd / CONTENT / "blobs" / "sha256" / Digest.of(ONE).hex).write_bytes(b"bad")
    done = adopt(containerd, store, "default", verify=False)
    assert (done.held, done.copied, done.damaged) == (1, 1, [Digest.of(ONE)])
    assert any("copied" in note for note in done.notes)
    assert read_of(tenant(store), TWO) == TWO
    assert store.statuses("ref~=^adopt-") == []


def test_a_containerd_that_runs_is_noticed(containerd: Path, store: LocalStore) -> None:
    with open(containerd / METADATA) as database:
        fcntl.flock(database, fcntl.LOCK_EX)
        assert any("containerd runs" in note for note in adopt(containerd, store, "default").notes)
        with LocalStore(containerd / CONTENT) as inside, pytest.raises(FailedPrecondition, match="stop it"):
            adopt(containerd, inside, "default")


def test_a_containerd_that_starts_meanwhile_waits(containerd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_free() -> bool:
        with open(containerd / METADATA) as database:
            try:
                fcntl.flock(database, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    seen = during_hashing(monkeypatch, is_free)
    with LocalStore(containerd / CONTENT) as store:
        adopt(containerd, store, "default")
    assert set(seen) == {False}
    assert is_free()


def test_a_containerd_that_began_meanwhile_is_noticed(containerd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (containerd / METADATA).unlink()
    with ExitStack() as stack:

        def start() -> None:
            if not (containerd / METADATA).exists():
                fcntl.flock(stack.enter_context(open(containerd / METADATA, "w")), fcntl.LOCK_EX)

        during_hashing(monkeypatch, start)
        with LocalStore(containerd / CONTENT) as store, pytest.raises(FailedPrecondition, match="stop it"):
            adopt(containerd, store, "default")


def test_the_database_of_another_place_hides_no_containerd_that_runs(containerd: Path, tmp_path: Path) -> None:
    shutil.copy(containerd / METADATA, tmp_path / "copy.db")
    with open(containerd / METADATA) as database, LocalStore(containerd / CONTENT) as store:
        fcntl.flock(database, fcntl.LOCK_EX)
        with pytest.raises(FailedPrecondition, match="stop it"):
            adopt(containerd, store, "default", database=tmp_path / "copy.db")


def test_a_database_that_was_named_has_to_be_one(containerd: Path, store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        adopt(containerd, store, "default", database=tmp_path / "absent.db")
    with pytest.raises(DataLoss):
        adopt(containerd, store, "default", database=Path("/dev/zero"))
    assert list(store.walk()) == []


def test_the_unfinished_blobs_of_a_namespace_that_is_called_tenant(containerd: Path) -> None:
    ref = b"tenant/7/layer-y"
    ingest = containerd / CONTENT / "ingest" / hashlib.sha256(ref).hexdigest()
    ingest.mkdir()
    (ingest / "ref").write_bytes(ref)
    (ingest / "data").write_bytes(b"some")
    with LocalStore(containerd / CONTENT) as store:
        for count in (2, 0):
            assert adopt(containerd, store, "default").ingests == count
            refs = [(status.ref, status.offset) for status in tenant(store).statuses()]
            assert sorted(refs) == [("k8s.io/3/layer-x", 4), ("tenant/7/layer-y", 4)]
        assert len(store.statuses()) == 2


def test_a_ref_that_is_too_long_with_the_tenants_name_keeps_no_other(containerd: Path, store: LocalStore) -> None:
    ref = b"x" * MAX_REF
    ingest = containerd / CONTENT / "ingest" / hashlib.sha256(ref).hexdigest()
    ingest.mkdir()
    (ingest / "ref").write_bytes(ref)
    (ingest / "data").write_bytes(b"some")
    done = adopt(containerd, store, "default")
    assert (done.ingests, len(done.notes)) == (1, 1)


def test_a_blob_that_goes_meanwhile_keeps_no_other(
    containerd: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = containerd / CONTENT / "blobs" / "sha256" / Digest.of(ONE).hex
    during_hashing(monkeypatch, lambda: gone.unlink(missing_ok=True))
    done = adopt(containerd, store, "default")
    assert (done.held, done.damaged) == (1, [])
    assert [note for note in done.notes if "removed while" in note] == done.notes != []
    assert read_of(tenant(store), TWO) == TWO


def test_a_blob_that_the_disk_cannot_read_keeps_no_other(
    containerd: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = taking._pieces

    def broken(file: Path) -> Iterator[memoryview]:
        with os_errors("read it"):
            if file.name == Digest.of(ONE).hex:
                raise OSError(errno.EIO, "Input/output error")
        return pieces(file)

    monkeypatch.setattr(taking, "_pieces", broken)
    done = adopt(containerd, store, "default")
    assert (done.held, done.damaged) == (1, [Digest.of(ONE)])
    with LocalStore(containerd / CONTENT) as inside:
        assert adopt(containerd, inside, "default").held == 1
        assert inside.quarantined() == [], "nobody knows that it is bad"


def test_in_place_a_blob_that_lost_its_end_is_damage_without_verifying_too(containerd: Path) -> None:
    with LocalStore(containerd / CONTENT) as store:
        adopt(containerd, store, "default")
        os.truncate(containerd / CONTENT / "blobs" / "sha256" / Digest.of(TWO).hex, 5)
        done = adopt(containerd, store, "default", verify=False)
        assert (done.held, done.damaged) == (1, [Digest.of(TWO)])


def test_what_is_swept_before_it_is_held_is_taken_again(
    containerd: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tenant(store)
    with before.writer("ref") as writer:
        writer.write(ONE)
        writer.commit()
    before.delete(Digest.of(ONE))
    take_over = References.take_over

    def after_a_sweep(references: References, name: str, batch: list[Reference]) -> None:
        assert Sweeper(store, references).sweep() == 1
        take_over(references, name, batch)

    monkeypatch.setattr(References, "take_over", after_a_sweep)
    assert adopt(containerd, store, "default").held == 2
    assert read_of(tenant(store), ONE) == ONE


def test_a_time_that_cannot_be_is_none(containerd: Path, store: LocalStore) -> None:
    one = Digest.of(ONE).encode()
    (containerd / METADATA).write_bytes(BoltFile(metadata_of({"default": {one: blob(1 << 40)}})).data)
    adopt(containerd, store, "default")
    assert 0 < tenant(store).info(Digest.of(ONE)).created_at < 1 << 62


def test_blobs_that_are_missing_are_counted(containerd: Path, store: LocalStore) -> None:
    (containerd / CONTENT / "blobs" / "sha256" / Digest.of(ONE).hex).unlink()
    done = adopt(containerd, store, "default")
    assert done.held == 1
    assert done.notes == ["1 blobs that containerd knows are not on disk."]


def test_what_is_no_content_root_is_refused(tmp_path: Path, store: LocalStore) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidArgument, match="no content root"):
            adopt(path, store, "default")


@pytest.mark.parametrize("inline", [True, False])
def test_buckets_of_any_size_are_read(tmp_path: Path, inline: bool) -> None:
    digests = [Digest.of(b"%d" % number) for number in range(3000)]
    path = tmp_path / "meta.db"
    blobs = {digest.encode(): blob(number, {b"n": b"%d" % number}) for number, digest in enumerate(digests)}
    path.write_bytes(BoltFile(metadata_of({"default": blobs}), inline=inline).data)
    known = read(path)
    assert {digest: each.labels["n"] for digest, each in known.items()} == {
        digest: str(number) for number, digest in enumerate(digests)
    }


def test_the_second_head_serves_when_the_first_is_torn(tmp_path: Path) -> None:
    data = bytearray(BoltFile({b"key": b"value"}).data)
    path = tmp_path / "meta.db"
    data[30] ^= 0xFF
    path.write_bytes(data)
    with Bolt(path) as file:
        assert file.root.value(b"key") == b"value"
    data[4096 + 30] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataLoss, match="no head"):
        Bolt(path)


def test_pages_that_lead_in_a_circle_are_damage(tmp_path: Path) -> None:
    data = bytearray(BoltFile({b"a": {b"key": b"value" * 10}}, inline=False).data)
    root = struct.unpack_from("<Q", data, 16 + 16)[0] * 4096
    struct.pack_into("<QHHI", data, root, root // 4096, 1, 1, 0)
    struct.pack_into("<IIQ", data, root + 16, 16, 1, root // 4096)
    path = tmp_path / "meta.db"
    path.write_bytes(data)
    with Bolt(path) as file, pytest.raises(DataLoss, match="leads back"):
        list(file.root.items())


class SharedPages(BoltFile):
    """Trees that are the same object have one page, which all buckets lead to."""

    def _store(self, tree: Tree) -> int:
        self._stored: dict[int, int] = getattr(self, "_stored", {})
        if id(tree) not in self._stored:
            self._stored[id(tree)] = super()._store(tree)
        return self._stored[id(tree)]


def test_pages_that_many_buckets_claim_cost_no_more_than_the_file_is_large(tmp_path: Path) -> None:
    one = blob(1, {b"label-%d" % number: b"x" * 60_000 for number in range(5)})
    blobs = {Digest.of(b"%d" % number).encode(): one for number in range(400)}
    path = tmp_path / "meta.db"
    path.write_bytes(SharedPages(metadata_of({"default": blobs}), inline=False).data)
    size = path.stat().st_size
    assert size < 1 << 19
    tracemalloc.start()
    try:
        with pytest.raises(DataLoss, match="again and again"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * size
    finally:
        tracemalloc.stop()


def test_values_that_lie_in_each_other_cost_no_more_than_the_file_is_large(tmp_path: Path) -> None:
    keys = [b"label-%03d" % number for number in range(500)]
    one = {Digest.of(b"").encode(): blob(1, {b"a": b"a"})}
    path = tmp_path / "meta.db"
    data = bytearray(BoltFile(metadata_of({"default": one}), inline=False).data)
    heads = b"".join(_head(number, len(keys)) for number in range(len(keys)))
    page = struct.pack("<QHHI", 0, 2, len(keys), 29) + heads + b"".join(keys) + b"x" * 100_000
    leaf = len(data)
    data += page.ljust(30 * 4096, b"\0")
    # The bucket of labels leads to that page instead of its own.
    at = data.index(b"labels", 8192) + len(b"labels")
    struct.pack_into("<Q", data, at, leaf // 4096)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(DataLoss, match="in each other"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(data)
    finally:
        tracemalloc.stop()


def _head(number: int, count: int) -> bytes:
    """Of a key of nine bytes among `count`, whose value is all that follows it in the page."""
    return struct.pack("<IIII", 0, (count - number) * 16 + 9 * number, 9, 9 * (count - number - 1) + 100_000)


def test_a_file_that_becomes_shorter_while_it_is_read_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(BoltFile({b"a": {b"key": b"value" * 10}}, inline=False).data)
    with Bolt(path) as file:
        os.truncate(path, 3 * 4096)
        with pytest.raises(DataLoss, match="shorter"):
            list(file.root.items())


def test_damage_anywhere_is_data_loss_or_other_keys_and_nothing_else(tmp_path: Path) -> None:
    blobs = {Digest.of(b"%d" % number).encode(): blob(number, {b"n": b"%d" % number}) for number in range(100)}
    whole = BoltFile(metadata_of({"default": blobs}), inline=False).data
    path = tmp_path / "meta.db"
    chance = random.Random(4)
    outcomes = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(8192, len(data)) // 4096 * 4096 + chance.randrange(200)] = chance.randrange(256)
        path.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        try:
            read(path)
            outcomes.add("read")
        except DataLoss:
            outcomes.add("lost")
    assert outcomes == {"read", "lost"}


def test_an_empty_or_absent_or_odd_file(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    with pytest.raises(NotFound):
        read(path)
    for data in (b"", b"x" * 100_000, BoltFile({b"other": b""}).data):
        path.write_bytes(data)
        with pytest.raises(DataLoss):
            read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises((DataLoss, OSError)):
        read(path)
