"""Data on standard output, notes on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping

from blobtee import tasks
from blobtee.cli.errors import OutputClosed
from blobtee.errors import from_os_error

_PIECE = 1 << 20


class Output:
    """Where a verb's results go. `OutputClosed` when nobody reads them any more."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.clear: Callable[[bool], None] = lambda for_good: None
        """Called before something is printed on a terminal, which may have bars of progress on it; True where they
        must not come again, as what is printed does not end its line."""

    def result(self, value: Mapping[str, object], text: str) -> None:
        """One result: as a JSON object on a line of its own, or as `text`, which is one line whatever is in it."""
        self.line(json.dumps(value) if self.as_json else printable(text))

    def line(self, text: str) -> None:
        # Names in images may hold bytes that are no text; they come out as they are.
        self.raw((text + "\n").encode(errors="surrogateescape"))

    def raw(self, data: bytes | memoryview) -> None:
        with _writing():
            if sys.stdout.isatty():
                self.clear(bytes(data[-1:]) != b"\n")
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()  # before a bar comes again
            else:
                sys.stdout.buffer.write(data)

    def flush(self) -> None:
        """What was written so far is out, for who acts on it while the verb goes on."""
        with _writing():
            sys.stdout.buffer.flush()

    def stream(self, file: io.RawIOBase) -> None:
        """All that is left in `file`, as it comes."""
        while piece := file.read(_PIECE):
            tasks.check()
            self.raw(piece)

    def note(self, text: str) -> None:
        """For people: how it went."""
        if not self.quiet:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr)


class _Notes(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        kind = "note" if record.levelno == logging.INFO else record.levelname.lower()
        self._output.note(f"{kind}: {printable(record.getMessage())}")


@contextlib.contextmanager
def logging_to(output: Output) -> Iterator[None]:
    """What the block's work logs are notes, too: else Python prints warnings as they are, whoever wants it quiet."""
    logger = logging.getLogger("blobtee")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers = [*logger.handlers, _Notes(output)]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.level, logger.propagate = before


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        raise from_os_error(error, "write to standard output") from error


def printable(text: str) -> str:
    """Text of an image for a terminal: nothing in it moves the cursor or rings."""
    return "".join(c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else f"\\x{ord(c):02x}" for c in text)
