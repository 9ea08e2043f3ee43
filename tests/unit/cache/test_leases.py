"""Leases of users, and how work takes over what others held."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from blobtee.cache import CacheManager, Leases
from blobtee.cache.leases import CONTENT, current_lease
from blobtee.content import MemoryStore
from blobtee.errors import AlreadyExists, InvalidArgument, NotFound


@pytest.fixture
def leases() -> Iterator[Leases]:
    with MemoryStore() as store:
        yield CacheManager(store).leases


def test_a_lease_is_made_listed_and_deleted(leases: Leases) -> None:
    before = time.time_ns()
    mine = leases.create("mine", labels={"purpose": "a test"}, expires_in=10)
    other = leases.create(flat=True)
    assert leases.all() == sorted([mine, other], key=lambda lease: lease.id)
    assert (mine.labels, mine.flat, other.flat, other.expires_at) == ({"purpose": "a test"}, False, True, None)
    assert mine.expires_at is not None
    assert 0 <= mine.expires_at - before - 10_000_000_000 < 60_000_000_000
    leases.add("mine", ["sha256:a"])
    leases.delete("mine")
    leases.delete("mine")
    assert (leases.all(), leases.resources("mine")) == ([other], [])


def test_an_id_is_taken_once(leases: Leases) -> None:
    leases.create("mine", labels={"a": "b"})
    with pytest.raises(AlreadyExists):
        leases.create("mine")
    assert leases.all()[0].labels == {"a": "b"}


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_lease_for_no_duration_is_refused(leases: Leases, seconds: float) -> None:
    with pytest.raises(InvalidArgument):
        leases.create(expires_in=seconds)


def test_an_empty_id_and_labels_that_are_no_text_are_refused(leases: Leases) -> None:
    with pytest.raises(InvalidArgument):
        leases.create("")
    with pytest.raises(InvalidArgument):
        leases.create("x", labels={"a": 1})  # type: ignore[dict-item]
    assert leases.all() == []


def test_work_under_a_lease_of_ones_own_is_held_by_it_and_it_stays(leases: Leases) -> None:
    leases.create("mine")
    with leases.using("mine"):
        assert current_lease() == "mine"
        with leases.hold() as inner:
            assert inner == "mine"
            leases.protect(["sha256:a"])
    assert current_lease() is None
    assert leases.resources("mine") == [(CONTENT, "sha256:a")]


def test_a_lease_that_is_not_there_cannot_be_used(leases: Leases) -> None:
    with pytest.raises(NotFound), leases.using("mine"):
        pass
    leases.create("mine")
    with leases.using("mine"):
        leases.delete("mine")
        with pytest.raises(NotFound):  # rather than work that believes itself safe
            leases.protect(["sha256:a"])
    assert leases.all() == []


def test_what_is_held_of_some_digests_and_what_is_followed(leases: Leases) -> None:
    leases.create("flat", flat=True)
    leases.create("deep")
    leases.add("flat", ["sha256:a", "sha256:b"])
    leases.add("deep", ["sha256:b", "sha256:c"])
    leases.add("deep", ["sha256:d"], kind="ref")
    assert leases.held(["sha256:a", "sha256:b", "sha256:d", "sha256:e"]) == {"sha256:a", "sha256:b"}
    assert leases.held([]) == set()
    assert leases.followed() == {"sha256:b", "sha256:c"}


def test_holdings_tell_which_leases_count(leases: Leases) -> None:
    leases.create("over", expires_in=0)
    leases.create("good", expires_in=1000)
    leases.add("good", ["sha256:b", "sha256:a"])
    leases.add("good", ["a ref"], kind="ref")
    with leases.hold() as mine:
        leases.protect(["sha256:c"])
        found = {holding.lease.id: (holding.counts, holding.digests) for holding in leases.holdings()}
    assert found == {
        "over": (False, ()),
        "good": (True, ("sha256:a", "sha256:b")),
        mine: (True, ("sha256:c",)),
    }


def test_work_that_takes_longer_than_its_lease_keeps_it(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.cache.leases.EXPIRY_SECONDS", 0)
    with leases.hold() as mine:
        leases.protect(["sha256:a"])
        leases.drop_stale()
        assert [(holding.lease.id, holding.counts) for holding in leases.holdings()] == [(mine, True)]


def test_who_holds_which_of_many(leases: Leases) -> None:
    for name in ("one", "two"):
        leases.create(name)
    leases.add("one", [f"sha256:{number}" for number in range(1200)])
    leases.add("two", ["sha256:7", "other"])
    leases.add("two", ["sha256:8"], kind="snapshots")
    wanted = [f"sha256:{number}" for number in range(5, 1100)]
    found = leases.holding(wanted)
    assert found == {("two", "sha256:7"), *(("one", resource) for resource in wanted)}
    assert leases.holding([]) == set()
