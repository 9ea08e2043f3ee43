"""How often a server has the disk sync for one small blob, by strace: an exact count, whatever the machine does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.plugin.sides import Load, serving
from tests.integration.daemons import wait_for

FEW, MANY = 20, 70
BLOB_NBYTES = 4 << 10
_CALLS = "fsync,fdatasync,syncfs,sync_file_range,msync,openat,write,pwrite64,writev,pwritev"
_SYNC = re.compile(r"^\d+ +(?:fsync|fdatasync|syncfs|sync_file_range|msync)\(")
_OPENED = re.compile(r"^\d+ +openat\(.*O_D?SYNC\b.* = \d+<(?P<path>[^>]*)>$")
_WRITTEN = re.compile(r"^\d+ +p?writev?(?:64)?\(\d+<(?P<path>[^>]*)>")


def count(trace: str) -> int:
    """Syncs in the output of `strace -f -y`: calls that sync, and writes to files that were opened to be synced by each
    write. Calls that another thread's interrupted are two lines, and counted by the first."""
    lines = trace.splitlines()
    synchronous = {found["path"] for line in lines if (found := _OPENED.match(line))}
    calls = sum(1 for line in lines if _SYNC.match(line))
    return calls + sum(1 for line in lines if (found := _WRITTEN.match(line)) and found["path"] in synchronous)


def syncs_for(command: list[str], socket: Path, load: Path, blobs: int, *, labels: bool) -> int:
    """Syncs of a server's whole life in which it takes `blobs` small blobs from one client."""
    strace = shutil.which("strace")
    assert strace is not None
    trace = socket.with_suffix(".trace")
    # -D: the process that is started is the server, so that signals reach it.
    traced = [strace, "-D", "-f", "-y", "-o", str(trace), "-e", f"trace={_CALLS}", *command]
    with serving(traced, socket) as daemon:
        assert daemon.process is not None
        clients = Load(load)
        clients.run(work="write", socket=str(socket), clients=1, count=blobs, bytes=BLOB_NBYTES, labels=labels)
        clients.close()
    last = f"{daemon.process.pid} "
    wait_for(
        "strace ends",
        lambda: any(line.startswith(last) and "+++" in line for line in trace.read_text(errors="replace").splitlines()),
    )
    return count(trace.read_text(errors="replace"))


def each(first: tuple[list[str], Path], second: tuple[list[str], Path], load: Path, *, labels: bool) -> float | None:
    """Syncs for each small blob: what MANY take more than FEW, in two lives of a server (`first` and `second`, each a
    command and its socket), over how many more they are. None without strace, or where it may not trace."""
    if shutil.which("strace") is None:
        return None
    try:
        few = syncs_for(*first, load, FEW, labels=labels)
        many = syncs_for(*second, load, MANY, labels=labels)
    except AssertionError:
        return None
    return (many - few) / (MANY - FEW)
