"""The disk is full, over quota or broken at each step of what a tenant does: each ends in the right status, nothing
that was there is touched, and the same works when the disk does again."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from blobtee.content import LocalStore, ingests
from blobtee.errors import StorageError, StorageFull
from blobtee.plugin.references import References
from blobtee.plugin.service import ContentService
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from blobtee.wire.content import messages
from tests.unit.plugin.contentclient import Client, code, digest_of, request, serving_at
from tests.unit.plugin.refusals import Disk

KEPT = b"kept all the time"
LARGE = bytes(range(256)) * 5000  # space for it is allocated ahead
REF = "the ref"
STATUSES = {errno.ENOSPC: "RESOURCE_EXHAUSTED", errno.EDQUOT: "RESOURCE_EXHAUSTED", errno.EIO: "INTERNAL"}


class Bench:
    """A tenant behind a socket, and what a client does with it."""

    def __init__(self, root: Path, client: Client, store: LocalStore) -> None:
        self.root, self.client, self.store = root, client, store
        self.references = References(store.metadata)
        self.sweeper = Sweeper(store, self.references)

    def write(self, data: bytes, label: str) -> None:
        """As a client does that goes on from where it was."""
        requests: SimpleQueue[Any] = SimpleQueue()
        answers = self.client.write(iter(requests.get, None))

        def say(action: str, **fields: Any) -> int:
            requests.put(request(action, ref=REF, total=len(data), **fields))
            return int(next(answers).offset)

        try:
            at = say("STAT")
            while at < len(data):
                at = say("WRITE", offset=at, data=data[at : at + (1 << 20)])
            say("COMMIT", offset=at, expected=digest_of(data), labels={"label": label})
        finally:
            requests.put(None)

    def update(self, data: bytes, label: str) -> None:
        info = messages.Info(digest=digest_of(data), labels={"label": label})
        self.client.one("Update", messages.UpdateRequest(info=info))

    def delete(self, data: bytes) -> None:
        self.client.one("Delete", messages.DeleteContentRequest(digest=digest_of(data)))

    def label(self, data: bytes) -> str | None:
        """None when the blob is not there."""
        try:
            info = self.client.one("Info", messages.InfoRequest(digest=digest_of(data))).info
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        assert self.client.read(digest_of(data)) == data
        return str(info.labels["label"])

    def listed(self) -> set[str]:
        answers = self.client.many("List", messages.ListContentRequest())
        return {info.digest for answer in answers for info in answer.info}

    def is_spare(self, name: str) -> bool:
        """Whether it is a folder that the store has for other ingests."""
        kept = self.store._ingests._spares
        return kept is not None and name in (os.path.basename(spare.folder) for spare in kept._spares)

    def refs(self) -> list[str]:
        answer = self.client.one("ListStatuses", messages.ListStatusesRequest())
        return [status.ref for status in answer.statuses]


def fail(*_: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def bench(disk: Disk, tmp_path: Path) -> Iterator[Bench]:
    with LocalStore(tmp_path / "root") as store:
        tenant = Tenant("one", store, References(store.metadata))
        with serving_at(tmp_path / "socket", ContentService(tenant)):
            client = Client(tmp_path / "socket")
            try:
                yield Bench(tmp_path / "root", client, store)
            finally:
                client.channel.close()
    with LocalStore(tmp_path / "root"):
        assert os.listdir(tmp_path / "root" / "ingest") == []


def at_each_step(
    disk: Disk, bench: Bench, number: int, lasting: bool, do: Callable[[], None], check: Callable[[str], None]
) -> int:
    """Do it with the k-th change refused, for each k, and then `check` with the status; how many steps there are."""
    for k in itertools.count(1):
        with disk.refusing(k, number, lasting=lasting):
            status = code(do)
            refused = list(disk.refused)
            assert status in ("OK", STATUSES[number]), refused
            assert bench.label(KEPT) == "kept", refused  # also while there is no room
            bench.refs()
        if not refused:
            assert status == "OK"
            return k - 1
        try:
            check(status)
        except Exception as error:
            error.add_note(f"step {k}: {refused} refused, {status}")
            raise
    raise AssertionError("not reached")


FAULTS = [(errno.ENOSPC, True), (errno.ENOSPC, False), (errno.EDQUOT, True), (errno.EIO, False)]


@pytest.mark.parametrize(("number", "lasting"), FAULTS)
@pytest.mark.parametrize("data", [LARGE, b"small", b""], ids=["large", "small", "empty"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_write(
    bench: Bench,
    disk: Disk,
    number: int,
    lasting: bool,
    data: bytes,
    at_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Begun by one call of the core, or step by step where that fails."""
    if not at_once:
        monkeypatch.setattr(ingests, "begin_folder", fail)
    bench.client.put("kept", KEPT, labels={"label": "kept"})

    def check(status: str) -> None:
        there = bench.label(data)
        assert there == ("new" if status == "OK" else None)
        assert bench.listed() == {digest_of(KEPT)} | ({digest_of(data)} if there else set())
        if status != "OK":
            assert bench.refs() in ([], [REF])
            bench.write(data, "again")
            assert bench.label(data) == "again"
        assert bench.refs() == []
        bench.delete(data)
        assert bench.sweeper.sweep() == 1
        # What was left untidy goes by the next start at the latest; spare folders are this process's, while it lives.
        with LocalStore(bench.root) as again:
            assert again.problems == ()
        assert all(bench.is_spare(name) for name in os.listdir(bench.root / "ingest"))
        assert not (bench.root / "broken").exists()
        assert [each.digest for page in bench.references.pages("one") for each in page] == [digest_of(KEPT)]

    steps = at_each_step(disk, bench, number, lasting, lambda: bench.write(data, "new"), check)
    assert steps > (3 if at_once else 5)


