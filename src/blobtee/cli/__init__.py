"""The command line. One file a verb; `main` is the entry point."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 digest mismatch,
    130 interrupted, 141 standard output was closed."""
    _occupy_standard_streams()
    try:
        try:
            import click  # noqa: F401
            import rich  # noqa: F401
        except ImportError as error:
            print(f"blobtee: error: the command line needs {error.name}: pip install 'blobtee[cli]'", file=sys.stderr)
            return 1
        from blobtee.cli.app import run

        return run(arguments)
    except KeyboardInterrupt:  # while that was imported
        return 128 + signal.SIGINT


def _occupy_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed: else the next file opened would take its number, and be
    written to by whoever prints."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
