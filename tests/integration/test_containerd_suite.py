"""containerd's own conformance suite of content stores, on blobtee serve: the program is in `containerd/suite`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import gotools
from tests.integration.daemons import Blobtee, running_blobtee, running_containerd

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


@pytest.mark.parametrize("version", ["1.6", "2"])
def test_the_store_behind_a_whole_containerd(suite: Path, blobtee: Blobtee, tmp_path: Path, version: str) -> None:
    with running_containerd(tmp_path / "c", version, blobtee.socket("one")) as containerd:
        run(suite, containerd.address, "TestDaemon", tmp_path)
