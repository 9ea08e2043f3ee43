"""The arithmetic of `make bench-plugin`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plugin import syncs
from benchmarks.plugin.figures import Comparison, Half, Round, Spread, is_noisy, percentile


def taken(wall: float, cpu: float, operations: int = 10, latencies: list[float] | None = None) -> Round:
    return Round(wall, cpu, operations, operations * 100, operations * 3, latencies or [wall] * operations)


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([7.0], 0.5, 7.0),
        ([7.0], 0.99, 7.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 102)], 0.99, 100.0),
        ([float(n) for n in range(1, 101)], 0.07, 7.0),  # 0.07 * 100 is a little more than 7
        ([1.0, 2.0], 0.0, 1.0),
        ([1.0, 2.0], 1.0, 2.0),
    ],
)
def test_a_percentile_is_the_value_of_the_nearest_rank(values: list[float], share: float, wanted: float) -> None:
    assert percentile(values, share) == wanted


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    enough = math.ceil(share * len(values) - 1e-9)
    assert sum(value <= found for value in values) >= enough
    assert sum(value < found for value in values) < enough


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine gets slower and slower on the way: medians of each side alone would say another thing.
    pairs = [(taken(1, 2), taken(2, 1)), (taken(2, 2), taken(2, 4)), (taken(4, 4), taken(16, 1))]
    found = Comparison.of(pairs)
    assert found.throughput == Spread(2.0, 1.0, 4.0)
    assert found.cpu == Spread(2.0, 0.5, 4.0)
    assert (found.ours.rate, found.theirs.rate) == (5.0, 5.0)


def test_a_half_has_medians_of_rounds_and_percentiles_of_all_operations() -> None:
    found = Half.of([taken(1, 1, 2, [1.0, 9.0]), taken(2, 1, 2, [2.0, 8.0]), taken(8, 8, 4, [3.0, 4.0, 5.0, 6.0])])
    assert found.rate == 1.0
    assert found.nbytes_rate == 100.0
    assert (found.p50, found.p99) == (4.0, 9.0)
    assert found.cpu_each == 0.5
    assert found.rpcs_each == 3.0


def test_a_spread_is_printed_with_its_ends() -> None:
    assert str(Spread.of([0.5, 1.0, 1.25])) == "1.00 (0.50-1.25)"


@pytest.mark.parametrize(
    ("values", "noisy"),
    [([1.0, 1.0], False), ([1.0, 9.0], False), ([10.0, 11.0, 12.0], False), ([10.0, 12.0, 14.0, 18.0, 30.0], True)],
)
def test_a_side_is_noisy_when_the_middle_half_of_its_rounds_is_spread(values: list[float], noisy: bool) -> None:
    assert is_noisy(values) is noisy


TRACE = """\
11 openat(AT_FDCWD</w>, "/r/ref", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 5</r/ref>
11 openat(AT_FDCWD</w>, "/r/startedat.tmp", O_RDWR|O_CREAT|O_TRUNC|O_SYNC|O_CLOEXEC, 0666) = 7</r/startedat.tmp>
11 write(5</r/ref>, "ref", 3) = 3
11 write(7</r/startedat.tmp>, "2026-01-01", 10 <unfinished ...>
12 fsync(8</r/data>) = 0
11 <... write resumed>) = 10
12 fdatasync(9</r/meta.db> <unfinished ...>
12 <... fdatasync resumed>) = 0
12 pwrite64(9</r/meta.db>, "fsync(", 6, 0) = 6
11 +++ exited with 0 +++
"""


def test_syncs_are_counted_from_a_trace() -> None:
    assert syncs.count(TRACE) == 3
