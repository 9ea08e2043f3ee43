"""The main job against Debian's docker-registry and skopeo."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.content import LocalStore
from blobtee.errors import Cancelled
from blobtee.oci import Compressed
from blobtee.registry import Registry
from blobtee.testing import Generated, ImageSource, Layer, image, layer
from blobtee.transfer import copy, open_image, pull, push, verify
from tests.integration.relay import Relay
from tests.integration.servers import DockerRegistry, tool


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        [tool("skopeo"), "--insecure-policy", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(size: int, seed: int = 0) -> Layer:
    """A layer that does not compress, about `size` bytes of it."""
    return layer({f"data{seed}": Generated(size, seed=seed).read()}, compression=Compressed.NONE)


def small_image() -> ImageSource:
    return image([{"base": b"1" * 100_000}, {"etc/name": b"middle"}, {"etc/name": b"top"}])


def layer_reads(server: DockerRegistry, source: ImageSource) -> list[str]:
    """The GET requests for layers in the access log."""
    digests = {each.descriptor.digest for each in source.layers}
    return [path for method, path, *_ in server.requests() if method == "GET" and path.split("/")[-1] in digests]


def test_skopeo_s_image_is_pulled_lazily_mounted_on_and_pulled_whole(
    server: DockerRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = small_image()
    root = source.write_layout(tmp_path / "layout", "v1")
    name = f"{server.host}/team/app:v1"
    skopeo("copy", "--dest-tls-verify=false", f"oci:{root}:v1", f"docker://{name}")
    config = json.loads(source.manifest)["config"]

    before = len(server.requests())
    image_ = pull(name, store, lazy=True, registry=client)
    got = [request for request in server.requests()[before:] if request[0] == "GET" and request[2] == 200]
    assert sum(nbytes for *_, nbytes in got) == len(source.manifest) + config["size"]
    assert layer_reads(server, source) == []

    with image_:
        before = len(server.requests())
        report = push(image_, f"{server.host}/other/app:v2", store, registry=client)
        assert (report.count("mounted"), report.nbytes) == (4, 0)
        assert layer_reads(server, source) == []
        uploads = [request for request in server.requests()[before:] if request[0] in ("POST", "PATCH", "PUT")]
        assert [status for method, _, status, _ in uploads if method == "POST"] == [201] * 4
        assert not any(method == "PATCH" for method, *_ in uploads)
        inspected = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{report.name}"))
        assert inspected["Digest"] == source.descriptor.digest

        image_.get_remote().unlazy()
        assert len(layer_reads(server, source)) == 3
        with image_.open("etc/name") as file:
            assert file.read() == b"top"
    checked = verify(store, registry=client)
    assert (checked.blobs, checked.good, checked.lazy) == (5, True, 0)


def test_skopeo_reads_our_root_our_layouts_and_our_archives(
    server: DockerRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = small_image()
    name = f"{server.host}/team/app:v1"
    copy(f"oci:{source.write_layout(tmp_path / 'layout', 'v1')}:v1", name, registry=client)
    pull(name, store, registry=client).close()
    inspected = json.loads(skopeo("inspect", f"oci:{store.root}:{name}"))
    assert inspected["Digest"] == source.descriptor.digest
    skopeo("copy", f"oci:{store.root}:{name}", f"dir:{tmp_path}/dir")
    for address in (f"oci:{tmp_path}/ours:v2", f"oci-archive:{tmp_path}/ours.tar:v2"):
        with open_image(name, store) as opened:
            push(opened, address, store, registry=client)
        assert json.loads(skopeo("inspect", address))["Digest"] == source.descriptor.digest
    copy(name, f"docker-archive:{tmp_path}/docker.tar:app:v2", registry=client)
    inspected = json.loads(skopeo("inspect", f"docker-archive:{tmp_path}/docker.tar"))
    assert inspected["Layers"] == [each.diff_id for each in source.layers]
    skopeo("copy", f"docker-archive:{tmp_path}/docker.tar", f"dir:{tmp_path}/dir2")


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_we_read_what_skopeo_writes(store: LocalStore, tmp_path: Path, form: str) -> None:
    root = small_image().write_layout(tmp_path / "layout", "v1")
    name = "example.org/team/app:v1" if form == "docker-archive" else "v1"
    skopeo("copy", f"oci:{root}:v1", f"{form}:{tmp_path}/theirs:{name}")
    with pull(f"{form}:{tmp_path}/theirs", store) as pulled:
        assert pulled.name == name
        with pulled.open("etc/name") as file:
            assert file.read() == b"top"
    assert verify(store).good


def test_docker_s_own_media_types_and_zstd_survive_the_round(
    server: DockerRegistry, client: Registry, store: LocalStore
) -> None:
    for number, source in enumerate(
        (image([{"f": b"1"}], docker=True), image([{"f": b"1"}], compression=Compressed.ZSTD))
    ):
        name = f"{server.host}/kind{number}:v1"
        memory_layout = source.write_layout(store.root.parent / f"layout{number}", "v1")
        copy(f"oci:{memory_layout}:v1", name, registry=client)
        with pull(name, store, registry=client) as pulled, pulled.open("f") as file:
            assert (file.read(), pulled.manifest.raw) == (b"1", source.manifest)
        assert json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}"))["layers"]


def test_sixty_four_threads_share_one_download_and_one_that_gives_up_breaks_nobody(
    server: DockerRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = image([plain(20_000_000)])
    name = f"{server.host}/team/app:v1"
    copy(f"oci:{source.write_layout(tmp_path / 'layout', 'v1')}:v1", name, registry=client)
    with pull(name, store, lazy=True, registry=client) as pulled:
        remote = pulled.get_remote()
        barrier = threading.Barrier(64)
        outcomes: list[bytes | BaseException] = []
        impatient = tasks.Cancellation()

        def read(number: int) -> None:
            with tasks.scope(impatient if number == 0 else None):
                barrier.wait()
                if number == 1:
                    impatient.cancel("enough")
                try:
                    with remote.provider.reader_at(remote.descriptors[0]) as reader:
                        outcomes.append(reader.read_at(1_000_000, 64))
                except Cancelled as error:
                    outcomes.append(error)

        with tasks.Group() as group:
            for number in range(64):
                group.spawn(read, number)
    expected = source.layers[0].data[1_000_000:1_000_064]
    assert sum(isinstance(outcome, Cancelled) for outcome in outcomes) <= 1
    assert sum(outcome == expected for outcome in outcomes) >= 63
    assert len(layer_reads(server, source)) == 1


def test_a_registry_that_dies_at_seventy_percent_and_comes_back_costs_one_percent_at_most(
    server: DockerRegistry, client: Registry, store: LocalStore, tmp_path: Path
) -> None:
    source = image([plain(64_000_000)])
    size = len(source.layers[0].data)
    layout = source.write_layout(tmp_path / "layout", "v1")
    copy(f"oci:{layout}:v1", f"{server.host}/team/app:v1", registry=client)
    deaths: list[int] = []

    def die_and_come_back() -> None:
        deaths.append(relay.moved["down"])
        server.stop()
        server.start()

    with Relay(server.port, int(0.7 * size), die_and_come_back) as relay:
        pull(f"{relay.host}/team/app:v1", store, registry=client).close()
        moved = relay.moved["down"]
    assert [0.7 * size <= down <= 0.75 * size for down in deaths] == [True]
    assert verify(store).good
    assert size < moved <= 1.01 * size
