"""Answers of the content service that come without Python: the same to the byte, and never those of yesterday."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobtee.content import LocalStore
from blobtee.content.lastuse import RESOLUTION_NS
from blobtee.oci import Digest
from blobtee.plugin.references import References
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.service import ContentService
from blobtee.plugin.tenants import Tenant
from blobtee.wire.content import MAX_DATA, SERVICE, messages
from tests.unit.plugin.contentclient import Client, code, serving_at
from tests.unit.plugin.http2 import DATA, END_STREAM, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, Raw, frame, message
from tests.unit.plugin.http2 import request as headers

SMALL = b"a small blob"
LARGE = random.Random(1).randbytes(MAX_DATA + 5000)
SMALL_DIGEST, LARGE_DIGEST, ABSENT = (str(Digest.of(data)) for data in (SMALL, LARGE, b"absent"))
PLENTY = (1 << 31) - 1


@dataclass
class Room:
    """A server of two tenants."""

    store: LocalStore
    server: Server
    one: Client
    two: Client
    path: Path

    def quick(self, method: str) -> int:
        """How many calls of the first tenant were answered without Python."""
        remembered = self.server._remembered
        assert remembered is not None
        return remembered.counts(0)()[method].ok


@pytest.fixture
def room(store: LocalStore, tmp_path: Path) -> Iterator[Room]:
    paths = {name: tmp_path / name for name in ("one", "two")}
    with ExitStack() as stack:
        server = stack.enter_context(Server(store, [Listen(name, path) for name, path in paths.items()]))
        one, two = (Client(path) for path in paths.values())
        stack.callback(one.channel.close)
        stack.callback(two.channel.close)
        one.put("small", SMALL, labels={"a": "1"})
        yield Room(store, server, one, two, tmp_path)


def info(client: Client, digest: str = SMALL_DIGEST) -> Any:
    return client.one("Info", messages.InfoRequest(digest=digest)).info


def labels(client: Client, digest: str = SMALL_DIGEST) -> dict[str, str]:
    return dict(info(client, digest).labels)


def update(client: Client, digest: str = SMALL_DIGEST, **given: str) -> None:
    client.one("Update", messages.UpdateRequest(info=messages.Info(digest=digest, labels=given)))


def delete(client: Client, digest: str = SMALL_DIGEST) -> None:
    client.one("Delete", messages.DeleteContentRequest(digest=digest))


# ---- the same answers ------------------------------------------------------------------------------------------------


class Lane:
    """One connection to one server, with all the room for data that there is."""

    def __init__(self, path: Path) -> None:
        self._raw = Raw(path)
        window = frame(SETTINGS, 0, bytes([0, 4]) + PLENTY.to_bytes(4, "big"))
        self._raw.send(window, frame(WINDOW_UPDATE, 0, (PLENTY - 65535).to_bytes(4, "big")))
        self._stream = -1

    def ask(self, method: str, data: bytes) -> tuple[list[bytes], bytes, int | None]:
        """Headers, data, and what the stream was reset with."""
        self._stream += 2
        ours = self._stream
        self._raw.send(headers(ours, f"/{SERVICE}/{method}"), frame(DATA, ours, message(data), END_STREAM))
        said: list[bytes] = []
        bodies: list[bytes] = []
        for kind, flags, stream, payload in self._raw.frames():
            if kind == DATA and payload:
                self._raw.send(frame(WINDOW_UPDATE, 0, len(payload).to_bytes(4, "big")))
            if stream != ours:
                continue
            if kind == RST_STREAM:
                return said, b"".join(bodies), int.from_bytes(payload, "big")
            if kind == HEADERS:
                said.append(payload)
            elif kind == DATA:
                bodies.append(payload)
            if flags & END_STREAM:
                break
        return said, b"".join(bodies), None

    def close(self) -> None:
        self._raw.close()


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lane, Lane, Server]]:
    """To a server that knows its answers, and to one that never does, of one tenant in one store."""
    path = tmp_path_factory.mktemp("lanes")
    with ExitStack() as stack:
        store = stack.enter_context(LocalStore(path / "root"))
        server = stack.enter_context(Server(store, [Listen("one", path / "quick")]))
        tenant = Tenant("one", store, References(store.metadata), server._lazy)
        stack.enter_context(serving_at(path / "slow", ContentService(tenant, is_here=tenant.is_here)))
        for data in (SMALL, LARGE, b""):
            with tenant.writer(f"ref {len(data)}") as writer:
                writer.write(data)
                writer.commit(len(data), labels={"name": "é" * 10, "size": str(len(data))})
        quick, slow = Lane(path / "quick"), Lane(path / "slow")
        stack.callback(quick.close)
        stack.callback(slow.close)
        yield quick, slow, server


def varint(n: int, padding: int = 0) -> bytes:
    n %= 1 << 64
    found = bytearray()
    while n > 127:
        found.append(n & 127 | 128)
        n >>= 7
    found.append(n)
    for _ in range(padding):
        found[-1] |= 128
        found.append(0)
    return bytes(found)


def number_field(field: int, n: int, padding: int = 0) -> bytes:
    return varint(field << 3) + varint(n, padding)


def bytes_field(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def both(lanes: tuple[Lane, Lane, Server], method: str, data: bytes) -> None:
    quick, slow, _ = lanes
    assert quick.ask(method, data) == slow.ask(method, data)


DIGESTS = st.sampled_from(
    [
        SMALL_DIGEST,
        LARGE_DIGEST,
        str(Digest.of(b"")),
        ABSENT,
        "sha256:xyz",
        "",
        SMALL_DIGEST.upper(),
        SMALL_DIGEST + " ",
    ]
).map(str.encode) | st.binary(max_size=80)
EDGES = (0, 1, 5, len(SMALL), MAX_DATA, len(LARGE), 1 << 31, 1 << 32, (1 << 63) - 1)
NUMBERS = st.sampled_from(EDGES).flatmap(lambda edge: st.integers(-2, 2).map(lambda more: edge + more)) | st.integers(
    -(1 << 63), (1 << 64) - 1
)
FIELDS = st.one_of(
    st.builds(bytes_field, st.just(1), DIGESTS),
    st.builds(number_field, st.sampled_from((2, 3)), NUMBERS, st.sampled_from((0, 0, 0, 1, 5, 10))),
    st.builds(number_field, st.sampled_from((1, 4, 500, 0)), NUMBERS),
    st.builds(bytes_field, st.sampled_from((2, 3, 15, 16, 7000)), st.binary(max_size=10)),
    st.builds(lambda field: varint(field << 3 | 1) + bytes(8), st.integers(1, 20)),
    st.builds(lambda field: varint(field << 3 | 5) + bytes(4), st.integers(1, 20)),
    st.builds(lambda field, kind: varint(field << 3 | kind), st.integers(1, 20), st.sampled_from((3, 4, 6, 7))),
)


def usual(method: str) -> st.SearchStrategy[bytes]:
    """As a client would say it."""
    known = st.sampled_from((SMALL_DIGEST, LARGE_DIGEST)).map(lambda digest: bytes_field(1, digest.encode()))
    if method == "Info":
        return known
    part = st.builds(lambda field, n: number_field(field, n) if n else b"", st.just(2), NUMBERS)
    size = st.builds(lambda n: number_field(3, n) if n else b"", NUMBERS)
    return st.builds(lambda *fields: b"".join(fields), known, part, size)


@pytest.mark.parametrize("method", ["Info", "Read"])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_request_is_answered_as_python_does(
    lanes: tuple[Lane, Lane, Server], method: str, data: st.DataObject
) -> None:
    requests = st.one_of(
        usual(method),
        st.lists(FIELDS, max_size=4).map(b"".join),
        st.builds(lambda text, more: text + b"".join(more), usual(method), st.lists(FIELDS, max_size=2)),
        st.builds(lambda text, cut: text[: cut % (len(text) + 1)], usual(method), st.integers(0, 200)),
        st.binary(max_size=20),
    )
    both(lanes, method, data.draw(requests))


@pytest.mark.parametrize("method", ["Info", "Read"])
@pytest.mark.parametrize(
    "more",
    [
        b"\x10" + b"\x81" + b"\x80" * 8 + b"\x01",  # ten bytes, the last with one bit: a negative number
        b"\x10" + b"\x81" + b"\x80" * 8 + b"\x02",  # with more bits than there are
        b"\x10" + b"\x81" + b"\x80" * 8 + b"\x7f",
        b"\x10" + b"\x81" + b"\x80" * 9 + b"\x00",  # eleven
        b"\x10" + b"\x81" * 3,  # cut off
        b"\x10",
        b"\x90\x00\x03",  # a field's number that is longer than it need be
        b"\x12\x01\x03",  # another kind of field
        b"\x0a\x05abc",
        b"\x0a\x00",  # once more, and empty
        b"\x18\x02\x18\x03",  # twice
        b"\x20\x07",  # unknown
        b"\x00",
    ],
)
def test_requests_on_the_edge(lanes: tuple[Lane, Lane, Server], method: str, more: bytes) -> None:
    digest = bytes_field(1, SMALL_DIGEST.encode())
    for data in (digest, digest + more, more + digest, more):
        both(lanes, method, data)


@pytest.mark.parametrize(
    ("offset", "size", "is_quick"),
    [
        (0, 0, True), (0, 1, True), (-5, 3, True), (3, -1, True), (2, 1 << 62, True), ((1 << 20) - 1, 2, True),
        (1 << 20, 0, True), (len(LARGE) - 1, 0, True), (1, (1 << 63) - 1, True),
        (len(LARGE), 0, False), (len(LARGE), 5, False), (len(LARGE) + 1, 0, False), ((1 << 63) - 1, 1, False),
    ],
)  # fmt: skip
def test_reads_that_come_without_python(
    lanes: tuple[Lane, Lane, Server], offset: int, size: int, is_quick: bool
) -> None:
    asked = messages.ReadContentRequest(digest=LARGE_DIGEST, offset=offset, size=size).SerializeToString()
    remembered = lanes[2]._remembered
    assert remembered is not None
    both(lanes, "Read", asked)
    before = remembered.counts(0)()["Read"]
    both(lanes, "Read", asked)
    after = remembered.counts(0)()["Read"]
    assert after.ok - before.ok == int(is_quick)
    start = max(offset, 0)
    whole = LARGE[start : start + size] if size > 0 else LARGE[start:]
    assert after.sent - before.sent == (len(whole) if is_quick else 0)


def test_it_is_the_second_answer_that_comes_without_python(room: Room) -> None:
    for times in range(3):
        assert info(room.one).size == len(SMALL)
        assert room.quick("Info") == times
    for times in range(3):
        assert room.one.read(SMALL_DIGEST, 2, 5) == SMALL[2:7]
        assert room.quick("Read") == times


# ---- changes ---------------------------------------------------------------------------------------------------------


def warm(client: Client) -> None:
    for _ in range(3):
        info(client)
        client.read(SMALL_DIGEST)


def test_an_update_is_seen_at_once(room: Room) -> None:
    for n in range(5):
        warm(room.one)
        update(room.one, n=str(n))
        for _ in range(3):
            assert labels(room.one) == {"n": str(n)}
    assert room.quick("Info") >= 5


def test_what_was_deleted_is_gone_for_who_deleted_it_alone(room: Room) -> None:
    warm(room.one)
    warm(room.two)
    update(room.two, of="two")
    warm(room.two)
    delete(room.one)
    assert labels(room.two) == {"of": "two"}
    # Asking brings it back: it is in the store for the other (`spec/content.md` section 1).
    assert labels(room.one) == {}
    warm(room.one)
    delete(room.one)
    delete(room.two)
    for client in (room.one, room.two):
        assert code(lambda client=client: info(client)) == "NOT_FOUND"  # type: ignore[misc]
        assert code(lambda client=client: client.read(SMALL_DIGEST)) == "NOT_FOUND"  # type: ignore[misc]


def test_nothing_holds_a_deleted_blob_on_the_disk(room: Room) -> None:
    path = room.store.path(Digest(SMALL_DIGEST))
    warm(room.one)
    assert path in _open_files()
    delete(room.one)
    assert path not in _open_files()
    deadline = time.monotonic() + 20
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(path)


def _open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return found


ELSEWHERE = """
import os, sys
from blobtee.content import LocalStore
from blobtee.oci import Digest
from blobtee.plugin.references import References
with LocalStore(sys.argv[1]) as store:
    references, digest = References(store.metadata), Digest(sys.argv[2])
    for line in sys.stdin:
        what = line.split()
        if what[0] == "update":
            references.update("one", digest, {"n": what[1]}, replace=True)
        elif what[0] == "let-go":
            references.let_go("one", digest)
        elif what[0] == "gc":
            references.let_go("one", digest)
            store.discard(digest)
        elif what[0] == "quarantine":
            store.quarantine(digest)
        elif what[0] == "unlink":
            os.unlink(store.path(digest))
        print("done", flush=True)
