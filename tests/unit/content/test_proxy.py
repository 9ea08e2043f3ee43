"""What a store over a socket does when the other side is not there, hangs, goes or lies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.content.proxy import ProxyStore
from blobtee.content.proxy.connection import Connection, _Patience
from blobtee.content.proxy.messages import ref_of, ref_text
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ProtocolViolation,
    RefLocked,
    ResourceExhausted,
)
from blobtee.oci import Descriptor, Digest
from blobtee.plugin import calls
from blobtee.plugin.observer import SILENT
from blobtee.plugin.server import Listen, Server
from blobtee.wire.content import SERVICE, messages
from tests.unit.plugin.contentclient import serving_at

DATA = bytes(range(256)) * 1000
DIGEST = Digest.of(DATA)

SERVE = """
import sys, threading
from pathlib import Path
from blobtee.content import LocalStore
from blobtee.plugin.server import Listen, Server
folder = Path(sys.argv[1])
with LocalStore(folder / "root") as store, Server(store, [Listen("default", folder / "socket")]):
    print("serving", flush=True)
    threading.Event().wait()
"""


@contextmanager
def server_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"serving\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def scripted(folder: Path, timeout: float = 60, **methods: Callable[[Any, Any], Any]) -> Iterator[ProxyStore]:
    """A store whose server answers `methods` as the test says."""
    kinds = {"Info": (calls.unary, messages.InfoRequest), "Read": (calls.stream, messages.ReadContentRequest)}
    kinds |= {
        "Write": (calls.duplex, messages.WriteContentRequest),
        "List": (calls.stream, messages.ListContentRequest),
    }
    handlers = {name: kinds[name][0](name, SILENT, kinds[name][1], work) for name, work in methods.items()}
    with serving_at(folder / "socket", calls.Service(SERVICE, handlers)):
        with ProxyStore(folder / "socket", timeout=timeout) as store:
            yield store


def info(_: Any, __: Any) -> Any:
    return messages.InfoResponse(info=messages.Info(digest=DIGEST, size=len(DATA)))


def reading(*parts: tuple[int, bytes]) -> Callable[[Any, Any], Iterator[Any]]:
    def read(request: Any, _: Any) -> Iterator[Any]:
        for offset, data in parts:
            yield messages.ReadContentResponse(offset=offset, data=data)

    return read


def read_of(store: ProxyStore) -> bytes:
    with store.reader_at(Descriptor("", DIGEST, -1)) as reader:
        return reader.read_at(0, len(DATA))


def test_a_server_that_is_not_there_is_a_failed_connection_and_not_a_locked_ref(tmp_path: Path) -> None:
    with ProxyStore(tmp_path / "socket") as store:
        for call in (
            lambda: store.info(DIGEST),
            lambda: store.writer("ref"),
            lambda: store.abort("ref"),
            lambda: list(store.walk()),
            lambda: store.statuses(),
        ):
            with pytest.raises(ConnectionFailed, match="socket"):
                call()


def test_a_server_that_is_slow_to_say_hello_is_waited_for(tmp_path: Path) -> None:
    """As on a busy machine, whose server has no time for who comes."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # who closes at the end does not wait for goodbyes
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def wait_and_pass_on() -> None:
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(tmp_path / "server"))
            threading.Event().wait(1)
            back = threading.Thread(target=pass_on, args=(server, client))
            back.start()
            pass_on(client, server)
            back.join()

    def info(request: Any, call: Any) -> Any:
        return messages.InfoResponse(info=messages.Info(digest=DIGEST, size=1))

    service = calls.Service(SERVICE, {"Info": calls.unary("Info", SILENT, messages.InfoRequest, info)})
    with socket.socket(socket.AF_UNIX) as listener, serving_at(tmp_path / "server", service):
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        busy = threading.Thread(target=wait_and_pass_on)
        busy.start()
        with ProxyStore(tmp_path / "socket") as store:
            assert store.info(DIGEST).size == 1
        busy.join()


