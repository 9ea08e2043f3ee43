"""Asking registries whether they still have a blob: once, not for long, and whatever they answer."""

from __future__ import annotations

import itertools
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from blobtee import tasks
from blobtee.errors import Cancelled, Closed
from blobtee.oci import Digest
from blobtee.registry import Credential, Hosts, NoCredentials, Registry, Settings
from blobtee.testing import Answer, Fault, MemoryRegistry
from blobtee.transfer.obtaining import (
    HASTY,
    LONGEST_PAUSE_SECONDS,
    PAUSE_SECONDS,
    PRESENT_SECONDS,
    REFUSED_SECONDS,
    Obtaining,
)

DATA = b"a layer"
DIGEST = Digest.of(DATA)
OTHER = Digest.of(b"another")
PATIENT = replace(HASTY, answer=60.0)


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A host that takes connections and says nothing; those that it took."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in taken:
                each.close()


def accepted(host: str, taken: list[socket.socket]) -> int:
    """How many connections the host has taken from others by now. They are taken in their order."""
    address, _, port = host.partition(":")
    with socket.create_connection((address, int(port))) as last:
        deadline = time.monotonic() + 20
        while last.getsockname() not in [each.getpeername() for each in taken]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    taken.pop().close()
    return len(taken)


def answering(status: int, *methods: str) -> Fault:
    return lambda request: Answer(status=status) if request.method in (methods or ("HEAD", "GET")) else None


def names(*repositories: str) -> list[frozenset[str]]:
    """Each of which has to have the blob."""
    return [frozenset([name]) for name in repositories]


def test_a_blob_is_asked_for_once_however_many_images_have_it(server: MemoryRegistry, client: Registry) -> None:
    server.add_blob("team/app", DATA)
    obtaining = Obtaining(client)
    for _ in range(3):
        assert not obtaining.refusal(DIGEST, len(DATA), names(f"{server.host}/team/app"))
    assert len(server.entries("HEAD", "blob")) == 1
    assert not server.entries("GET", "blob")


def test_one_repository_of_a_set_is_enough_and_each_set_has_to_have_one(
    server: MemoryRegistry, client: Registry
) -> None:
    server.add_blob("team/app", DATA)
    has, lacks = f"{server.host}/team/app", f"{server.host}/team/lacks"
    obtaining = Obtaining(client)
    assert not obtaining.refusal(DIGEST, len(DATA), [frozenset([has, lacks])])
    assert "does not have it any more" in obtaining.refusal(DIGEST, len(DATA), names(has, lacks))


def test_another_size_a_refusal_and_a_name_that_is_none_have_it_stay(server: MemoryRegistry, client: Registry) -> None:
    server.add_blob("team/app", DATA)
    name = f"{server.host}/team/app"
    assert f"{len(DATA)} bytes of that name" in Obtaining(client).refusal(DIGEST, 3, names(name))
    assert str(DIGEST) in Obtaining(client).refusal(DIGEST, len(DATA), names("not a name"))
    assert "no registry is known" in Obtaining(client).refusal(DIGEST, len(DATA), [frozenset()])
    for status in (401, 403, 429, 500):
        server.faults.clear()
        server.fault(answering(status))
        assert Obtaining(client).refusal(DIGEST, len(DATA), names(name)), status


def test_a_host_that_keeps_silent_is_asked_once_for_all_blobs() -> None:
    settings = Settings(connect=0.5, answer=0.3, attempts=1)
    with (
        silent() as (host, taken),
        Registry(hosts=Hosts(()), credentials=NoCredentials(), settings=settings, environ={}) as client,
    ):
        obtaining = Obtaining(client)
        first = obtaining.refusal(DIGEST, len(DATA), names(f"{host}/team/app"))
        asked = accepted(host, taken)
        second = obtaining.refusal(OTHER, 7, names(f"{host}/team/app", f"{host}/team/other"))
        assert host in first
        assert host in second
        assert accepted(host, taken) == asked <= 2  # it may be tried with TLS and without


@pytest.mark.parametrize("status", [400, 403, 405, 500, 501])
def test_where_only_reading_is_allowed_a_byte_is_read(server: MemoryRegistry, client: Registry, status: int) -> None:
    data = DATA * 100_000
    server.add_blob("team/app", data)
    server.fault(answering(status, "HEAD"))
    name = names(f"{server.host}/team/app")
    with client.with_settings(HASTY) as hasty:
        assert not Obtaining(hasty).refusal(Digest.of(data), len(data), name)
        assert server.counters.sent["blob"] <= 1
        assert Obtaining(hasty).refusal(Digest.of(data), len(data) + 1, name), "of another size"
        assert "does not have it" in Obtaining(hasty).refusal(OTHER, 7, name)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def heads(server: MemoryRegistry) -> int:
    return len(server.entries("HEAD", "blob"))


