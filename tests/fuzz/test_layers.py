"""Ten thousand damaged layers: nothing but our errors, nothing outside, nothing left behind."""

from __future__ import annotations

import functools
import gzip
import io
import resource
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobtee.compression import Compression, Type
from blobtee.conversion import Packer
from tests.fuzz.hostile import try_everything
from tests.fuzz.test_tar import INTERESTING, SEEDS, fix_checksums

EXAMPLES = 2500
"""For each type; ten thousand in all."""


@functools.cache
def packed(tar: bytes, kind: Type) -> bytes:
    blob = io.BytesIO()
    with Packer(Compression(kind), blob.write) as packer:
        packer.write(tar)
        packer.finish()
    return blob.getvalue()


def repacked(tar: bytes, kind: Type) -> bytes:
    """A damaged tar in a sound wrapping, so that the damage gets as far as the reader of tars."""
    if kind is Type.ZSTD:
        return zstandard.ZstdCompressor(1).compress(tar)
    return tar if kind is Type.UNCOMPRESSED else gzip.compress(tar, 1, mtime=0)


def damaged(data: bytes, damage: list[tuple[int, int]], cut: int | None) -> bytearray:
    result = bytearray(data)
    for position, value in damage:
        # Both ends are where the structure is.
        place = position % len(result) if position >= 0 else len(result) - 1 - (-position) % min(len(result), 4096)
        result[place] = value
    return result[:cut]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(Type), ids=lambda kind: kind.value)
def test_damaged_layers_end_in_our_errors_and_leave_nothing(kind: Type) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(
            tar=st.sampled_from(SEEDS),
            inside=st.booleans(),
            damage=st.lists(
                st.tuples(st.integers(-512, 8191), st.sampled_from(INTERESTING) | st.integers(0, 255)), max_size=8
            ),
            cut=st.none() | st.integers(0, 8192),
            target=st.sampled_from(list(Type)),
        )
        def trial(tar: bytes, inside: bool, damage: list[tuple[int, int]], cut: int | None, target: Type) -> None:
            if inside:
                broken = damaged(tar, damage, cut)
                fix_checksums(broken)
                data = repacked(bytes(broken), kind)
            else:
                data = bytes(damaged(packed(tar, kind), damage, cut))
            try_everything(data, kind.media_type, target, folder)

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trial()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 128 << 10, f"{grown >> 10} MiB more than before"