def test_a_server_that_comes_back_is_found_and_the_ingest_goes_on(tmp_path: Path) -> None:
    with ProxyStore(tmp_path / "socket") as store:
        with server_process(tmp_path) as process:
            writer = store.writer("ref", total=len(DATA))
            writer.write(DATA[:1000])
            process.send_signal(signal.SIGKILL)
            process.wait()
            with pytest.raises(ConnectionFailed):
                writer.write(DATA[1000:])
            with pytest.raises(Closed):
                writer.write(DATA[1000:])
            writer.close()
        with server_process(tmp_path):
            for _ in range(200):
                try:
                    again = store.writer("ref", total=len(DATA))
                    break
                except ConnectionFailed:
                    tasks.sleep(0.05)  # gRPC tries anew ten times a second, at most
            with again:
                again.write(DATA[again.status.offset :])
                assert again.commit(len(DATA), DIGEST).size == len(DATA)
            assert read_of(store) == DATA


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    ended = threading.Event()

    def hang(_: Any, __: Any) -> Iterator[Any]:
        ended.wait(30)
        yield from ()

    with scripted(tmp_path, 1, Info=lambda *_: ended.wait(30), Read=hang, Write=hang, List=hang) as store:
        try:
            for call in (
                lambda: store.info(DIGEST),
                lambda: store.writer("ref"),
                lambda: list(store.walk()),
            ):
                with pytest.raises(DeadlineExceeded, match="no answer"):
                    call()
        finally:
            ended.set()


