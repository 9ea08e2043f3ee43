"""Layers as the tools of the field write them, of one tree that has most of what a layer can hold."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from blobtee import layers
from blobtee.compression import decompress
from blobtee.oci import Descriptor, Manifest, parse_document
from blobtee.testing import Generated
from tests.integration.servers import tool


def tree(folder: Path) -> Path:
    """A directory with long names, links, a hole, an extended attribute, odd modes and times, and data of both kinds:
    some that packs well, some that does not."""
    folder.mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "etc" / "name").write_text("blobtee\n")
    (folder / "etc" / "empty").touch()
    (folder / ("d" * 90)).mkdir()
    (folder / ("d" * 90) / ("long" * 50)).write_text("a path that no ustar header holds")
    (folder / "größe").write_text("not ASCII")
    (folder / "text").write_text("".join(f"line {number} of many\n" for number in range(60_000)))
    (folder / "noise").write_bytes(Generated(3 << 20, seed=3).read())
    os.link(folder / "text", folder / "the same text")
    (folder / "link").symlink_to("etc/name")
    os.mkfifo(folder / "pipe")
    with (folder / "hole").open("wb") as file:
        file.truncate(2 << 20)
        file.seek(1 << 20)
        file.write(b"in the middle")
    os.setxattr(folder / "etc" / "name", "user.said", b"by us")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o4755)
    os.utime(folder / "etc" / "name", ns=(1_600_000_000_123_456_789,) * 2)
    os.utime(folder / "text", ns=(-5_000_000_000,) * 2)
    return folder


def gnu_tar(folder: Path) -> bytes:
    return _run(tool("tar"), "--format=gnu", "--sort=name", "-C", str(folder), "-c", ".")


def gnu_tar_pax(folder: Path) -> bytes:
    return _run(tool("tar"), "--format=pax", "--xattrs", "--sparse", "-C", str(folder), "-c", ".")


def bsdtar(folder: Path) -> bytes:
    return _run(tool("bsdtar"), "--format=pax", "-C", str(folder), "-c", "-f", "-", ".")


def go_by_umoci(folder: Path) -> bytes:
    """Go's archive/tar and pgzip, as umoci calls them."""
    layout = folder.parent / "umoci"
    for arguments in (
        ("init", "--layout", str(layout)),
        ("new", "--image", f"{layout}:v1"),
        ("insert", "--image", f"{layout}:v1", str(folder), "/"),
    ):
        _run(tool("umoci"), *arguments)
    return unpacked(layout)


def blobtee(folder: Path) -> bytes:
    written = io.BytesIO()
    layers.write_changes(None, folder, written.write)
    return written.getvalue()


ORIGINS: dict[str, Callable[[Path], bytes]] = {
    "GNU tar": gnu_tar,
    "GNU tar, pax and sparse": gnu_tar_pax,
    "bsdtar": bsdtar,
    "Go, by umoci": go_by_umoci,
    "blobtee": blobtee,
}


def unpacked(layout: Path) -> bytes:
    """The tar of the last layer of the only image in an OCI layout."""
    desc = top_layer(layout)
    with (layout / "blobs" / desc.digest.algorithm / desc.digest.hex).open("rb") as packed:
        return decompress(packed, desc.media_type).readall()


def top_layer(layout: Path) -> Descriptor:
    (root,) = json.loads((layout / "index.json").read_text())["manifests"]
    algorithm, _, name = root["digest"].partition(":")
    manifest = parse_document((layout / "blobs" / algorithm / name).read_bytes())
    assert isinstance(manifest, Manifest)
    return manifest.layers[-1]


def _run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
