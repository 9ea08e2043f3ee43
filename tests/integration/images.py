"""An image that runs, of Debian's static busybox, and what tests of containerd ask of it; a large tree for another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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


def hello(containerd: Containerd, image: str = NAME) -> None:
    """Run it; it has to greet."""
    # runc keeps the containers of all containerds of a machine in one folder, so that other tests may meet this one.
    said = containerd.do("run", "--rm", "--net-host", image, f"greeter-{uuid.uuid4()}")
    assert said == "hello from busybox\n"


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
