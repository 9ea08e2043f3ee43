"""The registry client against Debian's docker-registry, alone and through a proxy that breaks connections."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator

import pytest

from blobtee.content.api import ReaderAt
from blobtee.errors import NotFound
from blobtee.oci import Descriptor, Digest, Manifest, mediatypes
from blobtee.registry import Registry
from blobtee.registry.fetcher import DocumentReader
from tests.integration.relay import Relay
from tests.integration.servers import DockerRegistry

DATA = random.Random(1).randbytes(12_345_678)
BLOB = Descriptor(mediatypes.OCI_LAYER, Digest.of(DATA), len(DATA))


class Bytes:
    def reader_at(self, desc: Descriptor) -> ReaderAt:
        return DocumentReader(DATA if desc.digest == BLOB.digest else b"{}")


@pytest.fixture
def relay(server: DockerRegistry) -> Iterator[Relay]:
    with Relay(server.port) as between:
        yield between


def image(repository_name: str, client: Registry) -> Manifest:
    """Push an image of one layer; its manifest."""
    repository = client.repository(repository_name)
    config = Descriptor(mediatypes.OCI_CONFIG, Digest.of(b"{}"), 2)
    for desc in (config, BLOB):
        repository.push(desc, Bytes())
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": config.to_json(),
        "layers": [BLOB.to_json()],
    }
    desc = repository.push_document(json.dumps(document, indent=1).encode(), repository.reference.tag)
    parsed = repository.document(desc)
    assert isinstance(parsed, Manifest)
    return parsed


def test_an_image_goes_there_and_comes_back(server: DockerRegistry, client: Registry) -> None:
    manifest = image(f"{server.host}/team/app:v1", client)
    repository = client.repository(f"{server.host}/team/app:v1")
    assert repository.resolve() == manifest.descriptor
    assert repository.document().raw == manifest.raw
    assert repository.stat(BLOB.digest) == len(DATA)
    assert list(repository.tags()) == ["v1"]
    assert repository.referrers(manifest.digest) == []
    with repository.reader_at(BLOB) as reader, reader.open() as file:
        buffer = bytearray(len(DATA))
        assert file.readinto(buffer) == len(DATA)
        assert buffer == DATA
        assert reader.read_at(5_000_000, 100) == DATA[5_000_000:5_000_100]
    with pytest.raises(NotFound, match="team/app:nothing"):
        repository.resolve("nothing")
    with pytest.raises(NotFound), client.repository(f"{server.host}/team/none").reader_at(BLOB) as reader:
        reader.read_at(0, 1)


def test_a_second_push_finds_and_another_repository_mounts(server: DockerRegistry, client: Registry) -> None:
    image(f"{server.host}/team/app:v1", client)
    assert client.repository(f"{server.host}/team/app").push(BLOB, Bytes()).how == "exists"
    pushed = client.repository(f"{server.host}/team/other").push(BLOB, Bytes(), mount_from=["no/where", "team/app"])
    assert (pushed.how, pushed.source, pushed.nbytes) == ("mounted", "team/app", 0)
    assert not [path for method, path, *_ in server.requests() if method == "GET" and "blobs" in path]


def test_many_tags_come_in_pages(server: DockerRegistry, client: Registry) -> None:
    manifest = image(f"{server.host}/team/app:v1", client)
    repository = client.repository(f"{server.host}/team/app")
    for number in range(30):
        repository.push_document(manifest, f"t{number:02}")
    assert sorted(repository.tags()) == [*(f"t{number:02}" for number in range(30)), "v1"]


def test_an_upload_cut_three_times_is_right_in_the_end(server: DockerRegistry, client: Registry, relay: Relay) -> None:
    # This registry keeps the offset in the upload's address and forgets an upload that broke off within a body
    # ("upload resumed at wrong offset"), so each time it begins anew; resuming is tested on a scripted server.
    relay.cuts["up"] = [5_000_000, 3_000_000, 1_000_000]
    assert client.repository(f"{relay.host}/team/app").push(BLOB, Bytes()).how == "uploaded"
    with client.repository(f"{server.host}/team/app").reader_at(BLOB) as reader:
        assert reader.read_at(0, len(DATA)) == DATA
    assert relay.cuts["up"] == []


def test_a_download_cut_three_times_moves_every_byte_once(
    server: DockerRegistry, client: Registry, relay: Relay
) -> None:
    client.repository(f"{server.host}/team/app").push(BLOB, Bytes())
    relay.cuts["down"] = [5_000_000, 3_000_000, 1_000_000]
    with client.repository(f"{relay.host}/team/app").reader_at(BLOB) as reader, reader.open() as file:
        buffer = bytearray(len(DATA))
        assert file.readinto(buffer) == len(DATA)
    assert buffer == DATA
    assert relay.moved["down"] <= 1.01 * len(DATA)


def test_a_registry_killed_at_70_percent_and_started_again(server: DockerRegistry, client: Registry) -> None:
    repository = client.repository(f"{server.host}/team/app")
    repository.push(BLOB, Bytes())
    got = bytearray()
    restart = threading.Timer(0.5, server.start)
    with repository.reader_at(BLOB) as reader, reader.open() as file:
        while piece := file.read(256 << 10):
            got += piece
            if len(got) > 0.7 * len(DATA) and not restart.ident:
                server.stop()
                restart.start()
    restart.join()
    assert bytes(got) == DATA


def test_a_digest_that_lies_is_refused_by_the_registry_and_left_behind_by_nobody(
    server: DockerRegistry, client: Registry
) -> None:
    wrong = Descriptor("application/octet-stream", Digest.of(b"other"), len(DATA))

    class Lying:
        def reader_at(self, desc: Descriptor) -> ReaderAt:
            return DocumentReader(DATA)

    repository = client.repository(f"{server.host}/team/app")
    with pytest.raises(ValueError, match="DIGEST_INVALID"):
        repository.push(wrong, Lying())
    assert repository.stat(wrong.digest) is None
