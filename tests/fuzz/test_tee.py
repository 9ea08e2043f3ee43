"""Reads of a blob that is elsewhere, while everything goes wrong: no wrong byte, none for a stricter reader, no
hang."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blobtee.registry import Hosts, NoCredentials, Registry
from blobtee.testing import MemoryRegistry
from tests.fuzz.faulty import hammer
from tests.fuzz.faulty_http import HASTY, HostileRegistry

READS = int(os.environ.get("BLOBTEE_TEE_READS", "2000"))
"""Reads in all; the full run has 1,000,000."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kept", [False, True])
def test_no_reader_gets_a_wrong_byte_whatever_the_source_does(tmp_path: Path, kept: bool) -> None:
    tally = hammer(tmp_path / "root", READS // 2, kept=kept)
    assert not tally.wrong
    assert tally.reads >= READS // 2, "it hangs, or is very slow"
    assert all(tally.served.values())
    assert tally.failed


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kept", [False, True])
def test_no_reader_gets_a_wrong_byte_whatever_a_registry_answers(tmp_path: Path, kept: bool) -> None:
    with (
        MemoryRegistry() as registry,
        Registry(hosts=Hosts(()), credentials=NoCredentials(), settings=HASTY, environ={}) as client,
    ):
        tally = hammer(tmp_path / "root", READS // 2, kept=kept, origin=HostileRegistry(registry, client, 5))
    assert not tally.wrong
    assert tally.reads >= READS // 2, "it hangs, or is very slow"
    assert all(tally.served.values())
    assert tally.failed
