"""The command line. One file a verb; `main` is the entry point."""

from __future__ import annotations

import io
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
    written to by whoever prints. Data find it closed all the same: standard output cannot be written to (EBADF).

    One that is unbuffered (PYTHONUNBUFFERED) gets its buffer back: without it a file that has room for a part of what
    is written takes that part, and says nothing.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    out = sys.__stdout__
    if out is not None and out is sys.stdout and isinstance(getattr(out, "buffer", None), io.RawIOBase):
        sys.stdout = open(out.fileno(), "w", encoding=out.encoding, errors=out.errors, closefd=False)  # noqa: SIM115
