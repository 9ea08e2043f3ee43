"""Does things to a store with a file system below it that fails at each step in turn, and says what was wrong.

Run with `faults.so` preloaded: `worker.py SCENARIO ERRNO FOLDER`. Prints how many steps each thing had, and a text for
each problem, as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.content import LocalStore
from blobtee.errors import BlobteeError
from blobtee.oci import Digest
from blobtee.plugin.adopting import adopt
from blobtee.plugin.references import References
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant
from blobtee.wire.content import messages
from tests.unit.plugin.contentclient import Client, digest_of, request

LARGE = bytes(range(256)) * 5000  # space for it is allocated ahead
SMALL, KEPT, REF = b"small", b"kept all the time", "the ref"
CODES = {errno.EIO: {"INTERNAL", "DATA_LOSS"}, errno.ENOSPC: {"RESOURCE_EXHAUSTED"}}
MOST_STEPS = 1000

library = ctypes.CDLL(None)
library.faults_off.restype = ctypes.c_char_p


class Trial:
    """Things done with one kind of fault."""

    def __init__(self, number: int, root: Path, *, reads: bool) -> None:
        self.number, self.reads = number, reads
        self.steps: dict[str, int] = {}
        self.problems: list[str] = []
        library.faults_root(os.fsencode(root))

    def each_step(
        self, what: str, do: Callable[[], object], check: Callable[[bool], object], prepare: Callable[[], object]
    ) -> None:
        """Do it with the k-th step failing, for each k, and then `check`, which is told whether it succeeded."""
        for k in itertools.count(1):
            prepare()
            library.faults_arm(k, self.number, self.reads)
            error: Exception | None = None
            try:
                do()
            except Exception as raised:
                error = raised
            where = library.faults_off().decode()
            if not where or k > MOST_STEPS:
                self.steps[what] = k - 1
                if error is not None:
                    self._note(what, "nothing failed", error)
                return
            if error is not None and not self._is_ours(error, where):
                self._note(what, where, error)
            try:
                check(error is None)
            except Exception as raised:
                self._note(what, f"after {where} ({error})", raised)

    def _is_ours(self, error: Exception, where: str) -> bool:
        if isinstance(error, grpc.RpcError):
            code = error.code().name
            # SQLite does not say why a sync failed.
            return code in CODES[self.number] or (code == "INTERNAL" and where.startswith("fdatasync /blobtee.db-wal"))
        return isinstance(error, BlobteeError)

    def _note(self, what: str, where: str, error: Exception) -> None:
        last = "".join(traceback.format_exception(error))[-600:]
        self.problems.append(f"{what}: {where}: {last}")


class Room:
    """A server, and what a client does."""

    def __init__(self, store: LocalStore, server: Server, client: Client) -> None:
        self.store, self.server, self.client = store, server, client

    def write(self, data: bytes, upto: int | None = None) -> None:
        """As a client does that goes on from where it was; commits when all is there."""
        requests: SimpleQueue[Any] = SimpleQueue()
        answers = self.client.write(iter(requests.get, None))

        def say(action: str, **fields: Any) -> int:
            requests.put(request(action, ref=REF, total=len(data), **fields))
            return int(next(answers).offset)

        end = len(data) if upto is None else upto
        try:
            at = say("STAT")
            while at < end:
                at = say("WRITE", offset=at, data=data[at : min(at + (1 << 20), end)])
            if upto is None:
                say("COMMIT", offset=at, expected=digest_of(data), labels={"label": "new"})
        finally:
            requests.put(None)
            with suppress(grpc.RpcError):
                list(answers)

    def label(self, data: bytes) -> str:
        info = self.client.one("Info", messages.InfoRequest(digest=digest_of(data))).info
        assert self.client.read(digest_of(data)) == data
        return str(info.labels["label"])

    def update(self) -> None:
        info = messages.Info(digest=digest_of(LARGE), labels={"label": "other"})
        self.client.one("Update", messages.UpdateRequest(info=info))

    def delete(self, data: bytes) -> None:
        self.client.one("Delete", messages.DeleteContentRequest(digest=digest_of(data)))

    def abort(self) -> None:
        self.client.one("Abort", messages.AbortRequest(ref=REF))

    def listed(self) -> set[str]:
        answers = self.client.many("List", messages.ListContentRequest())
        return {info.digest for answer in answers for info in answer.info}

    def refs(self) -> list[str]:
        answer = self.client.one("ListStatuses", messages.ListStatusesRequest())
        return [status.ref for status in answer.statuses]

    def clear(self, *datas: bytes) -> None:
        for data in datas:
            self.delete(data)
        self.server._sweeper.sweep()
        self.abort()

    def begin(self) -> None:
        self.clear(LARGE)
        self.write(LARGE, 700_000)

    def there(self) -> None:
        if digest_of(LARGE) not in self.listed():
            self.write(LARGE)

    def check_write(self, data: bytes, done: bool) -> None:
        assert self.label(KEPT) == "new"
        assert (digest_of(data) in self.listed()) == done
        if not done:
            assert self.refs() in ([], [REF])
            self.write(data)
        assert self.label(data) == "new"
        assert self.refs() == []

    def check_abort(self, done: bool) -> None:
        if not done:
            self.abort()
        assert self.refs() == []
        self.check_write(LARGE, False)

    def check_delete(self, done: bool) -> None:
        assert self.label(KEPT) == "new"
        if not done:
            self.label(LARGE)
            self.delete(LARGE)
        assert digest_of(LARGE) not in self.listed()

    def check_update(self, done: bool) -> None:
        assert self.label(LARGE) == ("other" if done else "new")
        self.delete(LARGE)

    def check_read(self, _: bool) -> None:
        assert self.client.read(digest_of(LARGE)) == LARGE


def rpcs(trial: Trial, root: Path) -> None:
    path = root.with_name("socket")
    with LocalStore(root) as store, Server(store, [Listen("one", path)]) as server:
        client = Client(path)
        room = Room(store, server, client)
        room.write(KEPT)
        if trial.reads:
            trial.each_step("read", lambda: client.read(digest_of(LARGE)), room.check_read, room.there)
        else:
            for name, data in {"small": SMALL, "empty": b"", "large": LARGE}.items():

                def check(done: bool, data: bytes = data) -> None:
                    room.check_write(data, done)

                def do(data: bytes = data) -> None:
                    room.write(data)

                trial.each_step(f"write {name}", do, check, lambda data=data: room.clear(data))  # type: ignore[misc]
            trial.each_step("abort", room.abort, room.check_abort, room.begin)
            trial.each_step("delete", lambda: room.delete(LARGE), room.check_delete, room.there)
            trial.each_step("update", room.update, room.check_update, room.there)
        trial.each_step(
            "resume", lambda: room.write(LARGE), lambda done: room.check_write(LARGE, done), lambda: room.begin()
        )
        assert not store._writers
        client.channel.close()
    assert os.listdir(root / "ingest") == []
    with LocalStore(root) as store:
        assert store.problems == ()


def lives(trial: Trial, root: Path) -> None:
    """Beginning to serve, also without the database, and what else is done to a whole store."""
    pristine, garbage = root.with_name("pristine"), b"garbage"

    def put(store: LocalStore | Tenant, data: bytes) -> None:
        with store.writer(REF) as writer:
            writer.write(data)
            writer.commit()

    def tenants(store: LocalStore) -> tuple[Tenant, Tenant, References]:
        references = References(store.metadata)
        return Tenant("one", store, references), Tenant("two", store, references), references

    def restore(keep: bool) -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pristine, root)
        for path in [] if keep else root.glob("blobtee.db*"):
            path.unlink()

    def serve() -> None:
        with LocalStore(root) as store:
            server = Server(store, [Listen(name, root.with_name(name)) for name in ("one", "two")])
            server.start()
            server.stop(0)

    def sweep() -> None:
        with LocalStore(root) as store:
            one, _, references = tenants(store)
            put(one, LARGE)
            one.delete(Digest.of(LARGE))
            Sweeper(store, references).sweep()

    def with_store(work: Callable[[LocalStore], object]) -> Callable[[], None]:
        def run() -> None:
            with LocalStore(root) as store:
                work(store)

        return run

    def check(_: bool) -> None:
        with LocalStore(root) as store:
            one, two = tenants(store)[:2]
            assert (one.info(Digest.of(KEPT)).size, two.info(Digest.of(SMALL)).size) == (len(KEPT), len(SMALL))
            assert not CacheManager(store).collect(grace=0).problems
            assert {Digest.of(KEPT), Digest.of(SMALL)} <= {info.digest for info in store.walk()}
            assert transfer.verify(store).good

    with LocalStore(root) as store:
        one, two = tenants(store)[:2]
        put(one, KEPT)
        put(two, SMALL)
        put(store, garbage)
        with one.writer("half") as writer:
            writer.write(b"half")
    root.rename(pristine)
    things = {
        "serve": serve,
        "sweep": sweep,
        "gc": with_store(lambda store: CacheManager(store).collect(grace=0)),
        "adopt": with_store(lambda store: adopt(root, store, "one")),
    }
    for name, do in things.items():
        trial.each_step(name, do, check, lambda: restore(keep=True))
    trial.each_step("serve without a database", serve, check, lambda: restore(keep=False))


def main() -> None:
    logging.disable(logging.CRITICAL)
    scenario, number, folder = sys.argv[1:]
    root = Path(folder) / "root"
    trial = Trial(int(number), root, reads=scenario.endswith("reads"))
    (rpcs if scenario.startswith("rpcs") else lives)(trial, root)
    print(json.dumps({"steps": trial.steps, "problems": trial.problems}))


if __name__ == "__main__":
    main()
