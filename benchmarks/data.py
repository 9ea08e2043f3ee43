"""Input for benchmarks: made of this machine's own files, so that it looks like layers do and nothing is downloaded."""

from __future__ import annotations

import gzip
import os
import sysconfig
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


@cache
def sample(nbytes: int = 64 << 20) -> bytes:
    return files_content(nbytes)


@cache
def gzipped_sample(nbytes: int = 64 << 20, level: int = 6) -> bytes:
    """The sample as one ordinary gzip member, as registries hold it."""
    return gzip.compress(sample(nbytes), level, mtime=0)
