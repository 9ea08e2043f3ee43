"""Open refs as locks, between threads and between store objects."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from blobtee.cache.inuse import InUse
from blobtee.content import LocalStore
from blobtee.content.locks import LOCK_FILE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with LocalStore(tmp_path / "store") as store:
        return store.root


def descriptors(root: Path) -> int:
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link) == str(root / LOCK_FILE) for link in links)


def test_any_number_may_open_a_ref_and_nobody_may_claim_it_then(root: Path) -> None:
    one, other = InUse(root), InUse(root)
    one.retain("ref")
    one.retain("ref")
    other.retain("ref")
    one.release("ref")
    assert (one.claim("ref"), other.claim("ref"), InUse(root).claim("ref")) == (False, False, False)
    one.release("ref")
    assert (one.claim("ref"), one.is_open("another")) == (False, False)
    other.release("ref")
    assert one.claim("ref")
    assert (one.claim("ref"), other.is_open("ref")) == (False, True)
    one.give_back(["ref"])
    assert not other.is_open("ref")
    assert descriptors(root) == 0


@pytest.mark.parametrize("same", [True, False])
def test_who_opens_a_claimed_ref_waits_until_it_is_given_back(root: Path, same: bool) -> None:
    one = InUse(root)
    other = one if same else InUse(root)
    assert one.claim("ref")
    opened = threading.Event()

    def opening() -> None:
        other.retain("ref")
        opened.set()

    thread = threading.Thread(target=opening)
    thread.start()
    assert not opened.wait(0.05)
    one.give_back(["ref"])
    assert opened.wait(30)
    thread.join()
    assert not one.claim("ref")
    other.release("ref")
    assert descriptors(root) == 0


def test_without_a_lock_file_refs_are_counted_all_the_same(tmp_path: Path) -> None:
    for root in (None, tmp_path / "nowhere"):
        refs = InUse(root)
        refs.retain("ref")
        assert refs.is_open("ref")
        refs.release("ref")
        assert not refs.is_open("ref")
