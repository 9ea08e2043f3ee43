"""The time to the first byte of a file beside that of a whole pull, over a link of 100 ms and 50 Mbit/s.

Run as a process of its own (`python -m benchmarks.tee.network`): in a network namespace whose loopback is slowed by
netem where the kernel has that, else with the rig's own slow link. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tee import layers
from benchmarks.tee.rig import Rig, client
from benchmarks.tee.rows import NONE, Row, mebibytes
from blobtee.content import LocalStore, Trust
from blobtee.transfer import pull

DELAY = 0.05
"""Seconds each way: a round trip takes twice that."""
RATE = 50e6 / 8
"""Bytes a second."""
LARGE = 1 << 30
"""The layer that the target speaks of."""
_SLOWED = (
    f"ip link set lo up && tc qdisc add dev lo root netem delay {DELAY * 1e3:g}ms rate {RATE * 8 / 1e6:g}mbit"
    ' limit 100000 && exec "$@"'
)


@dataclass(frozen=True)
class Times:
    """Seconds from an image's name on, in an empty store: to a file's first byte, and to all of the image."""

    link: str
    layer: int
    first_byte: float
    known: float
    """The same of another file, when the image and its table of contents are known."""
    whole: float

    @property
    def whole_of_large(self) -> float:
        """What it would be for a layer of `LARGE` bytes: what it was, and the rest at the link's rate."""
        return self.whole + max(0, LARGE - self.layer) / RATE


def measure(layer: int, netem: bool) -> Times:
    with Rig() as rig, tempfile.TemporaryDirectory(prefix="blobtee-network-") as name:
        folder = Path(name)
        image = layers.push_image(rig, folder, "estargz", layer)
        host = rig.host if netem else rig.link(delay=DELAY, rate=RATE).host
        with LocalStore(folder / "lazy") as store, client() as registry:
            begun = time.monotonic()
            with pull(f"{host}/{image}", store, lazy=True, registry=registry) as lazy:
                with lazy.open(layers.SMALL, trust=Trust.ATTESTED) as file:
                    assert file.read(1) == layers.SMALL_TEXT[:1]
                first_byte = time.monotonic() - begun
                begun = time.monotonic()
                with lazy.open(layers.SOME, trust=Trust.ATTESTED) as file:
                    assert file.read(1)
                known = time.monotonic() - begun
                size = lazy.manifest.layers[0].size
        with LocalStore(folder / "whole") as store, client() as registry:
            begun = time.monotonic()
            pull(f"{host}/{image}", store, registry=registry).close()
            whole = time.monotonic() - begun
    return Times("netem" if netem else "the rig's own link", size, first_byte, known, whole)


def run(layer: int) -> Times:
    """`measure` where netem is, else here with why it is not."""
    command = [sys.executable, "-m", "benchmarks.tee.network", "--layer", str(layer)]
    why = "unshare, ip or tc is missing"
    if all(map(shutil.which, ("unshare", "ip", "tc"))):
        slowed = ["unshare", "--net", "sh", "-c", _SLOWED, "sh"]
        tried = subprocess.run([*slowed, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return _times(subprocess.run([*slowed, *command, "--netem"], stdout=subprocess.PIPE, text=True, check=True))
        why = (tried.stderr.strip().splitlines() or ["refused"])[-1]
    times = _times(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True))
    return Times(**{**asdict(times), "link": f"{times.link}; netem: {why}"})


def _times(done: subprocess.CompletedProcess[str]) -> Times:
    return Times(**json.loads(done.stdout))


def rows(times: Times) -> list[Row]:
    ratio = times.whole_of_large / times.first_byte
    computed = "" if times.layer >= LARGE else f"; {mebibytes(times.layer)} in {times.whole:.1f} s, the rest computed"
    trips = [f"{seconds / (2 * DELAY):.1f}" for seconds in (times.first_byte, times.known)]
    return [
        Row(
            "whole pull of 1 GiB / first byte of a file, by name",
            ">= 100",
            f"{ratio:.0f}, {times.whole_of_large:.0f} s / {times.first_byte:.2f} s{computed}",
            ratio,
            ratio >= 100,
        ),
        Row("  first byte in round trips of 100 ms, connecting included", NONE, trips[0], float(trips[0]), True),
        Row("  of another file, index known", NONE, trips[1], float(trips[1]), True),
        Row("  link", NONE, times.link, 0, True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tee.network", description=__doc__)
    parser.add_argument("--layer", type=int, required=True, help="bytes of the image's layer")
    parser.add_argument("--netem", action="store_true", help="loopback is slow already")
    options = parser.parse_args()
    print(json.dumps(asdict(measure(options.layer, options.netem))))


if __name__ == "__main__":
    main()
