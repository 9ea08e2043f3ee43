"""Every metric of the tee beside its target, on a registry that counts, in a process of its own.

Exits with 1 when a count (bytes, requests: what does not depend on the machine) misses its target; a ratio that does
is only told. Ratios are of runs taken in turns, medians of pairs with the least and the greatest.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.tee import counts, faults, keeping, network, sharing, speed
from benchmarks.tee.rig import Rig
from benchmarks.tee.rows import Row, table

MIB = 1 << 20
Part = Callable[[Path], Iterator[Row]]


def parts(rig: Rig, options: argparse.Namespace) -> dict[str, Part]:
    """What is measured, by name; each is given a folder of its own."""
    size = options.size * MIB
    return {
        "fetched": lambda folder: counts.fetched(rig, folder),
        "files": lambda folder: counts.files(rig, folder),
        "name": lambda folder: counts.by_name(rig, folder),
        "network": lambda folder: iter(network.rows(network.run(options.layer * MIB))),
        "in order": lambda folder: speed.in_order(rig, folder, size, options.rounds),
        "cached": lambda folder: speed.cached(rig, folder, options.cached_reads, options.rounds),
        "sharing": lambda folder: sharing.sharing(rig, folder, size // 4),
        "promotion": lambda folder: keeping.promotion(rig, folder),
        "kills": lambda folder: keeping.kills(rig, folder, size // 2),
        "faults": lambda folder: faults.faulty_reads(folder, options.reads),
        "map": lambda folder: keeping.map_size(rig, folder),
    }


def measure(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with Rig() as rig, tempfile.TemporaryDirectory(prefix="blobtee-tee-") as name:
        for number, (part, take) in enumerate(parts(rig, options).items()):
            if options.only not in part:
                continue
            folder = Path(name, str(number))
            folder.mkdir()
            print(f"{part} …", file=sys.stderr, flush=True)
            rows += take(folder)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tee", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="blob that is read in order (default 256)")
    parser.add_argument(
        "--layer",
        type=int,
        default=64,
        metavar="MIB",
        help="layer that is pulled over the slow link; of less than 1024 the rest is computed (default 64)",
    )
    parser.add_argument("--reads", type=int, default=100_000, help="reads under faults (default 100,000)")
    parser.add_argument("--cached-reads", type=int, default=200_000, help="cached reads a round (default 200,000)")
    parser.add_argument("--rounds", type=int, default=7, help="counted pairs of a ratio (default 7)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the parts whose name has TEXT in it")
    parser.add_argument("--quick", action="store_true", help="half a minute: counts are right, ratios say little")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.size, options.layer, options.reads, options.cached_reads, options.rounds = 32, 4, 1000, 20_000, 1
    logger = logging.getLogger("blobtee")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what is warned of is what was asked for
    try:
        rows = measure(options)
    finally:
        logger.setLevel(level)
    if options.json:
        json.dump([{**asdict(row), "verdict": row.verdict} for row in rows], sys.stdout, indent=2)
        print()
    else:
        print(table(rows))
    missed = [row.metric.strip() for row in rows if row.exact and not row.met]
    if missed:
        raise SystemExit(f"counts that miss their target: {', '.join(missed)}")


if __name__ == "__main__":
    main()
