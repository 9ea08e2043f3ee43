"""Clients that go at any moment of a write, dozens at once, thousands of times: nothing of them stays behind."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from blobtee.cache import Leases
from blobtee.content import LocalStore
from blobtee.content.spares import AT_REST
from blobtee.oci import Digest
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.service import ContentService
from blobtee.wire.content import SERVICE
from tests.unit.plugin.contentclient import Client
from tests.unit.plugin.contentclient import request as write_request
from tests.unit.plugin.http2 import DATA, END_STREAM, RST_STREAM, frame, message, raw, request

CLIENTS, ROUNDS = 64, 20
FRAME = 16384
SECONDS = 120.0
"""A machine that has much else to do keeps 64 clients waiting."""
WRITE = f"/{SERVICE}/Write"
WAYS = (
    "cut off",
    "cut off before an answer",
    "reset",
    "half closed",
    "commit and cut off",
    "commit and reset",
    "commit",
)


def frames(stream: int, action: str, flags: int = 0, **fields: Any) -> bytes:
    data = message(write_request(action, **fields).SerializeToString())
    pieces = [data[at : at + FRAME] for at in range(0, len(data), FRAME)]
    return b"".join(frame(DATA, stream, piece, flags if piece is pieces[-1] else 0) for piece in pieces)


def leave(path: Path, number: int, chance: random.Random) -> None:
    """One write that its client ends in some way, between the data and what comes of the commit."""
    data = b"%d of this" % number * chance.choice((1, 10, 3000))
    ref, digest, way = f"ref {number}", Digest.of(data), chance.choice(WAYS)
    with raw(path) as client, suppress(ConnectionError):
        client.socket.settimeout(SECONDS)
        client.send(request(1, WRITE), frames(1, "WRITE", ref=ref, data=data, total=chance.choice((0, len(data)))))
        if way != "cut off before an answer":
            client.until(DATA, 1)
        if way.startswith("commit"):
            flags = END_STREAM if way == "commit" else 0
            client.send(frames(1, "COMMIT", flags, ref=ref, offset=len(data), expected=digest))
        if way.endswith("reset"):
            client.send(frame(RST_STREAM, 1, b"\0\0\0\x08"))
        elif way == "half closed":
            client.send(frame(DATA, 1, b"", END_STREAM))
        if way in ("commit", "half closed"):
            client.end(1)


def eventually(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def writings(server: Server) -> Iterable[Any]:
    return (s._writing for place in server._places for s in place.services if isinstance(s, ContentService))


def test_clients_that_go_between_the_data_and_the_commit_leave_nothing(
    store: LocalStore, tmp_path: Path, count_descriptors: Callable[[], int]
) -> None:
    path = tmp_path / "socket"
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        chance = random.Random(worker)
        try:
            for number in range(ROUNDS):
                leave(path, worker * ROUNDS + number, chance)
        except BaseException as error:
            failures.append(error)

    with Server(store, [Listen("one", path)]) as server:
        client = Client(path)
        client.put("warm", b"warm")
        descriptors, threads = count_descriptors(), threading.active_count()
        workers = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert failures == []
        assert server._serving is not None
        serving = server._serving
        eventually("calls end", lambda: serving.stats().calls == 0)
        eventually("connections end", lambda: serving.stats().connections <= 1)
        assert not store._writers
        assert all(not writing._open and not writing._openings for writing in writings(server))
        assert serving.stats().buffered == 0
        spare = [folder for folder in (store.root / "ingest").iterdir() if not (folder / "data").exists()]
        assert len(spare) <= AT_REST
        assert store._locks is not None
        assert len(store._locks._held) <= 1  # that of the spares
        # What is there is whole and held, and what is not can be gone on with.
        blobs = {info.digest for info in store.walk()}
        assert Leases(store.metadata).held(sorted(blobs)[:400]) == set(sorted(blobs)[:400])
        for digest in blobs:
            assert Digest.of(Path(store.path(digest)).read_bytes()) == digest
        statuses = store.statuses()
        assert len(statuses) + len(blobs) >= CLIENTS * ROUNDS // 2
        assert not any(store.is_locked(status.ref) for status in statuses)
        client.put(statuses[0].ref.removeprefix("tenant/one/"), b"gone on with")
        eventually("descriptors are closed", lambda: count_descriptors() <= descriptors + 2)
        eventually("threads end", lambda: threading.active_count() <= threads + 16)
        client.channel.close()