@pytest.mark.parametrize(("number", "lasting"), FAULTS)
def test_an_update(bench: Bench, disk: Disk, number: int, lasting: bool) -> None:
    bench.client.put("kept", KEPT, labels={"label": "kept"})
    bench.client.put("ref", LARGE, labels={"label": "old"})

    def check(status: str) -> None:
        assert bench.label(LARGE) == ("new" if status == "OK" else "old")
        bench.update(LARGE, "new")
        assert bench.label(LARGE) == "new"
        bench.update(LARGE, "old")

    assert at_each_step(disk, bench, number, lasting, lambda: bench.update(LARGE, "new"), check) == 1


@pytest.mark.parametrize(("number", "lasting"), FAULTS)
def test_a_delete(bench: Bench, disk: Disk, number: int, lasting: bool) -> None:
    bench.client.put("kept", KEPT, labels={"label": "kept"})
    bench.client.put("ref", LARGE, labels={"label": "old"})

    def check(status: str) -> None:
        assert bench.label(LARGE) == (None if status == "OK" else "old")
        bench.delete(LARGE)
        assert bench.label(LARGE) is None
        assert bench.sweeper.sweep() == 1
        bench.client.put("ref", LARGE, labels={"label": "old"})

    assert at_each_step(disk, bench, number, lasting, lambda: bench.delete(LARGE), check) == 1


@pytest.mark.parametrize(("number", "lasting"), FAULTS)
def test_a_sweep(bench: Bench, disk: Disk, number: int, lasting: bool) -> None:
    bench.client.put("kept", KEPT, labels={"label": "kept"})
    both = (LARGE, b"small")
    for data in both:
        bench.client.put("ref", data)
        bench.delete(data)

    def sweep() -> None:
        with suppress(StorageFull, StorageError):
            bench.sweeper.sweep()

    def check(_: str) -> None:
        bench.sweeper.sweep()
        assert {info.digest for info in bench.store.walk()} == {digest_of(KEPT)}
        assert bench.references.orphans() == {}
        for data in both:
            bench.client.put("ref", data)
            bench.delete(data)

    assert at_each_step(disk, bench, number, lasting, sweep, check) >= 1
