"""What the tests of the C core share."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
import time
import zlib
from collections.abc import Callable

from hypothesis import settings

from blobtee.errors import FailedPrecondition

# test_cpu.py and scripts/sanitize run these files again, once per set of CPU features.
MASKED = os.environ.get("BLOBTEE_TEST_MASKED") == "1"

# The first examples of a machine under a sanitizer may take long; what counts here is the answer.
thorough = settings(max_examples=25 if MASKED else 120, deadline=None)
quick = settings(max_examples=15 if MASKED else 40, deadline=None)


def raw_deflate(data: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    engine = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return engine.compress(data) + engine.flush()


def gzip_header(
    *,
    text: bool = False,
    extra: bytes | None = None,
    name: bytes | None = None,
    comment: bytes | None = None,
    checksum: bool = False,
    method: int = 8,
    reserved: int = 0,
) -> bytes:
    """RFC 1952 section 2.3: the header with the fields asked for."""
    flags = text | checksum << 1 | (extra is not None) << 2 | (name is not None) << 3 | (comment is not None) << 4
    header = struct.pack("<2sBBIBB", b"\x1f\x8b", method, flags | reserved, 0x12345678, 2, 3)
    if extra is not None:
        header += struct.pack("<H", len(extra)) + extra
    if name is not None:
        header += name + b"\0"
    if comment is not None:
        header += comment + b"\0"
    if checksum:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    return header


def gzip_trailer(data: bytes) -> bytes:
    return struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def gzip_stream(data: bytes, header: bytes | None = None, level: int = 6) -> bytes:
    return (gzip_header() if header is None else header) + raw_deflate(data, level) + gzip_trailer(data)


def mixed(nbytes: int, seed: int = 1) -> bytes:
    """Bytes that are partly random, partly repeats near and far: work for every part of an inflater."""
    source = random.Random(seed)
    out = bytearray()
    while len(out) < nbytes:
        kind = source.random()
        if kind < 0.4 or not out:
            out += source.randbytes(source.randint(1, 300))
        elif kind < 0.8:
            back = source.randint(1, min(len(out), 32768))
            length = source.randint(3, 400)
            start = len(out) - back
            out += (bytes(out[start:]) * (length // back + 1))[:length]
        else:
            out += bytes([source.randrange(256)]) * source.randint(1, 2000)
    return bytes(out[:nbytes])


def collide(work: Callable[[], object], intrude: Callable[[], object]) -> bool:
    """Runs `work` in a thread and `intrude` beside it, until `intrude` is refused; whether it was within a minute.

    `work` must spend milliseconds in C with one object, and `intrude` use the same. Now and then `work` comes second,
    and is the one to be refused: then nothing of it happens.
    """

    def guarded() -> None:
        with contextlib.suppress(FailedPrecondition):
            work()

    # On a busy machine the two may miss each other for long: how often they meet is not what is tested.
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        thread = threading.Thread(target=guarded)
        thread.start()
        try:
            while thread.is_alive():
                intrude()
        except FailedPrecondition as error:
            return "another thread" in str(error)
        finally:
            thread.join()
    return False
