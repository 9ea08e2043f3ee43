"""What a kubelet does, over CRI, with real containerds on blobtee serve: the client is in `containerd/cri`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration import gotools
from tests.integration.daemons import running_blobtee, running_containerd, wait_for
from tests.integration.images import busybox_archive, remove_everything
from tests.integration.servers import running_registry, tool

pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]

PAUSE = "example.test/pause:1"
# Where these tests run as root of a container, nobody may lower a process's oom_score_adj.
CRI = {
    "1.6": f'[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "{PAUSE}"\n  restrict_oom_score_adj = true\n',
    "2": f'[plugins."io.containerd.cri.v1.images".pinned_images]\n  sandbox = "{PAUSE}"\n'
    '[plugins."io.containerd.cri.v1.runtime"]\n  restrict_oom_score_adj = true\n',
}


@pytest.mark.parametrize("version", ["1.6", "2"])
def test_an_image_is_pulled_run_and_removed_over_cri(tmp_path: Path, version: str) -> None:
    tool("runc")
    client = gotools.program_of(Path(__file__).parent / "containerd", "./cri", "cri")
    with (
        running_registry(tmp_path / "registry") as registry,
        running_blobtee(tmp_path / "b", "one") as blobtee,
        running_containerd(tmp_path / "c", version, blobtee.socket("one"), cri=True, more=CRI[version]) as containerd,
    ):
        there = f"{registry.host}/greeter:1"
        containerd.do("-n", "k8s.io", "images", "import", busybox_archive(tmp_path / "pause", PAUSE, "sleep 3600"))
        containerd.do("images", "import", busybox_archive(tmp_path / "greeter", there, "echo hello over CRI"))
        containerd.do("images", "push", "--plain-http", there)
        containerd.do("images", "rm", "--sync", there)
        (tmp_path / "pod").mkdir()
        command = [str(client), "-socket", str(containerd.address), "-image", there, "-folder", str(tmp_path / "pod")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{containerd.log[-3000:]}"
        assert done.stdout.endswith(" stdout F hello over CRI\n")
        remove_everything(containerd, "k8s.io")  # CRI has names of its own for the sandbox's image
        wait_for("the bytes go", lambda: not blobtee.blobs())
