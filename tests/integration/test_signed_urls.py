"""Lazy layers behind nginx that redirects to links which are good for two seconds, as hosted registries do.

Requests are counted as a client makes them: each redirect is one of its own. Bodies are what storage sends.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.compression import Compression, detect
from blobtee.content import LocalStore, Trust
from blobtee.oci import Compressed, Descriptor, Digest
from blobtee.registry import Hosts, Registry, Settings
from blobtee.tee import Tee, source_of
from blobtee.testing import Generated
from blobtee.testing.bodies import Body
from blobtee.transfer import build, pull, push
from tests.integration.images import large_tree
from tests.integration.relay import Relay
from tests.integration.signing import LIFETIME, OUTLIVED, Known, Line, SignedRegistry, signed_registry

LARGE = int(os.environ.get("BLOBTEE_TEST_LARGE", 24 << 20))
"""Bytes of either large file. A file of a gibibyte that is nearly all hole comes on top."""


@pytest.fixture(params=[403, 410])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SignedRegistry]:
    """What the links end with differs: S3 says 403, and nginx's own manual 410."""
    with signed_registry(tmp_path / "signed", request.param) as server:
        yield server


@pytest.fixture
def client() -> Iterator[Registry]:
    settings = Settings(backoff=0.1, patience=120)
    with Registry(hosts=Hosts(()), credentials=Known(), settings=settings, environ={}) as registry:
        yield registry


def pushed(client: Registry, server: SignedRegistry, body: Body, folder: Path) -> Descriptor:
    """A blob on the registry that is nothing else."""
    data = body.read()
    desc = Descriptor("application/octet-stream", Digest.of(data), len(data))
    with LocalStore(folder) as store:
        with store.writer("a blob", total=len(data)) as writer:
            writer.write(data)
            writer.commit()
        client.repository(f"{server.host}/a/b").push(desc, store)
    return desc


def asked(server: SignedRegistry, before: list[Line]) -> list[Line]:
    """What was got since `before`."""
    return [
        line for line in server.requests()[len(before) :] if line.method == "GET" and "/manifests/" not in line.path
    ]