def test_answers_hold_for_a_while_those_that_it_is_there_not_for_long(server: MemoryRegistry, client: Registry) -> None:
    server.add_blob("team/app", DATA)
    clock = Clock()
    obtaining = Obtaining(client, clock=clock)
    name = names(f"{server.host}/team/app")

    def both() -> tuple[bool, bool]:
        return not obtaining.refusal(DIGEST, len(DATA), name), not obtaining.refusal(OTHER, 7, name)

    assert (both(), both(), heads(server)) == ((True, False), (True, False), 2)
    clock.now += PRESENT_SECONDS
    server.remove_blob(DIGEST)
    assert (both(), heads(server)) == ((False, False), 3)
    clock.now += REFUSED_SECONDS
    server.add_blob("team/app", DATA)
    assert (both(), heads(server)) == ((True, False), 5)


def test_an_answer_about_one_size_is_none_about_another(server: MemoryRegistry, client: Registry) -> None:
    server.add_blob("team/app", DATA)
    obtaining = Obtaining(client)
    name = names(f"{server.host}/team/app")
    assert obtaining.refusal(DIGEST, 3, name)
    assert not obtaining.refusal(DIGEST, len(DATA), name)
    assert obtaining.refusal(DIGEST, 3, name)


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_read_a_repository_does_not_ask_for_each_blob_of_it(
    server: MemoryRegistry, client: Registry, status: int
) -> None:
    server.add_blob("team/open", DATA)
    server.fault(lambda request: Answer(status=status) if request.repository == "team/shut" else None)
    obtaining = Obtaining(client)
    for digest in (DIGEST, OTHER):
        assert obtaining.refusal(digest, len(DATA), names(f"{server.host}/team/shut"))
    assert heads(server) == 1
    assert not obtaining.refusal(DIGEST, len(DATA), names(f"{server.host}/team/open"))
    assert not obtaining.failing


def test_a_registry_that_is_away_is_asked_again_after_pauses_that_grow(
    server: MemoryRegistry, client: Registry
) -> None:
    server.add_blob("team/app", DATA)
    server.stop()
    clock = Clock()
    told: list[tuple[str, str]] = []
    obtaining = Obtaining(client, told=lambda *of: told.append(of), clock=clock)
    name = names(f"{server.host}/team/app")
    asked_at = []
    for _ in range(int(20 * LONGEST_PAUSE_SECONDS / 30)):
        before = len(told)
        assert server.host in obtaining.refusal(Digest.of(str(clock.now).encode()), 7, name)
        if len(told) > before:
            asked_at.append(clock.now)
        clock.now += 30
    pauses = [b - a for a, b in itertools.pairwise(asked_at)]
    assert pauses[:3] == [PAUSE_SECONDS, 2 * PAUSE_SECONDS, 4 * PAUSE_SECONDS]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert set(told) == {(server.host, "failed")}
    assert obtaining.failing.keys() == {server.host}
    server.start()
    clock.now += LONGEST_PAUSE_SECONDS
    assert not obtaining.refusal(DIGEST, len(DATA), name)
    assert (told[-1], obtaining.failing) == ((server.host, "present"), {})
    server.stop()
    assert obtaining.refusal(OTHER, 7, name)
    clock.now += PAUSE_SECONDS
    before = len(told)
    assert obtaining.refusal(Digest.of(b"third"), 7, name)
    assert len(told) > before, "the pause begins anew"


def test_a_registry_that_asks_for_fewer_requests_gets_none(server: MemoryRegistry, client: Registry) -> None:
    server.fault(answering(429))
    with client.with_settings(HASTY) as hasty:
        obtaining = Obtaining(hasty)
        for digest in (DIGEST, OTHER):
            assert obtaining.refusal(digest, 7, names(f"{server.host}/team/app", f"{server.host}/team/other"))
    assert heads(server) == 1


@pytest.mark.parametrize("count", [1, 10, 40])
def test_blobs_that_a_registry_chokes_on_do_not_keep_the_others(
    server: MemoryRegistry, client: Registry, count: int
) -> None:
    bad = [Digest.of(bytes([number])) for number in range(count)]
    server.fault(lambda request: Answer(status=500) if request.identifier in bad else None)
    server.add_blob("team/app", DATA)
    clock = Clock()
    name = names(f"{server.host}/team/app")
    with client.with_settings(HASTY) as hasty:
        obtaining = Obtaining(hasty, clock=clock)
        for _ in range(24 * 60):
            assert all(obtaining.refusal(digest, 7, name) for digest in bad)
            if not obtaining.refusal(DIGEST, len(DATA), name):
                break
            clock.now += 60
        else:
            pytest.fail("the good one never had its turn")
    assert heads(server) <= 10 * len(bad) + 1


