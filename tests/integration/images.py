"""An image that runs, of Debian's static busybox, and what tests of containerd ask of it; a large tree for another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from tests.integration.daemons import BLOBTEE, Containerd

NAME = "example.test/busybox:1"
BUSYBOX = Path("/bin/busybox")


def busybox_archive(folder: Path, name: str = NAME, command: str = "echo hello from busybox", padding: int = 0) -> Path:
    """An OCI archive in `folder` with one image, that runs `command` in a shell; it has `padding` bytes of no use."""
    tree = folder / "tree" / "bin"
    tree.mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "busybox")
    for applet in ("sh", "echo", "sleep", "true"):
        (tree / applet).symlink_to("busybox")
    (tree / "padding").write_bytes(os.urandom(padding))
    made = folder / "busybox.tar"
    arguments = ["layer", str(folder / "tree"), "-o", f"oci-archive:{made}:{name}", "--root", str(folder / "store")]
    arguments += ["--cmd", json.dumps(["/bin/sh", "-c", command])]
    subprocess.run([*BLOBTEE, *arguments], check=True, capture_output=True, timeout=60)
    return made


def large_tree(folder: Path, nbytes: int) -> Path:
    """A directory with two files of `nbytes` bytes that do not pack, which is the hard case: `usr/small` lies between
    them. `etc/2999.conf` is one of 3,000, and `usr/hole` has a gibibyte, of which the disk and a tar hold little."""
    (folder / "usr/lib").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "usr/lib/data").write_bytes(os.urandom(nbytes))
    for number in range(3000):
        (folder / "etc" / f"{number}.conf").write_text(f"number = {number}\n" * (number % 50))
    with (folder / "usr/hole").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"in the middle")
    (folder / "usr/small").write_text("found")
    (folder / "zz").write_bytes(os.urandom(nbytes))
    return folder


def said_by(containerd: Containerd, image: str) -> str:
    """Run it; what it says."""
    # runc keeps the containers of all containerds of a machine in one folder, so that other tests may meet this one.
    name = f"greeter-{uuid.uuid4()}"
    with tempfile.TemporaryDirectory() as folder:
        # Of a container that ends at once, `ctr` may lose what it says: it cancels the opening of the pipe, which it
        # has perhaps not come to yet (containerd 1.6, Task.Delete). The shim itself loses nothing.
        said = Path(folder) / "said"
        containerd.do("run", "--rm", "--net-host", "--log-uri", f"file://{said}", image, name)
        return said.read_text()


def hello(containerd: Containerd, image: str = NAME) -> None:
    """Run it; it has to greet."""
    said = said_by(containerd, image)
    assert said == "hello from busybox\n", f"it said {said!r}\n{containerd.log[-2000:]}"


def listed(containerd: Containerd) -> list[str]:
    return containerd.do("content", "ls", "-q").split()


def settle(containerd: Containerd) -> None:
    """Let it collect what its work so far has left, and wait for that: the index that an archive brings, for one."""
    containerd.do("images", "tag", NAME, "example.test/gone:1")
    containerd.do("images", "rm", "--sync", "example.test/gone:1")


def remove_everything(containerd: Containerd, namespace: str = "default") -> None:
    """As an operator does; the daemon collects before it answers."""
    for name in containerd.do("-n", namespace, "images", "ls", "-q").split():
        containerd.do("-n", namespace, "images", "rm", "--sync", name)
