"""Room is made in stores whose images a real registry has: what is read afterwards comes by its chunks, and proven."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

import pytest

from blobtee.oci import Compressed, Digest
from blobtee.testing import image, layer
from tests.integration.daemons import BLOBTEE, Blobtee, Containerd, running_blobtee, running_containerd, wait_for
from tests.integration.images import busybox_archive, hello, listed
from tests.integration.servers import DockerRegistry, free_port, tool
from tests.integration.test_lazy_containerd import layer_reads, make_known

SIZE = 24 << 20


def blobtee(root: Path, *arguments: str, status: int = 0) -> bytes:
    done = subprocess.run(
        [*BLOBTEE, *arguments], capture_output=True, timeout=120, env={**os.environ, "BLOBTEE_ROOT": str(root)}
    )
    assert done.returncode == status, done.stderr.decode()
    return done.stdout


def came(server: DockerRegistry, seen: int) -> int:
    """Bytes that the registry has sent since it had answered `seen` requests."""
    return sum(nbytes for method, _, _, nbytes in server.requests()[seen:] if method == "GET")


def make(kind: str, folder: Path) -> Path:
    """An OCI archive of one large layer with a small file in its middle."""
    large = os.urandom(SIZE // 2)
    if kind != "foreign":
        tree = folder / "tree"
        tree.mkdir()
        for name, data in (("a", large), ("b", b"found"), ("c", large)):
            (tree / name).write_bytes(data)
        made = folder / "made.tar"
        blobtee(folder / "making", "layer", str(tree), "-o", f"oci-archive:{made}:made:1", "--compression", kind)
        return made
    # As tools pack it that know nothing of seeking: one stream of gzip.
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer:
        for name, data in (("a", large), ("b", b"found"), ("c", large)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return image([layer(tar.getvalue(), compression=Compressed.GZIP)]).write_layout(folder / "layout")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "estargz", "foreign"])
def test_a_file_of_a_layer_that_made_room_brings_its_chunks_and_no_more(
    kind: str, server: DockerRegistry, tmp_path: Path
) -> None:
    made = make(kind, tmp_path)
    name = f"{server.host}/team/app:1"
    source = f"oci-archive:{made}:made:1" if made.is_file() else f"oci:{made}"
    blobtee(tmp_path / "making", "copy", source, name)
    root = tmp_path / "store"
    (digest,) = (each["digest"] for each in json.loads(blobtee(root, "pull", "--json", name))["layers"])
    assert blobtee(root, "cat", name, "/b") == b"found"  # and what is found out of a foreign gzip is kept

    shrunk = json.loads(blobtee(root, "gc", "--shrink", "0", "--json"))["shrunk"]
    assert [blob["digest"] for blob in shrunk["blobs"]] == [digest]
    assert shrunk["held"].keys() == {"documents", "indexes"}
    assert shrunk["after"] < 0.02 * SIZE
    seen = len(server.requests())
    assert blobtee(root, "cat", name, "/b") == b"found"
    assert 0 < came(server, seen) <= 3 << 20
    assert digest.removeprefix("sha256:") not in os.listdir(root / "blobs" / "sha256")
    assert blobtee(root, "ls", name, "/").split() == [b"/a", b"/b", b"/c"]

    seen = len(server.requests())
    blobtee(root, "pull", name)
    assert came(server, seen) < SIZE * 1.1
    assert blobtee(root, "verify", "--json") == b""
    assert len(blobtee(root, "cat", name, "/c")) == SIZE // 2


def test_bytes_that_changed_at_the_registry_meanwhile_are_refused(server: DockerRegistry, tmp_path: Path) -> None:
    made = make("gzip", tmp_path)
    name = f"{server.host}/team/app:1"
    blobtee(tmp_path / "making", "copy", f"oci-archive:{made}:made:1", name)
    root = tmp_path / "store"
    (digest,) = (each["digest"] for each in json.loads(blobtee(root, "pull", "--json", name))["layers"])
    blobtee(root, "gc", "--shrink", "0")
    hexed = digest.removeprefix("sha256:")
    (data,) = (server.folder / "root").rglob(f"sha256/{hexed[:2]}/{hexed}/data")
    data.write_bytes(os.urandom(data.stat().st_size))
    done = subprocess.run(
        [*BLOBTEE, "cat", "--root", str(root), "--trust", "blob", name, "/b"], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (4, b""), done.stderr


@pytest.fixture(params=["1.6", "2"])
def version(request: pytest.FixtureRequest) -> str:
    tool("runc")
    return str(request.param)


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        (line,) = (line for line in answer.read().decode().splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def get(containerd: Containerd, digest: str) -> Digest:
    command = [*containerd.calling, "content", "get", digest]
    return Digest.of(subprocess.run(command, capture_output=True, timeout=240).stdout)


def long_unused(serving: Blobtee, layers: list[str]) -> None:
    for layer_ in layers:
        path = serving.root / "blobs" / "sha256" / layer_.removeprefix("sha256:")
        os.utime(path, ns=(time.time_ns() - 600 * 10**9, path.stat().st_mtime_ns))


@pytest.mark.xdist_group("containerd")
@pytest.mark.timeout(1200)
def test_a_server_with_a_limit_and_a_containerd_that_notices_nothing(
    version: str, server: DockerRegistry, tmp_path: Path
) -> None:
    image_ = f"{server.host}/lazy/busybox:1"
    archive = busybox_archive(tmp_path, padding=8 << 20)
    blobtee(tmp_path / "making", "copy", f"oci-archive:{archive}:example.test/busybox:1", image_)
    port = free_port()
    options = ("--max-size", "4MB", "--metrics", f"127.0.0.1:{port}")
    with (
        running_blobtee(tmp_path / "b", "one", options=options) as serving,
        running_containerd(tmp_path / "c", version, serving.socket("one")) as containerd,
    ):
        layers = make_known(serving, image_)
        names = {each.removeprefix("sha256:") for each in layers}
        containerd.do("images", "pull", "--plain-http", image_)
        hello(containerd, image_)
        assert names <= serving.blobs()
        long_unused(serving, layers)
        wait_for("room is made, and told of", lambda: not names & serving.blobs() and "lazy again" in serving.log)
        assert set(layers) <= set(listed(containerd))
        assert metric(port, "blobtee_evictions_total") == len(layers)
        assert metric(port, "blobtee_store_bytes") < 4_000_000
        hello(containerd, image_)

        before = layer_reads(server, layers)
        containerd.do("images", "rm", "--sync", image_)
        containerd.do("images", "pull", "--plain-http", image_)
        hello(containerd, image_)
        assert layer_reads(server, layers) > before
        # Over a restart too, and by the command beside the serving.
        wait_for("what came is here", lambda: bool(names & serving.blobs()))
        blobtee(serving.root, "gc", "--shrink", "0")
        assert not names & serving.blobs()
        serving.kill()
        serving.start()
        assert set(layers) <= set(listed(containerd))
        for digest in layers:
            # It connects anew within some seconds.
            wait_for("the blob is had again", lambda: get(containerd, digest) == digest)  # noqa: B023
