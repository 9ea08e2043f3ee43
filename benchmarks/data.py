"""Input for benchmarks: made of this machine's own files, so that it looks like layers do and nothing is downloaded."""

from __future__ import annotations

import gzip
import os
import sysconfig
import tarfile
from functools import cache
from pathlib import Path

SOURCES = (sysconfig.get_paths()["stdlib"], "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/bin")


def files_content(nbytes: int) -> bytes:
    """`nbytes` of files laid end to end, always in the same order: text first, then binaries."""
    parts: list[bytes] = []
    room = nbytes
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if room <= 0:
                    return b"".join(parts)
                if path.is_file() and not path.is_symlink():
                    part = path.read_bytes()[: min(room, 16 << 20)]
                    parts.append(part)
                    room -= len(part)
    raise SystemExit(f"this machine's files are {nbytes - room} bytes; the benchmark wants {nbytes}")


def write_tar(path: Path, nbytes: int) -> None:
    """A tar of about `nbytes` bytes, always in the same order, as a layer of a Python image is: half of it installed
    packages, half programs, libraries and what belongs to them."""
    packages, rest = sysconfig.get_paths()["purelib"], ("/usr/bin", "/usr/lib", "/usr/share/doc", "/usr/share/perl")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        room = nbytes // 2 - _add_files(archive, packages, nbytes // 2)
        for source in rest:
            # What packages leave free, the others may use.
            share = (nbytes // 2 + room) // len(rest)
            _add_files(archive, source, share)


def _add_files(archive: tarfile.TarFile, source: str, most: int) -> int:
    """Adds files of `source` and of the folders in it until `most` bytes are added; how many were."""
    added = 0
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            if added + path.stat().st_size > most:
                continue
            archive.add(path)
            added += path.stat().st_size
    return added


@cache
def sample(nbytes: int = 64 << 20) -> bytes:
    return files_content(nbytes)


@cache
def gzipped_sample(nbytes: int = 64 << 20, level: int = 6) -> bytes:
    """The sample as one ordinary gzip member, as registries hold it."""
    return gzip.compress(sample(nbytes), level, mtime=0)
