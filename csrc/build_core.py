"""Builds `blobtee._core`: the C core, compiled by cffi in API mode for the stable ABI.

setup.py names `ffibuilder`. Flags the user gives in CFLAGS, CPPFLAGS and LDFLAGS are used as they are; the only thing
they replace is our choice of optimisation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = (
    "answers.c",
    "cpu.c",
    "crc32c.c",
    "files.c",
    "gzindex.c",
    "gzip.c",
    "h2.c",
    "h2calls.c",
    "h2in.c",
    "h2known.c",
    "h2life.c",
    "h2out.c",
    "huddle.c",
    "sha256.c",
    "sha256_arm.c",
    "sha256_portable.c",
    "sha256_x86.c",
    "syncs.c",
    "tar.c",
    "wal.c",
)
HEADERS = ("answers.h", "blobtee.h", "core.cdef.h", "gzip.h", "h2.h", "sha256.h", "wide.h")


def optimisation() -> list[str]:
    """-O3, unless CFLAGS says otherwise: compile arguments given here come last and would win over it."""
    return [] if re.search(r"(^|\s)-O", os.environ.get("CFLAGS", "")) else ["-O3"]


def make_ffibuilder() -> FFI:
    builder = FFI()
    builder.cdef((HERE / "core.cdef.h").read_text(encoding="utf-8"))
    builder.set_source(
        "blobtee._core",
        '#include "blobtee.h"',
        # setuptools wants paths below the folder of setup.py
        sources=[f"csrc/{name}" for name in SOURCES],
        depends=[f"csrc/{name}" for name in HEADERS],
        include_dirs=["csrc"],
        libraries=["isal", "deflate", "nghttp2"],
        extra_compile_args=["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", *optimisation()],
        py_limited_api=True,
    )
    return builder


ffibuilder = make_ffibuilder()
