"""blobtee serve beside a Go server over containerd's own store: both behind the same service, with the same clients.

The clients are a Go program on grpc-go (`benchmarks/peers/load`). Both servers run at once and take turns, round by
round (A B A B); each pair of rounds gives one ratio, and the median of the ratios is printed with the least and the
greatest, so that a machine whose speed drifts bends both sides alike. Processor time is the server's own, in the kernel
too. What was written is deleted outside of the clock, large ones after each round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.plugin import sides, syncs
from benchmarks.plugin.figures import Comparison, Half
from benchmarks.plugin.sides import Load, Side

CLIENTS = (1, 4, 64)
QUICKER = 16
"""By how much rounds are smaller, and large blobs too, with --quick."""
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of work; `counts` are operations in a round by the number of clients."""

    title: str
    meaning: str
    work: str
    counts: dict[int, int]
    unit: str
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fills_disk(self) -> bool:
        """Whether a round's blobs have to go before the next."""
        return self.work == "write" and self.more["bytes"] >= MIB


ROWS = (
    Row(
        "ingest",
        "blobs of 16 MiB in messages of 1 MiB, each answered before the next; opened, committed, durable",
        "write",
        {1: 12, 4: 16, 64: 64},
        "MiB",
        {"bytes": 16 * MIB},
    ),
    Row("streamed read", "a blob of 32 MiB in one Read", "read", {1: 16, 4: 24, 64: 64}, "MiB"),
    Row("32 KiB read", "one Read for each 32 KiB, as unpacking does", "read", {1: 4000, 4: 8000, 64: 8000}, "RPC",
        {"bytes": 32 << 10}),
    Row("small blob", "4 KiB opened, written, committed without labels, as containerd does it; durable", "write",
        {1: 200, 4: 400, 64: 640}, "blob", {"bytes": syncs.BLOB_NBYTES}),
    Row("  with a label", "the same, with a label in the commit", "write",
        {1: 200, 4: 400, 64: 640}, "blob", {"bytes": syncs.BLOB_NBYTES, "labels": True}),
    Row("Info", "one blob asked for", "info", {1: 4000, 4: 8000, 64: 8000}, "RPC"),
)  # fmt: skip
BLOB_NBYTES = 32 * MIB


def measure(row: Row, clients: int, both: tuple[Side, Side], rounds: int, quick: bool) -> Comparison:
    count, more = row.counts[clients], dict(row.more)
    if quick:
        count = max(clients, count // QUICKER)
        if more.get("bytes", 0) > MIB:
            more["bytes"] //= QUICKER
    pairs = []
    for number in range(rounds + 1):
        ours, theirs = (side.round(row.work, clients, count, **more) for side in both)
        if row.fills_disk:
            for side in both:
                side.tidy()
        if number:  # the first pair warms both up
            pairs.append((ours, theirs))
    for side in both:
        side.tidy()
    return Comparison.of(pairs)


def compare(options: argparse.Namespace, folder: Path, peer: Path, load: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        clients = Load(load)
        stack.callback(clients.close)
        started = []
        for command, socket, root in (sides.ours(folder), sides.theirs(folder, peer, options.labels)):
            daemon = stack.enter_context(sides.serving(command, socket))
            started.append(Side(daemon, root, clients, BLOB_NBYTES))
        ours, theirs = started
        for row in ROWS:
            if options.only not in row.title:
                continue
            for number in options.clients:
                result = measure(row, number, (ours, theirs), options.rounds, options.quick)
                found.append({"title": row.title, "unit": row.unit, "clients": number, **dataclasses.asdict(result)})
                if not options.json:
                    print(line(row, number, result), flush=True)
    return found


def count_syncs(folder: Path, peer: Path, load: Path, labels_of_peer: str) -> dict[str, dict[str, float | None]]:
    """Syncs for each small blob, of both sides."""
    found: dict[str, dict[str, float | None]] = {}
    for title, labels in (("small blob", False), ("  with a label", True)):
        found[title] = {}
        for side in ("ours", "theirs"):
            lives = []
            for life in range(2):
                place = folder / f"{side}-{labels}-{life}"
                place.mkdir()
                command, socket, _ = sides.ours(place) if side == "ours" else sides.theirs(place, peer, labels_of_peer)
                lives.append((command, socket))
            found[title][side] = syncs.each(lives[0], lives[1], load, labels=labels)
    return found


HEAD = (
    f"{'Go = 1.00':<16}{'clients':>7}{'ours':>9}{'Go':>9} {'':<7}{'ratio (min-max)':>17}"
    f"{'p50 ms':>8}{'Go':>8}{'p99 ms':>8}{'Go':>8}{'CPU us':>9}{'Go':>9}{'ratio (min-max)':>18}  noisy"
)


def line(row: Row, clients: int, result: Comparison) -> str:
    def rate(half: Half) -> float:
        return half.nbytes_rate / MIB if row.unit == "MiB" else half.rate

    ours, theirs = result.ours, result.theirs
    noisy = " ".join(name for name, half in (("ours", ours), ("Go", theirs)) if half.noisy)
    return (
        f"{row.title:<16}{clients:>7}"
        f"{rate(ours):>9.0f}{rate(theirs):>9.0f} {row.unit + '/s':<7}{result.throughput!s:>17}"
        f"{ours.p50 * 1e3:>8.2f}{theirs.p50 * 1e3:>8.2f}{ours.p99 * 1e3:>8.2f}{theirs.p99 * 1e3:>8.2f}"
        f"{ours.cpu_each * 1e6:>9.0f}{theirs.cpu_each * 1e6:>9.0f}{result.cpu!s:>18}  {noisy}"
    )


def legend(rounds: int, labels: str) -> str:
    lines = [
        f"Go is {sides.LABELS[labels]}.",
        *(f"{row.title.strip()}: {row.meaning}." for row in ROWS),
        f"Rates are medians of {rounds} rounds. Ratios are ours over Go's, pair by pair: above 1 we are faster, or",
        "take more processor time. p50 and p99 are of single operations as a client sees them (ingest and streamed",
        "read: of whole blobs). CPU is the server's for one operation. A side is noisy when the middle half of its",
        "rounds spreads over a quarter of their median.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plugin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="counted pairs of rounds a row (default 7)")
    parser.add_argument("--labels", choices=sides.LABELS, default="bolt", help="where Go keeps labels (default bolt)")
    parser.add_argument("--clients", type=int, nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--only", default="", metavar="TEXT", help="only the rows whose title has TEXT in it")
    parser.add_argument("--quick", action="store_true", help="some seconds: says that it works, and little of speed")
    parser.add_argument("--no-syncs", action="store_true", help="do not count syncs, which needs strace")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds = min(options.rounds, 2)
    peer, load = sides.programs()
    with tempfile.TemporaryDirectory(prefix="blobtee-plugin-") as name:
        folder = Path(name)
        if not options.json:
            print(HEAD, flush=True)
        rows = compare(options, folder, peer, load)
        counted = {} if options.no_syncs else count_syncs(folder, peer, load, options.labels)
    if options.json:
        json.dump(
            {"labels": options.labels, "rounds": options.rounds, "rows": rows, "syncs": counted}, sys.stdout, indent=2
        )
        print()
        return
    for title, found in counted.items():
        numbers = [f"{found[side]:.2f}" if found[side] is not None else "not counted" for side in ("ours", "theirs")]
        print(f"syncs, {title.strip()}: ours {numbers[0]}, Go {numbers[1]}")
    print(legend(options.rounds, options.labels))


if __name__ == "__main__":
    main()
