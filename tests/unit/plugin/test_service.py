"""Every row of the content service's table (`spec/content.md` section 2), over a real socket."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest

from blobtee.content import LocalStore
from blobtee.content.labels import MAX_LABELS
from blobtee.plugin.service import LIST_NBYTES
from blobtee.wire.content import MAX_DATA, messages
from blobtee.wire.table import common
from tests.unit.plugin.asking import eventually
from tests.unit.plugin.contentclient import Client, code, digest_of, serving

ABSENT = "sha256:" + "0" * 64


def update(digest: str, labels: dict[str, str], *paths: str) -> messages.UpdateRequest:
    mask = common.FieldMask(paths=paths)
    return messages.UpdateRequest(info=messages.Info(digest=digest, labels=labels), update_mask=mask)


def info(client: Client, digest: str) -> messages.Info:
    return client.one("Info", messages.InfoRequest(digest=digest)).info


def test_info_tells_what_the_store_keeps(client: Client, store: LocalStore) -> None:
    digest = client.put("a", b"content", labels={"k": "v"})
    found = info(client, digest)
    assert (found.digest, found.size, dict(found.labels)) == (digest_of(b"content"), 7, {"k": "v"})
    kept = store.info(digest)
    assert found.created_at.seconds * 10**9 + found.created_at.nanos == kept.created_at
    assert found.updated_at.seconds * 10**9 + found.updated_at.nanos == kept.updated_at


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha512:" + "0" * 64, "x"])
@pytest.mark.parametrize("method", ["Info", "Update", "Delete", "Read"])
def test_what_is_no_digest_is_an_invalid_argument(client: Client, method: str, digest: str) -> None:
    asked = {
        "Info": lambda: client.one("Info", messages.InfoRequest(digest=digest)),
        "Update": lambda: client.one("Update", update(digest, {})),
        "Delete": lambda: client.one("Delete", messages.DeleteContentRequest(digest=digest)),
        "Read": lambda: client.read(digest),
    }
    assert code(asked[method]) == "INVALID_ARGUMENT"


def test_absent_blobs(client: Client) -> None:
    assert code(lambda: info(client, ABSENT)) == "NOT_FOUND"
    assert code(lambda: client.one("Update", update(ABSENT, {"a": "b"}))) == "NOT_FOUND"
    assert code(lambda: client.read(ABSENT)) == "NOT_FOUND"
    assert code(lambda: client.one("Delete", messages.DeleteContentRequest(digest=ABSENT))) == "OK"


@pytest.mark.parametrize(
    ("labels", "paths", "after"),
    [
        ({"new": "1"}, [], {"new": "1"}),
        ({"new": "1"}, ["labels"], {"new": "1"}),
        ({}, [], {}),
        ({"a": "2", "ignored": "x"}, ["labels.a"], {"a": "2", "b/c.d": "1"}),
        ({"b/c.d": "3"}, ["labels.b/c.d"], {"a": "1", "b/c.d": "3"}),
        ({"a": ""}, ["labels.a"], {"b/c.d": "1"}),
        ({}, ["labels.a"], {"b/c.d": "1"}),
        ({"a": "", "e": "5"}, ["labels"], {"e": "5"}),
    ],
)
def test_update_changes_what_its_mask_names(
    client: Client, labels: dict[str, str], paths: list[str], after: dict[str, str]
) -> None:
    digest = client.put("a", b"x", labels={"a": "1", "b/c.d": "1"})
    before = info(client, digest)
    answer = client.one("Update", update(digest, labels, *paths)).info
    assert dict(answer.labels) == dict(info(client, digest).labels) == after
    assert answer.created_at == before.created_at
    assert (answer.updated_at.seconds, answer.updated_at.nanos) > (before.updated_at.seconds, before.updated_at.nanos)


@pytest.mark.parametrize("path", ["size", "digest", "label", "labels.", ""])
def test_update_of_anything_else_changes_nothing(client: Client, path: str) -> None:
    digest = client.put("a", b"x", labels={"a": "1"})
    before = info(client, digest)
    assert code(lambda: client.one("Update", update(digest, {"a": "2"}, "labels.a", path))) == "INVALID_ARGUMENT"
    assert info(client, digest) == before


def test_update_without_an_info(client: Client) -> None:
    assert code(lambda: client.one("Update", messages.UpdateRequest())) == "INVALID_ARGUMENT"


def test_list_pages_by_a_hundred(client: Client) -> None:
    assert list(client.many("List", messages.ListContentRequest())) == []
    digests = {client.put(f"r{i}", b"%d" % i) for i in range(205)}
    pages = list(client.many("List", messages.ListContentRequest()))
    assert [len(page.info) for page in pages] == [100, 100, 5]
    assert {found.digest for page in pages for found in page.info} == digests


def test_a_list_of_much_labelled_blobs_comes_in_messages_that_clients_take(client: Client) -> None:
    # containerd takes 16 MiB, and its garbage collector goes nowhere when it cannot read the list.
    labels = {f"label{i}": "x" * 4000 for i in range(100)}
    digests = {client.put(f"r{i}", b"%d" % i, labels=labels) for i in range(15)}
    pages = list(client.many("List", messages.ListContentRequest()))
    assert {found.digest for page in pages for found in page.info} == digests
    assert max(page.ByteSize() for page in pages) < LIST_NBYTES
    assert len(pages) == 3


def test_labels_do_not_grow_beyond_what_can_be_told(client: Client) -> None:
    digest = client.put("r", b"data")
    for i in range(4):
        asked = update(digest, {f"k{i}": "x" * (MAX_LABELS // 3)}, f"labels.k{i}")
        assert code(partial(client.one, "Update", asked)) == ("OK" if i < 2 else "RESOURCE_EXHAUSTED")
    assert sorted(info(client, digest).labels) == ["k0", "k1"]


def test_list_filters(client: Client) -> None:
    wanted = client.put("a", b"1", labels={"containerd.io/x": "yes"})
    client.put("b", b"2", labels={"containerd.io/x": "no"})
    asked = messages.ListContentRequest(filters=['labels."containerd.io/x"==yes'])
    assert [found.digest for page in client.many("List", asked) for found in page.info] == [wanted]
    bad = messages.ListContentRequest(filters=["labels..=="])
    assert code(lambda: list(client.many("List", bad))) == "INVALID_ARGUMENT"


def test_a_blob_can_be_deleted_while_it_is_listed_and_read(client: Client) -> None:
    data = os.urandom(4 * MAX_DATA)
    digest = client.put("a", data)
    reading = client.many("Read", messages.ReadContentRequest(digest=digest))
    got = next(reading).data
    for page in client.many("List", messages.ListContentRequest()):
        for found in page.info:
            client.one("Delete", messages.DeleteContentRequest(digest=found.digest))
    assert code(lambda: info(client, digest)) == "NOT_FOUND"
    assert got + b"".join(answer.data for answer in reading) == data


@pytest.mark.parametrize(
    ("offset", "size", "part"),
    [
        (0, 0, slice(0, None)),
        (-5, 0, slice(0, None)),
        (3, 0, slice(3, None)),
        (3, -1, slice(3, None)),
        (3, 4, slice(3, 7)),
        (3, 1 << 40, slice(3, None)),
        (MAX_DATA + 7, 0, slice(MAX_DATA + 7, None)),
        (2 * MAX_DATA + 9, 0, slice(0, 0)),
    ],
)
def test_read_gives_a_range(client: Client, offset: int, size: int, part: slice) -> None:
    data = os.urandom(2 * MAX_DATA + 9)
    digest = client.put("a", data)
    answers = list(client.many("Read", messages.ReadContentRequest(digest=digest, offset=offset, size=size)))
    at = 0
    for answer in answers:
        assert answer.offset == at
        assert 0 < len(answer.data) <= MAX_DATA
        at += len(answer.data)
    assert b"".join(answer.data for answer in answers) == data[part]


def test_read_past_the_end(client: Client) -> None:
    digest = client.put("a", b"four")
    assert code(lambda: client.read(digest, offset=5)) == "OUT_OF_RANGE"
    empty = client.put("b", b"")
    assert client.read(empty) == b""


def test_a_read_that_is_cancelled_closes_its_file(client: Client, count_descriptors: Callable[[], int]) -> None:
    digest = client.put("a", os.urandom(8 * MAX_DATA))
    before = count_descriptors()
    for _ in range(10):
        call = client.many("Read", messages.ReadContentRequest(digest=digest))
        next(call)
        call.cancel()
    eventually(lambda: count_descriptors() <= before + 1)


def test_what_a_defect_raises_is_an_internal_error(
    client: Client, store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(digest: str) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(store, "info", broken)
    with pytest.raises(grpc.RpcError) as failure:
        info(client, ABSENT)
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "a defect of blobtee" in (failure.value.details() or "")
    assert "a defect of blobtee in Info" in caplog.text


def test_the_observer_is_told_of_every_end(store: LocalStore, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    counted = {"sent": 0, "received": 0}
    cancelled = threading.Event()

    class Counting:
        def rpc(self, method: str, code: str, seconds: float) -> None:
            assert 0 <= seconds < 60
            seen.append((method, code))
            if code == "CANCELLED":
                cancelled.set()

        def sent(self, nbytes: int) -> None:
            counted["sent"] += nbytes

        def received(self, nbytes: int) -> None:
            counted["received"] += nbytes

        def opened(self, *, was_here: bool) -> None:
            raise AssertionError("this store has no lazy blobs")

    with serving(store, tmp_path / "socket", Counting()) as client:
        digest = client.put("a", os.urandom(8 * MAX_DATA))
        assert len(client.read(digest, size=10)) == 10
        code(lambda: info(client, ABSENT))
        call = client.many("Read", messages.ReadContentRequest(digest=digest))
        next(call)
        call.cancel()
        assert cancelled.wait(10)
    assert seen == [("Write", "OK"), ("Read", "OK"), ("Info", "NOT_FOUND"), ("Read", "CANCELLED")]
    assert counted["received"] == 8 * MAX_DATA
    assert counted["sent"] >= MAX_DATA + 10
