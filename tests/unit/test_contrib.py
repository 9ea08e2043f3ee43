"""What is in contrib names options that are there."""

import re
from pathlib import Path

from blobtee.cli.serve import command

CONTRIB = Path(__file__).parents[2] / "contrib"


def test_units_use_options_that_serve_has() -> None:
    (line,) = re.findall(r"^ExecStart=.*/blobtee serve (.*)$", (CONTRIB / "systemd/blobtee.service").read_text(), re.M)
    context = command.make_context("serve", line.split())
    assert context.params["sockets"] == ("/run/blobtee/blobtee.sock",)


def test_the_service_has_time_to_drain() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)s$", (CONTRIB / "systemd/blobtee.service").read_text(), re.M)
    context = command.make_context("serve", ["--socket", "x"])
    assert int(seconds) > context.params["drain"]


def test_the_socket_unit_holds_the_socket_that_the_service_names() -> None:
    (path,) = re.findall(r"^ListenStream=(.*)$", (CONTRIB / "systemd/blobtee.socket").read_text(), re.M)
    assert f"--socket {path}\n" in (CONTRIB / "systemd/blobtee.service").read_text()


def test_nothing_ties_containerd_to_the_life_of_the_service() -> None:
    """Whoever is required by another is stopped and restarted with it, also when it is killed (systemd.unit(5))."""
    for unit in CONTRIB.glob("systemd/*"):
        assert not re.search(r"^(Requires|RequiredBy|Requisite|BindsTo|PartOf|Upholds)=", unit.read_text(), re.M), unit
