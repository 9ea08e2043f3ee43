"""Real containerds on blobtee serve: images in and out, containers, collection, kills, and two of them on one store."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from blobtee import transfer
from blobtee.content import LocalStore
from tests.integration.daemons import Blobtee, Containerd, running_blobtee, running_containerd, wait_for
from tests.integration.images import NAME, busybox_archive, hello, listed, remove_everything, settle
from tests.integration.servers import DockerRegistry, running_registry, tool

pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def blobtee(tmp_path: Path) -> Iterator[Blobtee]:
    with running_blobtee(tmp_path / "b", "one", "two") as daemon:
        yield daemon


@pytest.fixture(params=["1.6", "2"])
def containerd(request: pytest.FixtureRequest, tmp_path: Path, blobtee: Blobtee) -> Iterator[Containerd]:
    tool("runc")
    with running_containerd(tmp_path / "c", request.param, blobtee.socket("one")) as daemon:
        yield daemon


def restart(blobtee: Blobtee, containerd: Containerd, how: signal.Signals) -> None:
    """End blobtee and start it again, and wait for containerd to have noticed: it redials within 3 seconds, and tries
    to open a writer until it can."""
    blobtee.end(how)
    blobtee.start()
    containerd.do("content", "ingest", f"after {time.time_ns()}", given=str(time.time_ns()))


def check_whole(blobtee: Blobtee) -> None:
    with LocalStore(blobtee.root) as store:
        assert transfer.verify(store).problems == ()


def test_an_image_comes_runs_goes_out_and_is_collected(
    containerd: Containerd, blobtee: Blobtee, busybox: Path, registry: DockerRegistry, tmp_path: Path
) -> None:
    containerd.do("images", "import", busybox)
    hello(containerd)
    there = f"{registry.host}/from-{containerd.folder.parent.name.lower()}:1"
    containerd.do("images", "tag", NAME, there)
    containerd.do("images", "push", "--plain-http", there)
    containerd.do("images", "export", tmp_path / "out.tar", NAME)
    before = set(listed(containerd))
    remove_everything(containerd)
    assert listed(containerd) == []
    wait_for("the bytes go", lambda: not blobtee.blobs())

    containerd.do("images", "pull", "--plain-http", there)
    hello(containerd, there)
    # The archive may bring an index of its own, which is not pushed.
    assert set(listed(containerd)) <= before
    remove_everything(containerd)
    containerd.do("images", "import", tmp_path / "out.tar")
    hello(containerd)
    check_whole(blobtee)
    remove_everything(containerd)
    wait_for("the bytes go", lambda: not blobtee.blobs())


def test_everything_is_there_after_restarts(containerd: Containerd, blobtee: Blobtee, busybox: Path) -> None:
    containerd.do("images", "import", busybox)
    for how in (signal.SIGTERM, signal.SIGKILL):
        restart(blobtee, containerd, how)
        hello(containerd)
    assert "Traceback" not in blobtee.log


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `busybox`, and large enough for a kill to come in between."""
    return busybox_archive(tmp_path_factory.mktemp("large"), padding=24 << 20)


def test_a_kill_in_the_middle_of_anything_loses_nothing(
    containerd: Containerd, blobtee: Blobtee, large: Path, registry: DockerRegistry, tmp_path: Path
) -> None:
    """Each kind of work, killed early and late: it ends by itself, done or with an error, and works when repeated."""
    there = f"{registry.host}/killed-{containerd.folder.parent.name.lower()}:1"

    def bring() -> None:
        containerd.do("images", "import", large)
        containerd.do("images", "tag", "--force", NAME, there)

    works: list[tuple[Callable[[], None], Callable[[], list[str | Path]]]] = [
        (lambda: remove_everything(containerd), lambda: ["images", "import", large]),
        (bring, lambda: ["images", "push", "--plain-http", there]),
        (bring, lambda: ["images", "export", tmp_path / "out.tar", NAME]),
        (bring, lambda: ["run", "--rm", "--net-host", NAME, f"greeter-{uuid.uuid4()}"]),
        (bring, lambda: ["images", "rm", "--sync", NAME, there]),
        (lambda: remove_everything(containerd), lambda: ["images", "pull", "--plain-http", there]),
    ]
    for prepare, command in works:
        prepare()
        begun = time.monotonic()
        containerd.do(*command())
        whole = time.monotonic() - begun
        for part in (0.1, 0.6):
            prepare()
            outcome = killed_in_the_middle(containerd, blobtee, command(), part * whole)
            assert outcome.returncode in (0, 1), outcome
            check_whole(blobtee)
            prepare()
            containerd.do(*command())
    remove_everything(containerd)
    assert listed(containerd) == []
    wait_for("the bytes go", lambda: not blobtee.blobs())
    assert "Traceback" not in blobtee.log


def killed_in_the_middle(
    containerd: Containerd, blobtee: Blobtee, command: list[str | Path], seconds: float
) -> subprocess.CompletedProcess[str]:
    """What comes of `ctr` with these arguments when blobtee is killed after `seconds`, and started again."""
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(containerd.ctr, *command)
        wait([working], seconds)
        restart(blobtee, containerd, signal.SIGKILL)
        return working.result()


def test_two_containerds_on_one_store(tmp_path: Path, blobtee: Blobtee, busybox: Path) -> None:
    with (
        running_containerd(tmp_path / "old", "1.6", blobtee.socket("one")) as old,
        running_containerd(tmp_path / "new", "2", blobtee.socket("two")) as new,
    ):
        for each in (old, new):
            each.do("images", "import", busybox)
            settle(each)
        assert set(listed(new)) == set(listed(old))
        wait_for("one copy is left", lambda: {f"sha256:{name}" for name in blobtee.blobs()} == set(listed(old)))
        remove_everything(old)
        assert listed(old) == []
        hello(new)
        old.do("images", "import", busybox)
        remove_everything(new)
        hello(old)
        check_whole(blobtee)
        remove_everything(old)
        wait_for("the bytes go", lambda: not blobtee.blobs())