def test_a_cancelled_task_leaves_a_hanging_call(tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()

    def hang(_: Any, __: Any) -> Iterator[Any]:
        asked.set()
        ended.wait(30)
        yield from ()

    with scripted(tmp_path, List=hang) as store, tasks.scope() as cancellation:

        def cancel() -> None:
            asked.wait(30)
            cancellation.cancel("enough")

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            with pytest.raises(Cancelled, match="enough"):
                list(store.walk())
        finally:
            ended.set()
            canceller.join()


@pytest.mark.parametrize(
    "parts",
    [
        [(0, DATA[:100])],
        [(0, DATA[:100]), (200, DATA[200:])],
        [(7, DATA)],
        [],
        [(0, b"")] * 2 + [(0, DATA)],
    ],
    ids=["short", "gap", "elsewhere", "nothing", "without bytes"],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(tmp_path: Path, parts: list[tuple[int, bytes]]) -> None:
    with scripted(tmp_path, Info=info, Read=reading(*parts)) as store, pytest.raises(ProtocolViolation):
        read_of(store)


def test_more_than_was_asked_for_is_left(tmp_path: Path) -> None:
    with scripted(tmp_path, Info=info, Read=reading((0, DATA), (len(DATA), b"more"))) as store:
        assert read_of(store) == DATA


def test_a_write_whose_answers_do_not_follow_is_refused(tmp_path: Path) -> None:
    def answer(requests: Iterator[Any], _: Any) -> Iterator[Any]:
        for request in requests:
            yield messages.WriteContentResponse(action=request.action, total=1, offset=3)

    with scripted(tmp_path, Write=answer) as store:
        writer = store.writer("ref", total=1)
        with pytest.raises(ProtocolViolation, match="the server is at 3"):
            writer.write(b"data")
        with pytest.raises(Closed):
            writer.commit()


@pytest.mark.parametrize(("digest", "size"), [(DIGEST, -3), ("sha256:none", 3), ("", 3)])
def test_a_blob_that_cannot_be_is_the_servers_fault(tmp_path: Path, digest: str, size: int) -> None:
    def lying(_: Any, __: Any) -> Any:
        return messages.InfoResponse(info=messages.Info(digest=digest, size=size))

    with scripted(tmp_path, Info=lying) as store, pytest.raises(ProtocolViolation):
        store.info(DIGEST)


def test_a_server_that_never_ends_a_stream_of_writes_is_left(tmp_path: Path) -> None:
    given_up = threading.Event()

    def answer(requests: Iterator[Any], _: Any) -> Iterator[Any]:
        for request in requests:
            yield messages.WriteContentResponse(action=request.action, total=1)
        try:
            while True:
                yield messages.WriteContentResponse()
        finally:
            given_up.set()

    with scripted(tmp_path, Write=answer) as store:
        store.writer("ref", total=1).close()
        assert given_up.wait(10)


def test_a_deleted_blob_that_is_longer_than_it_was_said_to_be_fills_no_disk(tmp_path: Path) -> None:
    sent = 0

    def read(request: Any, _: Any) -> Iterator[Any]:
        nonlocal sent
        if request.size:
            raise NotFound("deleted")
        while sent < 100 * len(DATA):
            yield messages.ReadContentResponse(offset=sent, data=DATA)
            sent += len(DATA)

    with scripted(tmp_path, Info=info, Read=read) as store, pytest.raises(ProtocolViolation):
        read_of(store)
    assert sent < 100 * len(DATA)


def test_an_error_of_the_servers_keeps_its_kind_and_its_words(tmp_path: Path) -> None:
    def full(requests: Iterator[Any], _: Any) -> Iterator[Any]:
        yield messages.WriteContentResponse(offset=0, total=1)
        next(requests), next(requests)
        raise ResourceExhausted("the disk is full")

    with scripted(tmp_path, Write=full) as store:
        with store.writer("ref", total=1) as writer, pytest.raises(ResourceExhausted, match="disk is full"):
            writer.write(b"x")


def test_closing_a_store_ends_what_waits_in_other_threads(tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()
    caught: list[BlobteeError] = []

    def hang(_: Any, __: Any) -> Iterator[Any]:
        asked.set()
        ended.wait(30)
        yield from ()

    with scripted(tmp_path, List=hang) as store:

        def walk() -> None:
            try:
                list(store.walk())
            except BlobteeError as error:
                caught.append(error)

        walker = threading.Thread(target=walk)
        walker.start()
        assert asked.wait(30)
        store.close()
        walker.join(30)
        ended.set()
    assert [type(error) for error in caught] == [Closed]


def test_who_walks_on_after_the_end_is_told_so_and_wakes_nothing(tmp_path: Path) -> None:
    pages = [messages.ListContentResponse(info=[messages.Info(digest=DIGEST, size=1)])] * 3
    with scripted(tmp_path, List=lambda request, call: iter(pages)) as store:
        walk = store.walk()
        next(walk)
        store.close()
        with pytest.raises(Closed):
            list(walk)
        assert "blobtee-proxy" not in {thread.name for thread in threading.enumerate()}


def test_a_store_that_is_closed_while_a_call_begins_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Connection.check_open

    def closed_by_another_thread(connection: Connection) -> None:
        check(connection)
        connection.close()

    begin: list[Callable[[ProxyStore], object]] = [
        lambda store: store.info(DIGEST),
        lambda store: list(store.walk()),
        lambda store: store.writer("ref"),
    ]
    for call in begin:
        with ProxyStore(tmp_path / "socket") as store, monkeypatch.context() as patch:
            patch.setattr(Connection, "check_open", closed_by_another_thread)
            with pytest.raises(Closed):
                call(store)


def test_who_is_late_is_told_so_by_the_call_that_waited(tmp_path: Path) -> None:
    """An answer that comes at the moment when it is given up: the next call would not know why it fails."""
    patience = _Patience()
    given_up = threading.Event()

    class Call:
        def cancel(self) -> None:
            given_up.set()

    with pytest.raises(DeadlineExceeded, match="too late"), patience.watching(Call(), 0.01, "too late"):
        assert given_up.wait(10)
    patience.stop()
    with pytest.raises(Closed), patience.watching(Call(), 10, "too late"):
        pass


def test_a_locked_ref_of_another_client_is_told_from_a_lost_connection(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with LocalStore(tmp_path / "root") as local, Server(local, [Listen("default", path)]):
        with ProxyStore(path) as one, ProxyStore(path) as other, one.writer("ref"), pytest.raises(RefLocked):
            other.writer("ref")


def test_a_deleted_blob_is_read_on_by_many_readers_at_once_and_closed_in_between(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with LocalStore(tmp_path / "root") as local, Server(local, [Listen("default", path)]), ProxyStore(path) as store:
        with store.writer("ref") as writer:
            writer.write(DATA)
            writer.commit()
        with store.reader_at(Descriptor("", DIGEST, -1)) as reader, futures.ThreadPoolExecutor(8) as pool:
            store.delete(DIGEST)
            with pytest.raises(NotFound):
                store.info(DIGEST)
            pieces = pool.map(lambda at: reader.read_at(at, 1000), range(0, len(DATA), 1000))
            assert b"".join(pieces) == DATA
        with pytest.raises(Closed):
            reader.read_at(0, 1)


def test_refs_that_are_no_text_travel_and_come_back() -> None:
    for ref in ("plain", "ü/..", "raw\udcff", "blobtee-raw-ref:00", "blobtee-raw-ref:", "nul\0"):
        assert ref_of(ref_text(ref)) == ref
        ref_text(ref).encode()
    for text in ("blobtee-raw-ref:zz", "blobtee-raw-ref:123", "other"):
        assert ref_of(text) == text


def test_addresses_and_names_that_cannot_be_are_refused() -> None:
    for arguments in (
        {"address": ""},
        {"address": "a\0b"},
        {"address": "a", "namespace": "ü"},
        {"address": "a", "lease": "a\nb"},
        {"address": "a", "timeout": 0},
    ):
        with pytest.raises(InvalidArgument):
            ProxyStore(**arguments)


def test_an_address_may_be_written_as_containerd_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with LocalStore(tmp_path / "root") as local, Server(local, [Listen("default", path)]):
        with ProxyStore(f"unix://{path}") as store:
            assert list(store.walk()) == []
        assert not os.path.exists("unix:")
