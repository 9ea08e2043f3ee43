"""An image that blobtee knows of, in containerds that know nothing of it: pulled without bytes, run when they come."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import BLOBTEE, Blobtee, Containerd, running_blobtee, running_containerd, wait_for
from tests.integration.images import NAME, hello, listed
from tests.integration.servers import DockerRegistry, running_registry, tool

pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    with running_registry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def image(registry: DockerRegistry, busybox: Path) -> str:
    name = f"{registry.host}/lazy/busybox:1"
    command = [*BLOBTEE, "copy", f"oci-archive:{busybox}:{NAME}", name]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return name


@pytest.fixture
def blobtee(tmp_path: Path) -> Iterator[Blobtee]:
    with running_blobtee(tmp_path / "b", "one") as daemon:
        yield daemon


@pytest.fixture(params=["1.6", "2"])
def containerd(request: pytest.FixtureRequest, tmp_path: Path, blobtee: Blobtee) -> Iterator[Containerd]:
    tool("runc")
    with running_containerd(tmp_path / "c", request.param, blobtee.socket("one")) as daemon:
        yield daemon


def make_known(blobtee: Blobtee, image: str) -> list[str]:
    """Digests of the layers."""
    command = [*BLOBTEE, "pull", "--lazy", "--json", "--socket", str(blobtee.socket("one")), image]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True)
    return [layer["digest"] for layer in json.loads(done.stdout)["layers"]]


def layer_reads(registry: DockerRegistry, layers: list[str]) -> int:
    """GETs of layers that the registry has answered."""
    return sum(
        1
        for method, path, _, _ in registry.requests()
        if method == "GET" and any(path.endswith(f"/blobs/{layer}") for layer in layers)
    )


def test_a_pull_finds_everything_present_and_the_layer_comes_for_the_container(
    containerd: Containerd, blobtee: Blobtee, registry: DockerRegistry, image: str
) -> None:
    layers = make_known(blobtee, image)
    containerd.do("content", "fetch", "--plain-http", image)
    assert set(layers) <= set(listed(containerd))
    assert layer_reads(registry, layers) == 0
    assert not {layer.removeprefix("sha256:") for layer in layers} & blobtee.blobs()

    containerd.do("images", "pull", "--plain-http", image)
    hello(containerd, image)
    assert layer_reads(registry, layers) == len(layers)


def test_a_source_that_is_gone_is_said_at_once_and_works_when_it_is_back(
    containerd: Containerd, blobtee: Blobtee, registry: DockerRegistry, image: str, tmp_path: Path
) -> None:
    (layer,) = make_known(blobtee, image)
    containerd.do("content", "fetch", "--plain-http", image)
    registry.stop()
    begun = time.monotonic()
    failed = containerd.ctr("content", "get", layer, timeout=120)
    assert failed.returncode != 0
    assert re.search("not to be had now", failed.stderr)
    assert time.monotonic() - begun < 90
    registry.start()
    containerd.do("images", "pull", "--plain-http", image)
    hello(containerd, image)


def test_collection_takes_what_came_and_leaves_what_is_known(
    containerd: Containerd, blobtee: Blobtee, registry: DockerRegistry, image: str
) -> None:
    layers = make_known(blobtee, image)
    containerd.do("images", "pull", "--plain-http", image)
    containerd.do("images", "rm", "--sync", image)
    assert listed(containerd) == []
    containerd.do("images", "pull", "--plain-http", image)
    hello(containerd, image)
    containerd.do("images", "rm", "--sync", image)
    # Known for as long as blobtee has a name for it.
    subprocess.run([*BLOBTEE, "rm", "--root", str(blobtee.root), image], check=True, capture_output=True, timeout=60)
    subprocess.run(
        [*BLOBTEE, "gc", "--root", str(blobtee.root), "--grace", "0"], check=True, capture_output=True, timeout=60
    )
    wait_for("the bytes go", lambda: not blobtee.blobs())
    assert layer_reads(registry, layers) >= len(layers)


def test_who_removes_the_name_and_then_the_image_has_the_room_back_at_once(
    containerd: Containerd, blobtee: Blobtee, image: str
) -> None:
    layers = make_known(blobtee, image)
    containerd.do("images", "pull", "--plain-http", image)
    subprocess.run([*BLOBTEE, "rm", "--root", str(blobtee.root), image], check=True, capture_output=True, timeout=60)
    assert {layer.removeprefix("sha256:") for layer in layers} <= blobtee.blobs()
    containerd.do("images", "rm", "--sync", image)
    wait_for("the bytes go", lambda: not blobtee.blobs())
