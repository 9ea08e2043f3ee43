"""Wrong bytes that readers get of a source that does everything wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.tee.rows import Row, count
from tests.fuzz.faulty import hammer


def faulty_reads(folder: Path, reads: int) -> Iterator[Row]:
    """Half of them of a blob whose chunks have digests from an earlier time."""
    tallies = [hammer(folder / f"{kept}", reads // 2, kept=kept) for kept in (False, True)]
    made = sum(tally.reads for tally in tallies)
    if made < reads // 2 * 2:
        raise SystemExit(f"{made} of {reads} reads under faults came to an end in time")
    requests = sum(tally.requests for tally in tallies)
    note = f"of {made:,} reads by {requests:,} requests"
    yield count("wrong bytes under faults", sum(tally.wrong for tally in tallies), 0, note=note)
