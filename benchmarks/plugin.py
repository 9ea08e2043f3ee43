"""blobtee serve beside containerd's own store behind the same service: CPU of the server for each RPC.

Both servers run at once, and the rounds take turns. The client is the same for both and is in Python, so that the clock
says more of it than of them: what is compared is the processor time that the servers take (`/proc/PID/stat`).

    python -m benchmarks.plugin [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blobtee.wire.content import messages
from tests.integration import gotools
from tests.integration.daemons import BLOBTEE, Daemon
from tests.unit.plugin.contentclient import Client, digest_of, request

PEER = Path(__file__).parents[1] / "tests" / "integration" / "containerd"
BLOB_NBYTES = 64 << 20
SMALL_READ = 32 << 10
PIECE = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")


class Side:
    """One of the two servers, with a client of its own."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._stat = Path(f"/proc/{daemon.process.pid}/stat")
        self.client = Client(daemon.sockets[0])
        self.data = os.urandom(BLOB_NBYTES)
        self.digest = digest_of(self.data)
        self._count = 0
        self.ingest(self.data)

    def cpu(self) -> float:
        """Seconds of processor time so far, in the program and in the kernel for it."""
        fields = self._stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def ingest(self, data: bytes) -> None:
        self._count += 1
        ref = f"ref {self._count}"

        def requests() -> Iterator[messages.WriteContentRequest]:
            for at in range(0, len(data), PIECE):
                yield request("WRITE", ref=ref, offset=at, data=data[at : at + PIECE], total=len(data))
            yield request("COMMIT", ref=ref, offset=len(data))

        for _ in self.client.write(requests()):
            pass

    def delete(self, digest: str) -> None:
        self.client.one("Delete", messages.DeleteContentRequest(digest=digest))


def small_reads(side: Side) -> int:
    for at in range(0, 1000 * SMALL_READ, SMALL_READ):
        side.client.read(side.digest, at % BLOB_NBYTES, SMALL_READ)
    return 1000


def streamed_read(side: Side) -> int:
    for _ in range(4):
        for _ in side.client.many("Read", messages.ReadContentRequest(digest=side.digest)):
            pass
    return 4 * BLOB_NBYTES >> 20


def ingest(side: Side) -> int:
    data = os.urandom(16) + side.data[16:]
    side.ingest(data)
    side.delete(digest_of(data))
    return BLOB_NBYTES >> 20


def small_blobs(side: Side) -> int:
    for _ in range(300):
        side.ingest(os.urandom(4096))
    return 300


def infos(side: Side) -> int:
    for _ in range(1000):
        side.client.one("Info", messages.InfoRequest(digest=side.digest))
    return 1000


ROWS: dict[str, tuple[Callable[[Side], int], str]] = {
    "read of 32 KiB": (small_reads, "RPC"),
    "streamed read": (streamed_read, "MiB"),
    "ingest of 64 MiB": (ingest, "MiB"),
    "blob of 4 KiB": (small_blobs, "blob"),
    "Info": (infos, "RPC"),
}


def measure(side: Side, work: Callable[[Side], int]) -> tuple[float, float]:
    """Microseconds of the server's processor time, and of the clock, for each unit."""
    cpu, clock = side.cpu(), time.perf_counter()
    units = work(side)
    return (side.cpu() - cpu) / units * 1e6, (time.perf_counter() - clock) / units * 1e6


@contextmanager
def both(folder: Path) -> Iterator[tuple[Side, Side]]:
    program = folder / "peer"
    subprocess.run([gotools.go(), "build", "-o", program, "."], cwd=PEER, check=True)
    ours = Daemon(
        [*BLOBTEE, "serve", "--root", str(folder / "ours" / "root"), "--socket", str(folder / "o")],
        folder / "ours",
        [folder / "o"],
    )
    theirs = Daemon(
        [str(program), "serve", "-socket", str(folder / "t"), "-root", str(folder / "theirs" / "root")],
        folder / "theirs",
        [folder / "t"],
    )
    with ExitStack() as stack:
        for daemon in (ours, theirs):
            daemon.start()
            stack.callback(daemon.end)
        yield Side(ours), Side(theirs)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name, both(Path(name)) as (ours, theirs):
        print(f"{'':<18}{'unit':<6}{'CPU ours':>10}{'Go':>10}{'ratio (quartiles)':>24}{'clock ratio':>14}")
        for row, (work, unit) in ROWS.items():
            pairs = [(measure(ours, work), measure(theirs, work)) for _ in range(rounds)]
            cpu = [mine[0] / go[0] for mine, go in pairs if go[0]]
            clock = statistics.median(mine[1] / go[1] for mine, go in pairs)
            low, middle, high = statistics.quantiles(cpu, n=4)
            mine, go = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"{row:<18}{unit:<6}{mine:>7.0f} us{go:>7.0f} us{ratio:>24}{clock:>14.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
