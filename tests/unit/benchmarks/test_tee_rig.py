"""The rig of `make bench-tee`: its link, its counts, and what a missed target does."""

from __future__ import annotations

import time

import pytest

from benchmarks.tee import __main__ as command
from benchmarks.tee.link import Link
from benchmarks.tee.rig import Rig, client
from benchmarks.tee.rows import NONE, Row, count, share, table
from blobtee.oci import Descriptor, Digest
from blobtee.testing import Generated, MemoryRegistry

NBYTES = 400_000


def fetched(host: str, digest: Digest) -> tuple[bytes, float]:
    with client() as registry:
        begun = time.monotonic()
        with registry.repository(f"{host}/a/b").reader_at(Descriptor("", digest, NBYTES)) as blob:
            return blob.read_at(0, NBYTES), time.monotonic() - begun


def test_a_link_passes_bytes_on_no_faster_and_no_sooner_than_it_may() -> None:
    body = Generated(NBYTES)
    with MemoryRegistry() as registry:
        digest = registry.add_blob("a/b", body)
        port = int(registry.host.rpartition(":")[2])
        late = Link(port, delay=0.02)
        data, seconds = fetched(f"127.0.0.1:{late.port}", digest)
        assert data == body.read()
        assert seconds >= 4 * 0.02, "a round trip to connect, another for the answer"
        slow = Link(port, rate=4e6)
        data, seconds = fetched(f"127.0.0.1:{slow.port}", digest)
        assert data == body.read()
        assert seconds >= NBYTES / 4e6
        assert NBYTES < slow.moved < NBYTES + 2000, "the body and the head of its answer"


def test_the_rig_counts_in_a_process_of_its_own() -> None:
    with Rig() as rig:
        desc = rig.blob(NBYTES, seed=5)
        with rig.repository().reader_at(desc) as blob:
            assert Digest.of(blob.read_at(0, NBYTES)) == desc.digest
        assert rig.count().nbytes == rig.count().layers == NBYTES
        assert rig.count().requests == rig.count().connections == 1
        rig.reset()
        assert rig.count().requests == 0


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (count("a", 3, 3), "met"),
        (count("a", 4, 3), "MISSED"),
        (count("a", 0, 0), "met"),
        (share("a", 100, 100), "met"),
        (share("a", 101, 100), "MISSED"),
        (share("a", 101, 100, 1.01), "met"),
        (Row("a", NONE, "7", 7, met=True), ""),
    ],
)
def test_a_row_says_whether_its_target_is_met(row: Row, verdict: str) -> None:
    assert row.verdict == verdict
    assert table([row]).splitlines()[1].endswith(verdict or "7")


@pytest.mark.parametrize("exact", [False, True])
def test_only_counts_that_miss_their_target_fail_the_command(
    exact: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("a ratio", "<= 1", "2", 2, met=False, exact=exact)
    monkeypatch.setattr(command, "measure", lambda options: [row])
    monkeypatch.setattr("sys.argv", ["bench-tee"])
    if exact:
        with pytest.raises(SystemExit, match="a ratio"):
            command.main()
    else:
        command.main()
    assert "MISSED" in capsys.readouterr().out
