"""The C core as typed Python: SHA-256, CRC-32C, gzip in and out, tar headers, a gRPC server's connections.

Only `core.native` imports the extension module.

What holds for everything here:

- A buffer is any C-contiguous object with the buffer protocol (bytes, bytearray, memoryview, mmap, array). It is read
  in place, never copied. Anything else is a TypeError, and so is a read-only buffer where one is written to.
- The GIL is released while C works, so other threads run on. Do not change or free a buffer that a call is reading.
- Objects may move between threads, but one thread at a time may use one: a second one that comes in meanwhile gets
  `FailedPrecondition`, and what the first one does is not disturbed.
- Sizes are bytes.

The environment variable BLOBTEE_CPU, read when this module is imported, restricts which CPU instructions are used:
unset, empty or `native` for all that are found, `portable` for none, or a comma list out of `CpuFeatures.known`. It
does not reach into ISA-L and libdeflate, which choose for themselves.

`python -m blobtee.core` says what was found and checks a few known answers.
"""

from blobtee.core.answers import Answers, Counts, Watch
from blobtee.core.files import SmallFile, Sync, begin_folder, settle_files
from blobtee.core.gzip import (
    GZIP_MAX_LEVEL,
    GZIP_MIN_LEVEL,
    SIZED_HEADER_NBYTES,
    Inflater,
    gunzip,
    gunzip_member_into,
    gzip_member,
    gzip_member_bound,
    gzip_member_into,
    sized_member_nbytes,
)
from blobtee.core.h2 import H2Call, H2Server, H2Stats
from blobtee.core.hashing import Sha256, crc32c, crc32c_each, sha256_many, update_many
from blobtee.core.native import CpuFeatures, cpu_features, library_versions
from blobtee.core.processors import huddle, spread
from blobtee.core.tar import TarHeaders, TarScanner

__all__ = [
    "GZIP_MAX_LEVEL",
    "GZIP_MIN_LEVEL",
    "SIZED_HEADER_NBYTES",
    "Answers",
    "Counts",
    "CpuFeatures",
    "H2Call",
    "H2Server",
    "H2Stats",
    "Inflater",
    "Sha256",
    "SmallFile",
    "Sync",
    "TarHeaders",
    "TarScanner",
    "Watch",
    "begin_folder",
    "cpu_features",
    "crc32c",
    "crc32c_each",
    "gunzip",
    "gunzip_member_into",
    "gzip_member",
    "gzip_member_bound",
    "gzip_member_into",
    "huddle",
    "library_versions",
    "settle_files",
    "sha256_many",
    "sized_member_nbytes",
    "spread",
    "update_many",
]
