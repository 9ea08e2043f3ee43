"""Wrong bytes that readers get of a source that does everything wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.tee.rows import Row, count
from blobtee.registry import Hosts, NoCredentials, Registry
from blobtee.testing import MemoryRegistry
from tests.fuzz.faulty import Tally, hammer
from tests.fuzz.faulty_http import HASTY, HostileRegistry

SHARE_OVER_HTTP = 10
"""One of so many reads is of a registry; the others are of a source that is no network."""


def faulty_reads(folder: Path, reads: int) -> Iterator[Row]:
    """Half of them of a blob whose chunks have digests from an earlier time."""
    tallies = [hammer(folder / f"{kept}", reads // 2, kept=kept) for kept in (False, True)]
    yield _row("wrong bytes under faults", tallies, reads)
    tallies, reads = [], reads // SHARE_OVER_HTTP
    for kept in (False, True):
        with (
            MemoryRegistry() as registry,
            Registry(hosts=Hosts(()), credentials=NoCredentials(), settings=HASTY, environ={}) as client,
        ):
            origin = HostileRegistry(registry, client, kept)
            tallies.append(hammer(folder / f"{kept} over HTTP", reads // 2, kept=kept, origin=origin))
    yield _row("  of a registry", tallies, reads)


def _row(metric: str, tallies: Sequence[Tally], reads: int) -> Row:
    made = sum(tally.reads for tally in tallies)
    if made < reads // 2 * 2:
        raise SystemExit(f"{made} of {reads} reads under faults came to an end in time")
    requests = sum(tally.requests for tally in tallies)
    note = f"of {made:,} reads by {requests:,} requests"
    return count(metric, sum(tally.wrong for tally in tallies), 0, note=note)
