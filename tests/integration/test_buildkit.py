"""BuildKit on a containerd whose content is in blobtee serve: a build, and one from the cache that it pushed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from blobtee import transfer
from blobtee.content import LocalStore
from tests.integration import gotools
from tests.integration.daemons import BLOBTEE, Containerd, Daemon, running_blobtee, running_containerd, wait_for
from tests.integration.images import NAME, remove_everything, said_by
from tests.integration.servers import DockerRegistry, running_registry, tool

pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]

# Nobody is asked to make a network, and the host's own is no secret to this build.
_CONFIG = """\
root = "{folder}/root"
[grpc]
  address = ["unix://{folder}/buildkitd.sock"]
[worker.oci]
  enabled = false
[worker.containerd]
  enabled = true
  address = "{containerd}"
  namespace = "buildkit"
  networkMode = "host"
  gc = false
[registry."{host}"]
  http = true
"""
_RUN = "RUN /bin/busybox cat /proc/sys/kernel/random/uuid > /made"
_COPY = "COPY given /given"
_DOCKERFILE = f"""\
FROM {{base}}
{_RUN}
{_COPY}
CMD ["/bin/busybox", "cat", "/made", "/given"]
"""
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"


@dataclass
class BuildKit(Daemon):
    """buildkitd with its `buildctl`."""

    buildctl: str = ""

    def do(self, *arguments: str | Path) -> str:
        """Run `buildctl`, which has to succeed; the progress of a build, or what else it says."""
        # It gives up a server that it does not reach in 5 s unless told.
        command = [self.buildctl, "--addr", f"unix://{self.sockets[0]}", "--timeout", "120", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.log[-3000:]}"
        return done.stdout + done.stderr

    def build(self, context: Path, name: str, *options: str) -> str:
        """Build the Dockerfile in `context` and push it as `name`, every layer in zstd; the progress, a JSON a line."""
        output = f"type=image,name={name},push=true,compression=zstd,force-compression=true,oci-mediatypes=true"
        where = ["--local", f"context={context}", "--local", f"dockerfile={context}"]
        what = ["--progress", "rawjson", "--frontend", "dockerfile.v0", *where, "--output", output]
        return self.do("build", *what, *options)


@contextmanager
def running_buildkit(folder: Path, containerd: Containerd, registry: DockerRegistry) -> Iterator[BuildKit]:
    programs = gotools.buildkit()
    folder.mkdir()
    config = folder / "buildkitd.toml"
    config.write_text(_CONFIG.format(folder=folder, containerd=containerd.address, host=registry.host))
    command = [str(programs / "buildkitd"), "--config", str(config)]
    daemon = BuildKit(command, folder, [folder / "buildkitd.sock"], buildctl=str(programs / "buildctl"))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()


def fetched(name: str, kind: str, what: str) -> bytes:
    """The blob or the manifest `what` of the repository `name`."""
    host, repository = name.split("/", 1)
    request = urllib.request.Request(f"http://{host}/v2/{repository}/{kind}/{what}", headers={"Accept": _MANIFEST})
    with urllib.request.urlopen(request, timeout=20) as response:
        body: bytes = response.read()
    return body


def zstd_layers(name: str) -> list[str]:
    """Digests of the pushed image's layers, each of which has to be zstd, and what the image says that it is."""
    repository, tag = name.rsplit(":", 1)
    manifest = json.loads(fetched(repository, "manifests", tag))
    config = json.loads(fetched(repository, "blobs", manifest["config"]["digest"]))
    diffs = config["rootfs"]["diff_ids"]
    for layer, diff in zip(manifest["layers"], diffs, strict=True):
        blob = fetched(repository, "blobs", layer["digest"])
        assert layer["mediaType"] == _ZSTD_LAYER
        assert (len(blob), sha256(blob)) == (layer["size"], layer["digest"])
        with zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True) as reader:
            assert sha256(reader.read()) == diff
    return [layer["digest"] for layer in manifest["layers"]]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def cached(progress: str) -> set[str]:
    """Which of the Dockerfile's two steps were not run."""
    # Not from the plain text, where a step whose layers are then fetched may appear with the fetching alone.
    statuses = [json.loads(line) for line in progress.splitlines()]
    vertices = [vertex for status in statuses for vertex in status.get("vertexes", ())]
    names = [vertex["name"] for vertex in vertices if vertex.get("cached")]
    return {step for step in (_RUN, _COPY) if any(name.endswith(f"] {step}") for name in names)}


def test_a_build_is_pushed_in_zstd_and_built_again_from_the_cache_in_the_registry(
    tmp_path: Path, busybox: Path
) -> None:
    tool("runc")
    context = tmp_path / "context"
    context.mkdir()
    (context / "given").write_text("given\n")
    with (
        running_registry(tmp_path / "registry") as registry,
        running_blobtee(tmp_path / "b", "one") as blobtee,
        running_containerd(tmp_path / "c", "2", blobtee.socket("one")) as containerd,
        running_buildkit(tmp_path / "k", containerd, registry) as buildkit,
    ):
        base, first, second, cache = (f"{registry.host}/{name}:1" for name in ("base", "first", "second", "cache"))
        command = [*BLOBTEE, "copy", f"oci-archive:{busybox}:{NAME}", base]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        (context / "Dockerfile").write_text(_DOCKERFILE.format(base=base))

        progress = buildkit.build(context, first, "--export-cache", f"type=registry,ref={cache},mode=max")
        assert cached(progress) == set()
        layers = zstd_layers(first)
        assert len(layers) == 3
        assert {layer.removeprefix("sha256:") for layer in layers} <= blobtee.blobs()
        containerd.do("images", "pull", "--plain-http", first)
        made = said_by(containerd, first)
        assert made.endswith("\ngiven\n")

        buildkit.do("prune", "--all")
        buildkit.do("prune-histories")
        remove_everything(containerd, "buildkit")
        remove_everything(containerd)
        wait_for("the bytes go", lambda: not blobtee.blobs())

        progress = buildkit.build(context, second, "--import-cache", f"type=registry,ref={cache}")
        assert cached(progress) == {_RUN, _COPY}
        assert zstd_layers(second) == layers  # and with them what RUN once drew by lot
        with LocalStore(blobtee.root) as store:
            verified = transfer.verify(store)
            assert verified.blobs >= len(layers)
            assert verified.problems == ()
        assert "Traceback" not in blobtee.log