"""


@pytest.fixture
def elsewhere(room: Room) -> Iterator[Any]:
    """Has another process do something to the small blob."""
    command = [sys.executable, "-c", ELSEWHERE, str(room.store.root), SMALL_DIGEST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        told, heard = process.stdin, process.stdout
        assert told
        assert heard

        def do(what: str) -> None:
            told.write(what + "\n")
            told.flush()
            assert heard.readline() == "done\n"

        yield do
        told.close()


def test_another_process_updates(room: Room, elsewhere: Any) -> None:
    for n in range(20):
        warm(room.one)
        elsewhere(f"update {n}")
        assert labels(room.one) == {"n": str(n)}
    assert room.quick("Info") >= 20


@pytest.mark.parametrize(("what", "found"), [("gc", "NOT_FOUND"), ("quarantine", "NOT_FOUND"), ("unlink", "NOT_FOUND")])
def test_another_process_removes(room: Room, elsewhere: Any, what: str, found: str) -> None:
    warm(room.one)
    before = room.quick("Info"), room.quick("Read")
    elsewhere(what)
    assert code(lambda: info(room.one)) == found
    assert code(lambda: room.one.read(SMALL_DIGEST)) == found
    assert (room.quick("Info"), room.quick("Read")) == before


def test_another_process_lets_go_for_the_tenant(room: Room, elsewhere: Any) -> None:
    warm(room.one)
    elsewhere("let-go")
    # An orphan: it is there no more until somebody writes it again.
    assert code(lambda: info(room.one)) == "NOT_FOUND"
    assert code(lambda: room.one.read(SMALL_DIGEST)) == "NOT_FOUND"


def test_a_file_that_was_cut_off_is_damage(room: Room) -> None:
    warm(room.one)
    os.chmod(room.store.path(Digest(SMALL_DIGEST)), 0o644)
    os.truncate(room.store.path(Digest(SMALL_DIGEST)), 3)
    assert code(lambda: info(room.one)) == "DATA_LOSS"
    assert code(lambda: room.one.read(SMALL_DIGEST)) == "DATA_LOSS"


def test_a_store_that_was_closed_knows_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root")
    with Server(store, [Listen("one", tmp_path / "socket")]):
        client = Client(tmp_path / "socket")
        client.put("small", SMALL)
        warm(client)
        store.close()
        assert code(lambda: info(client)) != "OK"
        assert code(lambda: client.read(SMALL_DIGEST)) != "OK"
        client.channel.close()


def test_writers_and_readers_at_once(room: Room) -> None:
    """Whoever has been told of a change sees it; what was deleted is not there, until it is written again."""
    done = threading.Event()
    told, wrong = [0], list[object]()
    update(room.one, n="0")

    def read() -> None:
        client = Client(room.path / "one")
        while not done.is_set():
            floor = told[0]
            try:
                if (found := int(labels(client).get("n", -1))) < floor:
                    wrong.append((floor, found))
                if client.read(SMALL_DIGEST) != SMALL:
                    wrong.append(floor)
            except Exception as error:
                wrong.append(error)
        client.channel.close()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        update(room.one, n=str(told[0] + 1))
        told[0] += 1
        room.one.put(f"another {told[0]}", f"another {told[0]}".encode())
        delete(room.one, str(Digest.of(f"another {told[0]}".encode())))
        assert code(lambda: info(room.one, str(Digest.of(f"another {told[0]}".encode())))) == "NOT_FOUND"
        time.sleep(0.01)
    done.set()
    for reader in readers:
        reader.join(20)
    assert not wrong
    assert room.quick("Info") > 0


def test_reading_a_blob_again_is_a_use_of_it(room: Room) -> None:
    """Not each time, but no later than making room needs to know (`content.lastuse`)."""
    warm(room.one)
    path = room.store.path(Digest(SMALL_DIGEST))
    old = time.time_ns() - 2 * RESOLUTION_NS
    os.utime(path, ns=(old, os.stat(path).st_mtime_ns))
    assert info(room.one).size == len(SMALL)
    assert room.store.last_used(SMALL_DIGEST) == old
    warm(room.one)
    assert room.store.last_used(SMALL_DIGEST) > old + RESOLUTION_NS
    before = room.quick("Read")
    warm(room.one)
    assert room.quick("Read") > before


# ---- counting --------------------------------------------------------------------------------------------------------


def test_metrics_count_both_kinds_of_answers(room: Room) -> None:
    for _ in range(4):
        info(room.one)
    for _ in range(3):
        room.one.read(SMALL_DIGEST, 0, 5)
    assert code(lambda: info(room.one, ABSENT)) == "NOT_FOUND"
    assert room.quick("Info") == 3
    assert room.quick("Read") == 2
    text = room.server.metrics.text()
    for line in (
        'blobtee_rpcs_total{tenant="one",method="Info",code="OK"} 4',
        'blobtee_rpcs_total{tenant="one",method="Info",code="NOT_FOUND"} 1',
        'blobtee_rpcs_total{tenant="one",method="Read",code="OK"} 3',
        'blobtee_rpc_seconds_count{tenant="one",method="Info"} 5',
        'blobtee_rpc_seconds_bucket{tenant="one",method="Read",le="+Inf"} 3',
        'blobtee_bytes_total{tenant="one",direction="sent"} 15',
        'blobtee_blobs_opened_total{tenant="one",result="hit"} 3',
    ):
        assert line in text.splitlines()
    assert not re.search('tenant="two",method="(Info|Read)"', text)
