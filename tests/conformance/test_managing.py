"""`Manager`: labels, walking, deleting and filters, on every store."""

from __future__ import annotations

import time

import pytest

from blobtee.content import Store
from blobtee.errors import InvalidArgument, NotFound
from tests.conformance.blobs import digest_of, put

A, B, C = b"first", b"second", b"third"


def walked(store: Store, *filters: str) -> set[str]:
    return {info.digest for info in store.walk(*filters)}


def test_info_tells_size_and_times(store: Store) -> None:
    before = time.time_ns()
    info = put(store, A)
    assert info.size == len(A)
    assert before <= info.created_at <= info.updated_at <= time.time_ns()


def test_update_sets_and_removes_single_labels_and_bumps_only_one_time(store: Store) -> None:
    before = put(store, A, {"keep": "1", "change": "1", "drop": "1", "blank": "1"})
    after = store.update(before.digest, {"change": "2", "drop": None, "blank": "", "new/with.dots": "3", "no": None})
    assert dict(after.labels) == {"keep": "1", "change": "2", "new/with.dots": "3"}
    assert store.info(before.digest) == after
    assert (after.created_at, after.size) == (before.created_at, before.size)
    assert after.updated_at > before.updated_at


def test_update_replaces_all_labels(store: Store) -> None:
    digest = put(store, A, {"old": "1"}).digest
    assert dict(store.update(digest, {"new": "2", "blank": ""}, replace=True).labels) == {"new": "2"}
    assert dict(store.update(digest, {}, replace=True).labels) == {}
    assert dict(store.info(digest).labels) == {}


def test_update_of_what_is_not_there_or_not_text_is_refused(store: Store) -> None:
    with pytest.raises(NotFound):
        store.update(digest_of(A), {"a": "b"})
    digest = put(store, A, {"keep": "1"}).digest
    with pytest.raises(InvalidArgument):
        store.update(digest, {"fine": "1", "bad": 7})  # type: ignore[dict-item]
    assert dict(store.info(digest).labels) == {"keep": "1"}


def test_odd_labels_survive(store: Store) -> None:
    labels = {"quote\"'": "\\ \n \0 ü 😀", "=,.": "~=/|", "k" * 2000: "v" * 2000}
    digest = put(store, A, labels).digest
    assert dict(store.info(digest).labels) == labels


def test_walking_an_empty_store_gives_nothing(store: Store) -> None:
    assert list(store.walk()) == []


def test_walking_gives_every_blob_once(store: Store) -> None:
    infos = {put(store, b"%d" % n).digest for n in range(20)}
    assert sorted(info.digest for info in store.walk()) == sorted(infos)


def test_blobs_may_be_deleted_and_added_while_walking(store: Store) -> None:
    first = {put(store, b"%d" % n).digest for n in range(30)}
    seen = []
    for info in store.walk():
        seen.append(info.digest)
        store.delete(info.digest)
        store.update(put(store, b"new %d" % len(seen)).digest, {"a": "b"})
        if len(seen) > 1000:
            break
    assert first <= set(seen)
    assert not first & walked(store)


def test_a_walk_that_is_given_up_leaves_nothing_open(store: Store) -> None:
    for n in range(3):
        put(store, b"%d" % n)
    next(iter(store.walk()))
    store.delete(digest_of(b"0"))
    assert len(walked(store)) == 2


def test_deleting_removes_the_blob_and_its_labels(store: Store) -> None:
    put(store, A, {"old": "1"})
    put(store, B)
    store.delete(digest_of(A))
    with pytest.raises(NotFound):
        store.delete(digest_of(A))
    with pytest.raises(NotFound):
        store.info(digest_of(A))
    assert walked(store) == {digest_of(B)}
    assert dict(put(store, A).labels) == {}


def test_filters_choose_blobs(store: Store) -> None:
    put(store, A, {"os": "linux", "containerd.io/gc.root": "1"})
    put(store, B, {"os": "windows", "dotted.key": "x"})
    put(store, C)
    a, b, c = digest_of(A), digest_of(B), digest_of(C)
    for filters, wanted in [
        ((), {a, b, c}),
        (("",), {a, b, c}),
        ((f"digest=={a}",), {a}),
        ((f"digest!={a}",), {b, c}),
        (("digest~=^sha256:",), {a, b, c}),
        (("labels.os",), {a, b}),
        (("labels.os==linux",), {a}),
        (("labels.os!=linux",), {b, c}),
        (("labels.os~=^(linux|win)",), {a, b}),
        (("labels.os~=/^win.*s$/",), {b}),
        (("labels.dotted.key==x",), {b}),
        (('labels."containerd.io/gc.root"',), {a}),
        (('labels."containerd.io/gc.root"==1,labels.os==linux',), {a}),
        (("labels.os==linux,labels.os==windows",), set()),
        (("labels.os==linux", "labels.os==windows"), {a, b}),
        (("labels.os~=(",), set()),
        (("nothing",), set()),
        (("ref==x",), set()),
    ]:
        assert walked(store, *filters) == wanted, filters


@pytest.mark.parametrize(
    "text",
    ["=", "labels.", "labels.a=b", "labels.a==", "a b", "a==b c", ",", "a,", "labels./a/", '"open', "a\0b", "a~x"],
)
def test_bad_filters_are_refused_before_anything_is_listed(store: Store, text: str) -> None:
    with pytest.raises(InvalidArgument):
        store.walk(text)
