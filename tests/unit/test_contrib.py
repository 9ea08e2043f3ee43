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
