"""What becomes of tenants' blobs when blobtee.db is lost, as when an operator moves a damaged one away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blobtee.cache import CacheManager, holders
from blobtee.content import LocalStore
from blobtee.errors import StorageFull
from blobtee.oci import Digest
from blobtee.plugin.adopting import adopt
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from tests.unit.plugin.boltfile import BoltFile
from tests.unit.plugin.test_adopting import blob, metadata_of

ONE, TWO = b"built by one containerd, and nowhere else", b"of the other"


def put(tenant: Tenant, data: bytes) -> Digest:
    with tenant.writer("ref") as writer:
        writer.write(data)
        return writer.commit(len(data), Digest.of(data), {"label": "of " + tenant.name}).digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a store with two tenants that hold a blob each, as it is when its database is gone."""
    root = tmp_path / "root"
    with LocalStore(root) as store:
        references = References(store.metadata)
        put(Tenant("one", store, references), ONE)
        put(Tenant("two", store, references), TWO)
    for path in root.glob("blobtee.db*"):
        os.unlink(path)
    return root


def blobs(store: LocalStore) -> set[str]:
    return {info.digest for info in store.walk()}


BOTH = {Digest.of(ONE), Digest.of(TWO)}


@pytest.mark.parametrize("how", ["moved away", "cut off"])
def test_gc_removes_nothing_until_the_tenants_are_there_again_and_hold_everything(root: Path, how: str) -> None:
    if how == "cut off":
        (root / "blobtee.db").write_bytes(b"")
    with LocalStore(root) as store:
        found = CacheManager(store).collect(grace=0)
        assert blobs(store) == BOTH
        assert [problem for problem in found.problems if "tenant/one" in problem and "blobtee serve" in problem]
        references = References(store.metadata)
        one = Tenant("one", store, references)
        assert CacheManager(store).collect(grace=0).problems  # what the other holds is not known yet
        two = Tenant("two", store, references)
        assert {info.digest for info in one.walk()} == {info.digest for info in two.walk()} == BOTH
        found = CacheManager(store).collect(grace=0)
        assert (found.problems, found.blobs) == ((), {})
        # As their containerds do with what they do not know.
        one.delete(Digest.of(TWO))
        two.delete(Digest.of(ONE))
        assert Sweeper(store, references).sweep() == 0
        assert blobs(store) == BOTH
        one.delete(Digest.of(ONE))
        assert Sweeper(store, references).sweep() == 1
        assert blobs(store) == {Digest.of(TWO)}


def test_nothing_is_swept_while_another_tenant_is_not_there_again(root: Path) -> None:
    with LocalStore(root) as store:
        references = References(store.metadata)
        one = Tenant("one", store, references)
        one.delete(Digest.of(TWO))
        assert Sweeper(store, references).sweep() == 0
        assert blobs(store) == BOTH


def test_a_tenant_that_is_no_more_is_forgotten_with_its_file(root: Path) -> None:
    with LocalStore(root) as store:
        Tenant("one", store, References(store.metadata)).delete(Digest.of(TWO))
        os.unlink(root / "holders" / "tenant%2Ftwo")
        assert Sweeper(store, References(store.metadata)).sweep() == 1


def test_files_of_other_names_say_nothing(root: Path) -> None:
    for name in (b"tenant%2fone", b"\xff", "ä".encode(), b"a b", b"%FF", b"%"):
        (root / "holders" / os.fsdecode(name)).write_bytes(b"")
    assert holders.recorded(root) == {"tenant/one", "tenant/two"}


def test_a_tenant_that_is_new_holds_nothing_of_a_root_that_has_lost_its_database(root: Path) -> None:
    with LocalStore(root) as store:
        assert list(Tenant("three", store, References(store.metadata)).walk()) == []


def test_a_full_disk_keeps_no_tenant_from_being_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: Path, lease_id: str) -> None:
        raise StorageFull("no space left")

    with LocalStore(tmp_path / "root") as store:
        references = References(store.metadata)
        with monkeypatch.context() as patch:
            patch.setattr(holders, "record", refuse)
            put(Tenant("one", store, references), ONE)
        assert holders.recorded(store.root) == set()
        Tenant("one", store, references)
        assert holders.recorded(store.root) == {"tenant/one"}


def test_adopt_gives_the_labels_back_before_and_after_the_tenant_was_served(root: Path, tmp_path: Path) -> None:
    database = tmp_path / "meta.db"
    database.write_bytes(BoltFile(metadata_of({"default": {Digest.of(ONE).encode(): blob(9, {b"a": b"b"})}})).data)
    with LocalStore(root) as store:
        for tenant in ("one", "two"):
            if tenant == "two":
                Tenant(tenant, store, References(store.metadata))
            adopt(root, store, tenant, database=database)
            view = Tenant(tenant, store, References(store.metadata))
            assert view.info(Digest.of(ONE)).labels == {"a": "b"}
            assert view.info(Digest.of(ONE)).created_at == 9_000_000_005
            assert {info.digest for info in view.walk()} == BOTH
