"""containerd's own conformance suite of content stores, on blobtee serve: the program is in `containerd/suite`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import gotools
from tests.integration.daemons import Blobtee, Daemon, running_blobtee, running_containerd, wait_for

SOURCE = Path(__file__).parent / "containerd"

pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def suite() -> Path:
    return gotools.tests_of(SOURCE, "./suite", "suite")


@pytest.fixture
def blobtee(tmp_path: Path) -> Iterator[Blobtee]:
    with running_blobtee(tmp_path / "b", "one") as daemon:
        yield daemon


def run(suite: Path, socket: Path, test: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [suite, "-socket", socket, "-test.run", test, "-test.v"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "--- PASS" in done.stdout


@pytest.mark.parametrize("test", ["TestRaw", "TestMetadata", "TestEdges"])
def test_the_store_behind_a_socket(suite: Path, blobtee: Blobtee, tmp_path: Path, test: str) -> None:
    run(suite, blobtee.socket("one"), test, tmp_path)


def test_calls_during_a_stop_are_answered_or_unavailable(suite: Path, blobtee: Blobtee, tmp_path: Path) -> None:
    command = [str(suite), "-socket", str(blobtee.socket("one")), "-test.run", "TestStopping", "-test.v"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as client:
        wait_for("calls are under way", (tmp_path / "running").exists)
        assert blobtee.end() == 0
        said, _ = client.communicate(timeout=60)
        assert client.returncode == 0, said[-4000:]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Daemon]:
    """containerd's own local store behind the same service."""
    program = gotools.program_of(SOURCE, ".", "peer")
    folder = tmp_path / "peer"
    socket = folder / "socket"
    daemon = Daemon([str(program), "serve", "-socket", str(socket), "-root", str(folder / "root")], folder, [socket])
    (folder / "root" / "blobs").mkdir(parents=True)  # without it, listing an empty store fails
    daemon.start()
    yield daemon
    daemon.end()


def test_our_own_tests_on_the_store_of_others(suite: Path, peer: Daemon, tmp_path: Path) -> None:
    # Not containerd's: they clean up by aborting what is just being closed, which that store cannot, now and then.
    run(suite, peer.sockets[0], "TestEdges", tmp_path)


@pytest.mark.parametrize("version", ["1.6", "2"])
@pytest.mark.parametrize("policy", ["shared", "isolated"])
def test_the_store_behind_a_whole_containerd(
    suite: Path, blobtee: Blobtee, tmp_path: Path, version: str, policy: str
) -> None:
    more = f'[plugins."io.containerd.metadata.v1.bolt"]\n  content_sharing_policy = "{policy}"\n'
    with running_containerd(tmp_path / "c", version, blobtee.socket("one"), more=more) as containerd:
        run(suite, containerd.address, f"TestDaemon{policy.capitalize()}$", tmp_path)
        if (version, policy) == ("2", "isolated"):  # containerd 1.6 fails this with a store of its own, too
            run(suite, containerd.address, "TestDaemonIsolatedButForOne", tmp_path)


@pytest.mark.parametrize("version", ["1.6", "2"])
def test_many_writers_and_a_collection_through_a_whole_containerd(
    suite: Path, blobtee: Blobtee, tmp_path: Path, version: str
) -> None:
    with running_containerd(tmp_path / "c", version, blobtee.socket("one")) as containerd:
        run(suite, containerd.address, "TestDaemonManyWriters|TestDaemonCollection", tmp_path)
