"""An image of this machine's own files: real input that every machine has."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from blobtee import core, tasks
from blobtee.errors import FailedPrecondition
from blobtee.oci import Descriptor, Digest, mediatypes
from blobtee.testing import File, Layer, MemoryRegistry, image
from blobtee.testing.images import say_directories

LAYERS = 3
LAYER_NBYTES = 36 << 20
"""Bytes of files in each layer, at least: more than 100 MB in all."""

_MAX_FILE = 48 << 20
_MEMBER = 1 << 20
_SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests"})


def put_image(registry: MemoryRegistry, folder: Path) -> tuple[str, str]:
    """Make the image and put it into `registry`, its blobs as files in `folder`: its name, and a file in its top layer.

    The same machine gives the same image. `FailedPrecondition` when there is too little to be read.
    """
    files = _files()
    layers = []
    top = ""
    for _ in range(LAYERS):
        packed, top = _layer(files)
        layers.append(packed)
    source = image(layers)
    for digest, data in source.blobs.items():
        path = folder / digest.hex
        path.write_bytes(data)
        registry.add_blob("demo/first", File(path), digest)
    registry.add_document("demo/first", source.manifest, source.descriptor.media_type, "latest")
    return f"{registry.host}/demo/first:latest", top


def _files() -> Iterator[Path]:
    """Regular files that can be read, in a fixed order: Python's own first, then the system's."""
    seen = set()
    for root in dict.fromkeys((sysconfig.get_paths()["stdlib"], "/usr/lib", "/usr/bin", "/usr/share")):
        for where, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED)
            for name in sorted(names):
                path = Path(where, name)
                info = path.lstat()
                key = (info.st_dev, info.st_ino)
                wanted = stat.S_ISREG(info.st_mode) and 0 < info.st_size <= _MAX_FILE and str(path).isprintable()
                if wanted and key not in seen and os.access(path, os.R_OK):
                    seen.add(key)
                    yield path


def _layer(files: Iterator[Path]) -> tuple[Layer, str]:
    """The next layer, and the first file in it."""
    buffer = io.BytesIO()
    first, total = "", 0
    said: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        while total < LAYER_NBYTES:
            tasks.check()
            path = next(files, None)
            if path is None:
                raise FailedPrecondition("too few files on this machine for the demo; give it an IMAGE instead")
            data = path.read_bytes()
            name = str(path).lstrip("/")
            say_directories(archive, name, said)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
            first, total = first or member.name, total + len(data)
    unpacked = buffer.getvalue()
    data = _compressed(unpacked)
    descriptor = Descriptor(f"{mediatypes.OCI_LAYER}+gzip", _digest(data), len(data))
    return Layer(data, descriptor, _digest(unpacked)), first


def _compressed(unpacked: bytes) -> bytes:
    """gzip in members of 1 MiB, several at a time."""
    view = memoryview(unpacked)
    with tasks.Group(os.cpu_count() or 1, name="blobtee-demo") as group:
        members = [
            group.spawn(core.gzip_member, view[start : start + _MEMBER]) for start in range(0, len(view), _MEMBER)
        ]
    return b"".join(member.result() for member in members)


def _digest(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
