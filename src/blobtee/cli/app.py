"""The group of verbs, and how a command ends."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from blobtee._version import __version__
from blobtee.cli.errors import FAILED, INTERRUPTED, OUTPUT_CLOSED, USAGE, Interrupted, OutputClosed, report, status_of
from blobtee.errors import BlobteeError

VERBS = {
    "pull": "Bring an image into the store, whole or lazily.",
    "push": "Push an image of the store.",
    "copy": "Copy an image from one address to another.",
    "convert": "Copy an image with its layers packed otherwise.",
    "layer": "Make a directory a layer, or an image with that layer on top.",
    "inspect": "Tell what an image is made of, and what of it is here.",
    "cat": "Print a manifest, a blob, or a file inside an image.",
    "ls": "List files inside an image.",
    "images": "List the images of the store.",
    "blobs": "List the blobs of the store.",
    "rm": "Forget names of images.",
    "gc": "Remove what no image and no lease needs any more.",
    "verify": "Check every blob of the store; fetch again what is broken.",
    "serve": "Be the content store of one or several containerds.",
    "adopt": "Take over what containerd kept in its own store.",
    "containerd": "Print or check what containerd needs to know of blobtee.",
    "doctor": "Print what a bug report needs.",
    "demo": "Do the main job on an image of this machine's files, or on yours.",
}

EPILOG = """\
Image addresses: a name (python:3.12, registry.example/team/app:1), oci:DIR[:NAME], oci-archive:FILE[:NAME],
docker-archive:FILE[:NAME].

Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 digest mismatch, 130 interrupted.
"""


class Verbs(click.Group):
    """Imports a verb when it is asked for: `--help` and a typing error stay quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"blobtee.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    epilog="\b\n" + EPILOG.replace("\n\n", "\n\n\b\n"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, message="blobtee %(version)s")
def blobtee() -> None:
    """Container images, lazily: read them, pass them on, keep them, without moving more than needed."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status. Nothing but a defect of ours ends in a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        result = blobtee.main(given, prog_name="blobtee", standalone_mode=False)
        status = result if isinstance(result, int) else 0
        return _flushed(status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        hint = f"{error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        report(" ".join(error.format_message().split()), f"see `{hint}`" if hint else "")
        return USAGE if isinstance(error, click.UsageError) else FAILED
    except (Interrupted, click.Abort, KeyboardInterrupt):
        report("interrupted", "nothing is half done; what a pull brought is kept for the next one")
        return INTERRUPTED
    except OutputClosed:
        return _flushed(OUTPUT_CLOSED)
    except BlobteeError as error:
        if debug:
            traceback.print_exc()
        return report(error, status=status_of(error))
    except Exception as error:
        if isinstance(error, OSError) and _flushed(0) != 0:
            return FAILED  # a help text, which click prints, found no room
        if debug:
            traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        return report(text, "this is a defect of blobtee: report it with the output of --debug and of `blobtee doctor`")


def _flushed(status: int) -> int:
    """Flush standard output here, where a closed one can still be told from a failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = OUTPUT_CLOSED
    except OSError as error:
        report(f"cannot write to standard output: {error.strerror}")
        status = FAILED
    if status in (OUTPUT_CLOSED, FAILED):
        # What is left in its buffer would fail again when Python ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
    return status
