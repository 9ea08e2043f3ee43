"""Moving a containerd from its own store to blobtee, by links and in place, and back again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from blobtee.content.proxy import ProxyStore
from blobtee.oci import Digest
from tests.integration.daemons import BLOBTEE, Containerd, running_blobtee, running_containerd, wait_for
from tests.integration.images import NAME, hello, listed, settle
from tests.integration.servers import tool

pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]

CONTENT = "io.containerd.content.v1.content"


def adopt(*arguments: str | Path) -> dict[str, object]:
    command = [*BLOBTEE, "adopt", "--json", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def labels_of(containerd: Containerd) -> set[str]:
    """Of all blobs: the last column, whose order is by chance."""
    lines = containerd.do("content", "ls").splitlines()
    return {label for line in lines for label in line.split()[-1].split(",")}


@pytest.mark.parametrize("way", ["links", "in place"])
@pytest.mark.parametrize("version", ["1.6", "2"])
def test_a_containerd_moves_in_with_its_images_and_unfinished_blobs(
    version: str, way: str, tmp_path: Path, busybox: Path
) -> None:
    tool("runc")
    folder = tmp_path / "c"
    with running_containerd(folder, version, None) as containerd:
        containerd.do("images", "import", busybox)
        hello(containerd)
        settle(containerd)
        images, blobs = containerd.do("images", "ls"), set(listed(containerd))
        labels = labels_of(containerd)
        with ProxyStore(containerd.address) as store, store.writer("unfinished", total=8) as writer:
            writer.write(b"half")
    content = folder / "root" / CONTENT
    root = content if way == "in place" else tmp_path / "store"
    if way == "in place":
        done = adopt("--tenant", "one", "--in-place", content)
    else:
        done = adopt("--tenant", "one", "--root", root, folder / "root")
    assert (done["held"], done["ingests"], done["damaged"]) == (len(blobs), 1, [])

    with running_blobtee(tmp_path / "b", "one", root=root) as blobtee:
        with running_containerd(folder, version, blobtee.socket("one")) as containerd:
            assert containerd.do("images", "ls") == images
            assert labels_of(containerd) == labels
            hello(containerd)
            with ProxyStore(containerd.address) as store, store.writer("unfinished", total=8) as writer:
                assert writer.status.offset == 4
                writer.write(b"done")
                writer.commit(8, Digest.of(b"halfdone"), {"containerd.io/gc.root": "1"})
            containerd.do("images", "rm", "--sync", NAME)
            containerd.do("content", "rm", Digest.of(b"halfdone"))
            assert listed(containerd) == []
            wait_for("the bytes go", lambda: not blobtee.blobs())
    assert (way == "in place") == (not list((content / "blobs" / "sha256").iterdir()))


def test_a_containerd_leaves_with_its_images(tmp_path: Path, busybox: Path) -> None:
    folder = tmp_path / "c"
    with running_blobtee(tmp_path / "b", "one") as blobtee:
        with running_containerd(folder, "2", blobtee.socket("one")) as containerd:
            containerd.do("images", "import", busybox)
    shutil.copytree(blobtee.root / "blobs", folder / "root" / CONTENT / "blobs", dirs_exist_ok=True)
    with running_containerd(folder, "2", None) as containerd:
        hello(containerd)


def test_garbage_of_another_life_is_left(tmp_path: Path, busybox: Path) -> None:
    folder = tmp_path / "c"
    with running_containerd(folder, "2", None) as containerd:
        containerd.do("images", "import", busybox)
        settle(containerd)
        count = len(listed(containerd))
    stray = b"of a containerd that was reset"
    (folder / "root" / CONTENT / "blobs" / "sha256" / Digest.of(stray).hex).write_bytes(stray)
    done = adopt("--root", tmp_path / "store", folder / "root")
    assert (done["held"], done["garbage"]) == (count, 1)


def test_a_store_that_has_lost_its_database_keeps_every_image(tmp_path: Path, busybox: Path) -> None:
    folder = tmp_path / "c"
    with running_blobtee(tmp_path / "b", "one") as blobtee:
        with running_containerd(folder, "1.6", blobtee.socket("one")) as containerd:
            containerd.do("images", "import", busybox)
            settle(containerd)
            blobs = set(listed(containerd))
    for path in blobtee.root.glob("blobtee.db*"):
        path.unlink()
    stray = b"garbage"
    (blobtee.root / "blobs" / "sha256" / Digest.of(stray).hex).write_bytes(stray)
    gc = [*BLOBTEE, "gc", "--root", str(blobtee.root), "--grace", "0"]
    assert subprocess.run(gc, check=False, capture_output=True, timeout=60).returncode == 1
    with running_blobtee(tmp_path / "b", "one", root=blobtee.root) as blobtee:
        assert subprocess.run(gc, check=False, capture_output=True, timeout=60).returncode == 0
        with running_containerd(folder, "1.6", blobtee.socket("one")) as containerd:
            hello(containerd)
            assert set(listed(containerd)) == blobs
            containerd.do("images", "rm", "--sync", NAME)  # it collects only when it lets go of something itself
            wait_for("all bytes go, also those that it does not know", lambda: not blobtee.blobs())