def test_a_link_is_good_for_two_seconds_and_for_what_it_was_made_for(
    server: SignedRegistry, client: Registry, tmp_path: Path
) -> None:
    desc = pushed(client, server, Generated(1000), tmp_path / "store")

    def link() -> str:
        """A new one, that is good for as long as it takes to ask for it."""
        return server.link(desc.digest.hex)

    def status(url: str, **headers: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert status(link()) == 200
    assert status(link(), Range="bytes=5-9") == 206
    assert status(link(), Authorization="Basic x") == 400
    assert status(link().replace(desc.digest.hex, Digest.of(b"another").hex)) == 403
    assert status(link().replace("expires=", "expires=1")) == 403
    old = link()
    time.sleep(OUTLIVED)
    assert status(old) == server.expired


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_tree(tmp_path_factory.mktemp("large") / "tree", LARGE)


@pytest.mark.parametrize("server", [403], indirect=True)
@pytest.mark.parametrize("kind", ["gzip", "zstd", "estargz"])
def test_a_small_file_of_a_gibibyte_takes_three_requests_and_a_mebibyte(
    kind: str, tree: Path, server: SignedRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    name = f"{server.host}/files/{kind}:1"
    cache = CacheManager(store)
    with cache.add_directory(str(tree)) as ref, build(ref, store, name, compression=Compression(kind)) as made:
        push(made, name, store, registry=client)
    with LocalStore(tmp_path / "elsewhere") as other, pull(name, other, lazy=True, registry=client) as image:
        before, begun = server.requests(), time.monotonic()
        with image.open("/usr/small", trust="attested") as file:
            assert file.readall() == b"found"
            assert file.trust is Trust.ATTESTED
        seen = asked(server, before)
        if time.monotonic() - begun < LIFETIME:  # on a machine that is slower than that, the link ends on the way
            assert [line.by for line in seen] == ["front", *["storage"] * (len(seen) - 1)], seen
            assert len(seen) <= 3
        assert 0 < sum(line.nbytes for line in seen if line.by == "storage") <= 1 << 20
        time.sleep(OUTLIVED)
        before = server.requests()
        with image.open("/etc/2999.conf", trust="attested") as file:
            assert file.readall() == b"number = 2999\n" * 49
        assert [(line.by, line.status) for line in asked(server, before)] == [
            ("storage", 403),
            ("front", 307),
            ("storage", 206),
        ]


def test_telling_the_type_of_a_layer_takes_one_chunk(server: SignedRegistry, client: Registry, tmp_path: Path) -> None:
    desc = pushed(client, server, Generated(10 << 20), tmp_path / "store")
    with LocalStore(tmp_path / "other") as store:
        tee = Tee(store)
        before = server.requests()
        with tee.reader_at(desc, lambda: source_of(client.repository(f"{server.host}/a/b"), desc), Trust.RAW) as reader:
            assert detect(reader.read_at(0, 4)) is Compressed.NONE
        tee.close()
    assert [(line.by, line.status) for line in asked(server, before)] == [("front", 307), ("storage", 206)]
    assert sum(line.nbytes for line in asked(server, before) if line.by == "storage") <= 64 << 10


def test_a_reader_whose_link_ends_between_two_reads_gets_another(
    server: SignedRegistry, client: Registry, tmp_path: Path
) -> None:
    body = Generated(10 << 20)
    data = body.read()
    desc = pushed(client, server, body, tmp_path / "store")
    with LocalStore(tmp_path / "other") as store:
        tee = Tee(store)
        before, begun = server.requests(), time.monotonic()
        with tee.reader_at(desc, lambda: source_of(client.repository(f"{server.host}/a/b"), desc), Trust.RAW) as reader:
            assert reader.read_at(1 << 20, 100) == data[1 << 20 :][:100]
            assert reader.read_at(3 << 20, 100) == data[3 << 20 :][:100]
            in_time = time.monotonic() - begun < LIFETIME
            time.sleep(OUTLIVED)
            assert reader.read_at(5 << 20, 100_000) == data[5 << 20 :][:100_000]
        tee.close()
    first, ended = [("front", 307), ("storage", 206)], ("storage", server.expired)
    seen = [(line.by, line.status) for line in asked(server, before)]
    assert seen[-3:] == [ended, *first]
    assert seen[:-3] == [*first, ("storage", 206)] or not in_time


@pytest.mark.parametrize("trust", [Trust.STREAMED, Trust.BLOB])
def test_a_body_that_outlives_its_link_goes_on_by_another_where_it_broke_off(
    trust: Trust, server: SignedRegistry, client: Registry, tmp_path: Path
) -> None:
    """It comes slowly, and breaks off when its link is long good for nothing."""
    body = Generated(12 << 20)
    data = body.read()
    desc = pushed(client, server, body, tmp_path / "store")
    with (
        Relay(server.storage, at=4 << 20, then=lambda: time.sleep(OUTLIVED)) as relay,
        LocalStore(tmp_path / "other") as store,
    ):
        relay.cuts["down"].append(5 << 20)
        server.storage_host = relay.host
        tee = Tee(store)
        before = server.requests()
        with tee.reader_at(desc, lambda: source_of(client.repository(f"{server.host}/a/b"), desc), trust) as reader:
            for at in range(0, desc.size, 700_000):
                assert reader.read_at(at, 700_000) == data[at : at + 700_000]
        tee.close()
        assert store.info(desc.digest).size == desc.size
    seen = [(line.by, line.status) for line in asked(server, before)]
    # nginx notes a request when it has ended: that which broke off may be anywhere.
    assert sorted(seen) == sorted(
        [("front", 307), ("storage", 200), ("storage", server.expired), ("front", 307), ("storage", 206)]
    )
    assert relay.moved["down"] <= desc.size + 8 * 4096, "no byte came twice"
