"""`blobtee containerd config`."""

from __future__ import annotations

from pathlib import Path

import click

from blobtee.cli.errors import FAILED
from blobtee.cli.session import Session, verb
from blobtee.errors import NotFound
from blobtee.plugin import containerd


@click.group()
def command() -> None:
    """What containerd needs to know of blobtee."""


@command.command(short_help="Print or check the lines that containerd needs.")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=Path("/run/blobtee/blobtee.sock"),
    show_default=True,
    help="Where `blobtee serve` listens.",
)
@click.option("--name", default="blobtee", show_default=True, help="What containerd is to call the plugin.")
@click.option(
    "--for",
    "wanted",
    type=click.Choice(("1", "2")),
    help="containerd's major version.  [default: what `containerd --version` says]",
)
@click.option(
    "--check",
    "checked",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Look at this file instead, /etc/containerd/config.toml for one, and say what is wrong with it.",
)
@verb()
def config(session: Session, socket: Path, name: str, wanted: str | None, checked: Path | None) -> int:
    """Print the lines that make blobtee containerd's content store, or check a file that has them.

    Checking ends with exit status 1 when containerd would not run on blobtee with it. Files that it imports are read
    too. `blobtee doctor` does the same for the containerd of this machine, and asks the socket.

    \b
    Examples:
      blobtee containerd config
      blobtee containerd config --for 2 --socket /run/blobtee/k8s.sock
      blobtee containerd config --check /etc/containerd/config.toml
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise click.UsageError(f"--name is letters, digits, - and _, not {name!r:.80}")
    if str(socket).startswith("unix:"):
        raise click.UsageError("--socket is a path, without unix://")
    minor: int | None
    if wanted is not None:
        major, minor = int(wanted), None
    else:
        try:
            major, minor = containerd.installed_version()
        except NotFound as error:
            raise NotFound(f"{error}; say --for 1 or --for 2") from error
    if checked is None:
        text = containerd.configuration(major, socket.absolute(), name)
        if session.output.as_json:
            session.output.result({"containerd": major, "config": text}, "")
        else:
            session.output.line(text.rstrip())
        return 0
    problems = containerd.check(containerd.load(checked), major, minor)
    for problem in problems:
        session.output.result(
            {"problem": problem.what, "cure": problem.cure, "fatal": problem.fatal}, f"{problem.what}: {problem.cure}"
        )
    if not problems:
        session.output.note(f"{checked} is right for containerd {major}.x")
    return FAILED if any(problem.fatal for problem in problems) else 0