@contextmanager
def wild(answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A host that answers each request with what `answer` makes of its head; the heads."""
    asked: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = self.rfile.readline(65536)
                    if not line:
                        return
                    head += line
                asked.append(head)
                with suppress(OSError):
                    self.wfile.write(answer(head))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def said(status: str, *fields: str) -> Callable[[bytes], bytes]:
    return lambda head: "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode()


WILD = {
    "a loop": said("307 Go", "Location: /v2/team/app/blobs/x", "Content-Length: 0"),
    "a loop that grows": lambda head: said("302 Go", f"Location: {head.split()[1].decode()}/x", "Content-Length: 0")(
        head
    ),
    "to nowhere": said("307 Go", "Location: gopher://example.test/", "Content-Length: 0"),
    "to no address": said("307 Go", "Location: http://[::bad/", "Content-Length: 0"),
    "no length": said("200 OK", "Transfer-Encoding: chunked"),
    "no length at all": said("200 OK"),
    "a length below nothing": said("200 OK", "Content-Length: -7"),
    "two lengths": said("200 OK", "Content-Length: 7", "Content-Length: 8"),
    "a length that is none": said("200 OK", "Content-Length: 0x7"),
    "a length without end": said("200 OK", f"Content-Length: {'9' * 4000}"),
    "another size": said("200 OK", "Content-Length: 8"),
    "another blob": said("200 OK", "Content-Length: 7", f"Docker-Content-Digest: {OTHER}"),
    "two blobs": said(
        "200 OK", "Content-Length: 7", f"Docker-Content-Digest: {DIGEST}", f"Docker-Content-Digest: {OTHER}"
    ),
    "a part": said("206 Partial", "Content-Length: 7", "Content-Range: bytes 0-6/7"),
    "nothing": said("204 None"),
    "no sign-in known": said("401 No", "WWW-Authenticate: Negotiate", "Content-Length: 0"),
    "sign in again": said("401 No", 'WWW-Authenticate: Basic realm="x"', "Content-Length: 0"),
    "a token of itself": said("401 No", 'WWW-Authenticate: Bearer realm="/v2/token",service="x"', "Content-Length: 0"),
    "no HTTP": lambda head: b"\0\0\0\0",
    "headers without end": said("200 OK", *(f"X-{number}: {'y' * 8000}" for number in range(64))),
    "a body": lambda head: said("200 OK", "Content-Length: 7")(head) + b"ignored",
    "too many": said("429 No", "Retry-After: 999999999", "Content-Length: 0"),
    "never": said("503 No", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", "Content-Length: 0"),
}


@pytest.mark.parametrize("kind", WILD)
def test_whatever_a_registry_answers_the_blob_stays_and_soon(kind: str) -> None:
    started = time.monotonic()
    with (
        wild(WILD[kind]) as (host, asked),
        Registry(hosts=Hosts(()), credentials=Known(), settings=HASTY, environ={}) as client,
    ):
        obtaining = Obtaining(client)
        refusal = obtaining.refusal(DIGEST, 7, names(f"{host}/team/app"))
        assert bool(refusal) is (kind != "a body"), "what follows a HEAD's answer is not its body"
        assert refusal.isprintable()
        assert len(refusal) < 1000
        for number in range(10):
            obtaining.refusal(Digest.of(bytes([number])), 7, names(f"{host}/team/app"))
        if kind != "another size":
            assert len(asked) < 60
    assert time.monotonic() - started < 30


class Known:
    def get(self, host: str, repository: str) -> Credential | None:
        return Credential("user", "secret")


def test_a_host_that_keeps_silent_is_left_at_once_when_that_is_wanted() -> None:
    with (
        silent() as (host, _),
        Registry(hosts=Hosts(()), credentials=NoCredentials(), settings=PATIENT, environ={}) as client,
        tasks.scope() as cancellation,
    ):
        threading.Timer(0.3, cancellation.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            Obtaining(client).refusal(DIGEST, len(DATA), names(f"{host}/team/app"))
        assert time.monotonic() - started < 20


def test_a_client_that_was_closed_says_nothing_of_a_blob(server: MemoryRegistry, client: Registry) -> None:
    client.close()
    with pytest.raises(Closed):
        Obtaining(client).refusal(DIGEST, len(DATA), names(f"{server.host}/team/app"))
