"""Asking registries whether they still have a blob: once, not for long, and whatever they answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blobtee.errors import Closed
from blobtee.oci import Digest
from blobtee.registry import Hosts, NoCredentials, Registry, Settings
from blobtee.testing import Answer, Fault, MemoryRegistry
from blobtee.transfer.obtaining import Obtaining

DATA = b"a layer"
DIGEST = Digest.of(DATA)
OTHER = Digest.of(b"another")


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


def answering(status: int) -> Fault:
    return lambda request: Answer(status=status) if request.method == "HEAD" else None


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
        asked = len(taken)
        second = obtaining.refusal(OTHER, 7, names(f"{host}/team/app", f"{host}/team/other"))
        assert host in first
        assert host in second
        assert len(taken) == asked <= 2  # it may be tried with TLS and without


def test_a_client_that_was_closed_says_nothing_of_a_blob(server: MemoryRegistry, client: Registry) -> None:
    client.close()
    with pytest.raises(Closed):
        Obtaining(client).refusal(DIGEST, len(DATA), names(f"{server.host}/team/app"))
