"""Finding what is broken or missing, and bringing it again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from blobtee import tasks
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import DataLoss, NotFound
from blobtee.oci import Digest
from blobtee.registry import Registry
from blobtee.testing import MemoryRegistry, image
from blobtee.testing.images import Files
from blobtee.transfer import open_image, pull, verify, verifying

FILES: list[Files] = [{"a": bytes(range(256)) * 9000}, {"b": b"b" * 5000}]


def damage(store: LocalStore, digest: str, data: bytes | None = None) -> None:
    """Turn the last byte of a blob over, or put `data` in its place."""
    path = store.root / "blobs" / "sha256" / Digest(digest).hex
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]) if data is None else data)


def test_good_blobs_of_all_sizes_and_algorithms_are_good(store: LocalStore) -> None:
    total = 0
    for n in (0, 1, 100, 1 << 20, (1 << 20) + 1, 3_000_000):
        data = bytes([n % 251]) * n
        for algorithm in ("sha256", "sha512"):
            with store.writer(f"{algorithm}{n}") as writer:
                writer.write(data)
                writer.commit(n, f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")
            total += n
    events: list[tasks.Event] = []
    with tasks.reporting(events.append):
        result = verify(store)
    assert (result.blobs, result.nbytes, result.good, result.problems) == (12, total, True, ())
    assert (events[-1].action, events[-1].current, events[-1].completed is not None) == ("verify", total, True)


def test_lazy_layers_are_counted_and_are_no_problem(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    pull(image(FILES).push(server, "team/app"), store, lazy=True, registry=client).close()
    result = verify(store)
    assert (result.blobs, result.lazy, result.good) == (2, 2, True)


@pytest.mark.parametrize("data", [None, b"", b"short", bytes(9_000_000)])
@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_broken_blob_is_named_with_its_image_and_brought_again(
    server: MemoryRegistry, client: Registry, store: LocalStore, which: str, data: bytes | None
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    with pull(name, store, registry=client) as pulled:
        digest = {
            "layer": source.layers[0].descriptor.digest,
            "config": pulled.manifest.config.digest,
            "manifest": source.descriptor.digest,
        }[which]
    damage(store, digest, data)
    result = verify(store)
    assert [(p.digest, p.kind, p.images, p.repaired) for p in result.problems] == [(digest, "broken", (name,), False)]
    assert not result.good
    labels = store.info(digest).labels if data is None else None
    server.reset()
    result = verify(store, repair=True, registry=client)
    assert [(p.digest, p.repaired) for p in result.problems] == [(digest, True)]
    assert result.good
    assert verify(store).problems == ()
    assert labels is None or store.info(digest).labels == labels
    moved = server.counters.sent
    assert moved["blob"] + moved["config"] + moved["manifest"] == len(
        {**source.blobs, source.descriptor.digest: source.manifest}[digest]
    )
    with open_image(name, store, registry=client) as opened, opened.open("a") as file:
        assert file.read() == FILES[0]["a"]


@pytest.mark.parametrize("brought_again", [True, False])
def test_what_somebody_else_repairs_meanwhile_is_left_alone(
    server: MemoryRegistry, client: Registry, store: LocalStore, monkeypatch: pytest.MonkeyPatch, brought_again: bool
) -> None:
    source = image(FILES)
    pull(source.push(server, "team/app"), store, registry=client).close()
    digest = source.layers[0].descriptor.digest
    damage(store, digest)
    read = verifying._hash_all

    def read_and_be_overtaken(*arguments: Any) -> dict[Digest, str]:
        monkeypatch.setattr(verifying, "_hash_all", read)
        found = read(*arguments)
        if brought_again:
            assert verify(store, repair=True, registry=client).good
        else:
            store.quarantine(digest)
        server.reset()
        return found

    monkeypatch.setattr(verifying, "_hash_all", read_and_be_overtaken)
    result = verify(store, repair=True, registry=client)
    assert [(problem.digest, problem.repaired) for problem in result.problems] == [(digest, True)]
    assert server.counters.sent["blob"] == (0 if brought_again else len(source.layers[0].data))
    assert verify(store).problems == ()


def test_what_nobody_can_bring_again_stays_out(server: MemoryRegistry, client: Registry, store: LocalStore) -> None:
    source = image(FILES)
    pull(source.push(server, "team/app"), store, registry=client).close()
    digest = source.layers[1].descriptor.digest
    damage(store, digest)
    server.remove_blob(digest)
    with store.writer("orphan") as writer:
        writer.write(b"orphan")
        orphan = writer.commit().digest
    damage(store, orphan)
    result = verify(store, repair=True, registry=client)
    assert {p.digest: p.repaired for p in result.problems} == {digest: False, orphan: False}
    assert any("nothing says where it can be had" in p.reason for p in result.problems)
    assert {info.digest for info in store.quarantined()} == {digest, orphan}
    assert {info.digest for info in store.walk()}.isdisjoint({digest, orphan})


def test_an_image_that_lost_its_documents_or_layers_of_unknown_origin_is_incomplete(
    store: LocalStore, tmp_path: Path
) -> None:
    source = image(FILES)
    pull(f"oci:{source.write_layout(tmp_path / 'layout', 'v1')}", store).close()
    store.delete(source.layers[0].descriptor.digest)
    result = verify(store)
    assert [(p.kind, p.digest, p.images) for p in result.problems] == [
        ("missing", source.layers[0].descriptor.digest, ("v1",))
    ]
    store.delete(source.descriptor.digest)
    assert [(p.kind, p.digest) for p in verify(store).problems] == [("missing", source.descriptor.digest)]


def test_a_lost_document_is_brought_again_from_the_image_s_name(
    server: MemoryRegistry, client: Registry, store: LocalStore
) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    pull(name, store, lazy=True, registry=client).close()
    store.delete(source.descriptor.digest)
    assert verify(store, repair=True, registry=client).good
    open_image(name, store, registry=client).close()


def test_a_good_blob_of_which_only_the_metadata_are_wrong_is_not_taken_out(store: LocalStore) -> None:
    data = b"nowhere else" * 100_000
    with store.writer("ref") as writer:
        writer.write(data)
        digest = writer.commit(labels={"a": "b"}).digest
    with store.metadata.transaction() as connection:
        connection.execute("UPDATE blobs SET size = size + 4096")
    assert [problem.kind for problem in verify(store).problems] == ["broken"]
    assert verify(store, repair=True).good
    assert (store.info(digest).size, store.info(digest).labels) == (len(data), {"a": "b"})
    damage(store, digest, data + b"!")
    assert not store.mend(digest)
    with pytest.raises(NotFound):
        store.mend(Digest.of(b"none"))
    assert verify(store).problems


def test_metadata_that_are_damaged_where_nobody_looks_are_found(store: LocalStore, tmp_path: Path) -> None:
    with store.metadata.transaction() as connection:
        connection.execute("CREATE TABLE more (text TEXT)")
        connection.executemany("INSERT INTO more VALUES (?)", [("x" * 1000,) for _ in range(100)])
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'more'").fetchone()
    store.close()
    path = store.root / "blobtee.db"
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with LocalStore(store.root) as again:
        assert list(again.walk()) == []
        with pytest.raises(DataLoss, match=r"move blobtee.db\* away"):
            verify(again)


def test_a_store_in_memory_is_verified_too(server: MemoryRegistry, client: Registry) -> None:
    with MemoryStore() as memory:
        pull(image(FILES).push(server, "team/app"), memory, registry=client).close()
        assert verify(memory).blobs == 4
