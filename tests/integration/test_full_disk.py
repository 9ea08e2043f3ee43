"""`blobtee serve` on a disk that is really full: a small file system in memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from blobtee.content.proxy import ProxyStore
from blobtee.errors import BlobteeError, ResourceExhausted
from blobtee.oci import Descriptor, Digest
from tests.integration.daemons import BLOBTEE, Blobtee, running_blobtee, wait_for

KEPT = b"kept all the time"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def put(store: ProxyStore, data: bytes, **labels: str) -> Digest:
    with store.writer(f"ref of {Digest.of(data)}", total=len(data)) as writer:
        writer.write(data[writer.status.offset :])
        return writer.commit(len(data), Digest.of(data), labels).digest


def fill(store: ProxyStore, chance: random.Random) -> tuple[set[Digest], bytes]:
    """Blobs until not even a small one fits; what was promised to stay, and what was refused last."""
    held, data = set(), b""
    for size in (1_000_000, 50_000, 4_000):
        while True:
            data = chance.randbytes(size)
            try:
                held.add(put(store, data))
            except ResourceExhausted:
                break
    return held, data


def take_all(path: Path) -> None:
    """Let a file at `path` take all the room that is left."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def is_right(store: ProxyStore, digest: Digest) -> bool:
    with store.reader_at(Descriptor("", digest, -1)) as reader:
        return Digest.of(reader.read_at(0, reader.size)) == digest


def restart(blobtee: Blobtee, number: signal.Signals) -> None:
    blobtee.end(number)
    blobtee.start()


def test_a_full_disk_loses_nothing_and_is_made_room_on_through_the_socket(disk: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    with (
        running_blobtee(tmp_path / "run", "one", root=disk / "store") as blobtee,
        ProxyStore(blobtee.socket("one")) as store,
    ):
        kept = put(store, KEPT, label="kept")
        held, refused = fill(store, chance)
        assert len(held) > 10
        for number in (None, signal.SIGKILL, signal.SIGTERM):
            if number is not None:
                restart(blobtee, number)
            with pytest.raises(ResourceExhausted, match="free some space"):
                put(store, chance.randbytes(8 << 20))
            assert {info.digest for info in store.walk()} == held | {kept}
            assert all(is_right(store, digest) for digest in held)
            assert store.info(kept).labels == {"label": "kept"}
            assert store.update(kept, {"label": "kept"}).labels == {"label": "kept"}  # what a lease of containerd does

        # As containerd collects: one call each, while the disk is full.
        for digest in held:
            store.delete(digest)
        wait_for("room is made", lambda: blobtee.blobs() == {kept.hex})
        assert is_right(store, put(store, refused))
        for status in store.statuses():
            store.abort(status.ref)
        again, _ = fill(store, chance)
        assert len(again) > len(held) // 2
        assert is_right(store, kept)
        assert "Traceback" not in blobtee.log


def test_unfinished_blobs_go_on_when_there_is_room_again(disk: Path, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(5 << 20)
    ballast = disk / "of somebody else"
    with (
        running_blobtee(tmp_path / "run", "one", root=disk / "store") as blobtee,
        ProxyStore(blobtee.socket("one")) as store,
    ):
        with store.writer("ref") as writer:  # no total: no room can be asked for ahead
            writer.write(data[: 1 << 20])
            take_all(ballast)
            with pytest.raises(ResourceExhausted):
                writer.write(data[1 << 20 :])
        assert store.status("ref").offset == 1 << 20
        restart(blobtee, signal.SIGKILL)
        assert store.status("ref").offset == 1 << 20
        with pytest.raises(BlobteeError), store.writer("another") as writer:
            writer.write(b"x")
        ballast.unlink()
        with store.writer("ref") as writer:
            assert writer.digest == Digest.of(data[: 1 << 20])
            writer.write(data[1 << 20 :])
            writer.commit(len(data), Digest.of(data))
        assert is_right(store, Digest.of(data))


def test_the_command_line_makes_room_where_not_a_byte_is_left(disk: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "BLOBTEE_ROOT": str(disk / "store"), "HOME": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*BLOBTEE, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "data").write_bytes(random.Random(3).randbytes(8 << 20))
    archive = f"oci-archive:{tmp_path / 'image.tar'}:image"
    assert run("layer", str(tree), "-o", archive, "--root", str(tmp_path / "elsewhere")).returncode == 0
    assert run("pull", archive).returncode == 0
    name = run("images", "--json").stdout
    for number in range(3):
        take_all(disk / f"of somebody else {number}")
        assert os.statvfs(disk).f_bavail == 0
        assert run("images", "--json").stdout == name
    assert run("rm", json.loads(name)["name"]).returncode == 0
    collected = run("gc", "--grace", "0")
    assert (collected.returncode, collected.stderr.splitlines()[0][:7]) == (0, "3 blobs")
    left = os.statvfs(disk)
    assert left.f_bavail * left.f_frsize > 7 << 20
