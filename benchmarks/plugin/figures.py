"""What rounds that two sides took in turn say: ratios pair by pair, percentiles, and whether a side was noisy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOISY = 0.25
"""A side is noisy when the middle half of its rounds is spread over more than this part of their median."""


@dataclass(frozen=True)
class Round:
    """One side doing some operations once. Times are seconds, `cpu` that of the server's processor time."""

    wall: float
    cpu: float
    operations: int
    nbytes: int
    rpcs: int
    latencies: Sequence[float]

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.wall

    @property
    def cpu_each(self) -> float:
        """Seconds of processor time for each operation."""
        return self.cpu / self.operations


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Half:
    """What one side's rounds say: medians of the rounds, percentiles of all operations together, in seconds."""

    rate: float
    nbytes_rate: float
    p50: float
    p99: float
    cpu_each: float
    rpcs_each: float
    noisy: bool

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Half:
        latencies = sorted(latency for each in rounds for latency in each.latencies)
        rates = [each.rate for each in rounds]
        return cls(
            rate=statistics.median(rates),
            nbytes_rate=statistics.median(each.nbytes / each.wall for each in rounds),
            p50=percentile(latencies, 0.50),
            p99=percentile(latencies, 0.99),
            cpu_each=statistics.median(each.cpu_each for each in rounds),
            rpcs_each=sum(each.rpcs for each in rounds) / sum(each.operations for each in rounds),
            noisy=is_noisy(rates),
        )


@dataclass(frozen=True)
class Comparison:
    """Ours beside theirs. `throughput` is ours over theirs, `cpu` too: above 1 the first is good, the second is not."""

    ours: Half
    theirs: Half
    throughput: Spread
    cpu: Spread

    @classmethod
    def of(cls, pairs: Sequence[tuple[Round, Round]]) -> Comparison:
        """`pairs` are rounds of ours and of theirs, each pair taken one right after the other."""
        return cls(
            Half.of([ours for ours, _ in pairs]),
            Half.of([theirs for _, theirs in pairs]),
            Spread.of([ours.rate / theirs.rate for ours, theirs in pairs]),
            Spread.of([ours.cpu_each / theirs.cpu_each for ours, theirs in pairs]),
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values`, which are in order, that at least `share` of them do not exceed (the nearest rank)."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    return values[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def is_noisy(values: Sequence[float]) -> bool:
    """See NOISY. Fewer than three say nothing about it."""
    if len(values) < 3:
        return False
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low > NOISY * middle
