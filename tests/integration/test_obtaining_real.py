"""Debian's docker-registry is asked whether it still has what is to make room: it has, it has lost it in some way, it
wants to know who asks, it is down."""

from __future__ import annotations

import http.client
import shutil
import time
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.content import LocalStore
from blobtee.oci import Digest
from blobtee.registry import Credential, Credentials, Hosts, NoCredentials, Registry
from blobtee.testing import image
from blobtee.transfer.evictable import Held
from blobtee.transfer.evicting import Shrunk, shrink
from blobtee.transfer.obtaining import HASTY, Obtaining
from tests.integration.servers import DockerRegistry, running_registry

SOURCE = image([{"a": b"base " * 9999}, {"b": b"top " * 9999}])
FIRST, SECOND = (each.descriptor.digest for each in SOURCE.layers)

ANN = "ann:$2b$04$lsgMNm2Y589vxDWrDZqXB.WkbNLvWTgq04iXCcZ1ZaBhqRYEnh.8S\n"
"""Whose password is `secret`."""


class Known:
    def __init__(self, password: str) -> None:
        self._password = password

    def get(self, host: str, repository: str) -> Credential | None:
        return Credential("ann", self._password)


def hasty(credentials: Credentials | None = None) -> Registry:
    return Registry(hosts=Hosts(()), credentials=credentials or NoCredentials(), settings=HASTY, environ={})


def asked(store: LocalStore, credentials: Credentials | None = None) -> Shrunk:
    with hasty(credentials) as registry:
        return shrink(store, 0, obtaining=Obtaining(registry))


@pytest.fixture
def layout(tmp_path: Path) -> str:
    return f"oci:{SOURCE.write_layout(tmp_path / 'layout')}:latest"


def pulled(store: LocalStore, layout: str, name: str, client: Registry) -> str:
    """The image goes to the registry, and from there to the store."""
    transfer.copy(layout, name, registry=client)
    transfer.pull(name, store, registry=client).close()
    return name


def remove(server: DockerRegistry, repository: str, digest: Digest) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("DELETE", f"/v2/{repository}/blobs/{digest}")
        assert connection.getresponse().status == 202
    finally:
        connection.close()


def test_what_it_has_goes_by_one_question_each(
    server: DockerRegistry, client: Registry, store: LocalStore, layout: str
) -> None:
    pulled(store, layout, f"{server.host}/team/app:1", client)
    before = len(server.requests())
    assert asked(store).blobs.keys() == {FIRST, SECOND}
    heads = [(method, path.rpartition("/")[2], status) for method, path, status, _ in server.requests()[before:]]
    assert sorted(heads) == sorted(("HEAD", digest, 200) for digest in (FIRST, SECOND))


def test_a_blob_that_was_deleted_there_stays_here(
    server: DockerRegistry, client: Registry, store: LocalStore, layout: str
) -> None:
    name = pulled(store, layout, f"{server.host}/team/app:1", client)
    remove(server, "team/app", FIRST)
    done = asked(store)
    assert (set(done.blobs), done.held[Held.UNOBTAINABLE].blobs) == ({SECOND}, 1)
    assert "does not have it any more" in done.kept[0]
    with transfer.open_image(name, store, registry=client) as opened, opened.open("/a") as file:
        assert file.read() == b"base " * 9999


def test_a_repository_that_is_gone_is_no_place_to_have_it_from_another_is(
    server: DockerRegistry, client: Registry, store: LocalStore, layout: str
) -> None:
    pulled(store, layout, f"{server.host}/team/app:1", client)
    shutil.rmtree(server.folder / "root" / "docker" / "registry" / "v2" / "repositories" / "team" / "app")
    done = asked(store)
    assert (done.blobs, done.held[Held.UNOBTAINABLE].blobs) == ({}, 2)
    # One manifest, known to come from either now.
    pulled(store, layout, f"{server.host}/team/other:1", client)
    assert asked(store).blobs.keys() == {FIRST, SECOND}


@pytest.mark.parametrize("password", ["", "wrong", "secret"])
def test_it_wants_to_know_who_asks(store: LocalStore, layout: str, tmp_path: Path, password: str) -> None:
    with running_registry(tmp_path / "registry", ANN) as server:
        with Registry(hosts=Hosts(()), credentials=Known("secret"), environ={}) as client:
            pulled(store, layout, f"{server.host}/team/app:1", client)
        before = len(server.requests())
        done = asked(store, Known(password) if password else None)
        assert len(done.blobs) == (2 if password == "secret" else 0)
        assert all("docker login" in reason for reason in done.kept)
        assert len(server.requests()) - before <= 3, "not for each blob again"


def test_while_it_is_down_all_stays_and_after_that_goes(
    server: DockerRegistry, client: Registry, store: LocalStore, layout: str
) -> None:
    pulled(store, layout, f"{server.host}/team/app:1", client)
    server.stop()
    now = time.monotonic()
    with hasty() as registry:
        obtaining = Obtaining(registry, clock=lambda: now)
        assert shrink(store, 0, obtaining=obtaining).held[Held.UNOBTAINABLE].blobs == 2
        server.start()
        assert shrink(store, 0, obtaining=obtaining).held[Held.UNOBTAINABLE].blobs == 2, "it has a while for itself"
        now += 600
        assert shrink(store, 0, obtaining=obtaining).blobs.keys() == {FIRST, SECOND}
