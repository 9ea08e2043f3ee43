"""Docker's credential helpers: a program `docker-credential-<name>` asked on its standard input."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress

from blobtee import tasks
from blobtee.errors import Unauthenticated

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAX_OUTPUT = 1 << 20
_NONE = b"credentials not found"


def ask(name: str, server: str, environ: Mapping[str, str], timeout: float) -> tuple[str, str] | None:
    """User name and secret that helper `name` keeps for `server`; None when it has none.

    `Unauthenticated` says which helper failed and how; it never repeats what the helper wrote to its output, which
    may be the secret. The helper is killed after `timeout` seconds, and when the running work is cancelled.
    """
    if not _NAME.match(name):
        raise Unauthenticated(f"credential helper {name[:60]!r}: not a helper's name")
    program = f"docker-credential-{name}"
    code, output = _run(program, server, environ, timeout)
    if code != 0:
        if _NONE in output.lower():
            return None
        raise Unauthenticated(f"{program} failed with exit code {code}; try `{program} list`")
    try:
        answer = json.loads(output)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unauthenticated(f"{program} answered something that is no credential") from None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise Unauthenticated(f"{program} answered something that is no credential")
    return (user, secret) if user or secret else None


def _run(program: str, server: str, environ: Mapping[str, str], timeout: float) -> tuple[int, bytes]:
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        reason = "not installed" if isinstance(error, FileNotFoundError) else error.strerror
        raise Unauthenticated(f"{program}: {reason}; install it, or remove it from the credentials file") from None
    with process:
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(server.encode() + b"\n")
                process.stdin.close()
            output = _collect(process, program, timeout)
            return process.wait(), output
        finally:
            if process.poll() is None:
                # The whole session: a script's children would keep the pipe open.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)


def _collect(process: subprocess.Popen[bytes], program: str, timeout: float) -> bytes:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            tasks.check()
            if time.monotonic() > deadline:
                raise Unauthenticated(f"{program} did not answer within {timeout:g} seconds")
            # Looked at before the pipe: what the program wrote before its end is in there by now.
            ended = process.poll() is not None
            if not selector.select(0 if ended else 0.05):
                if ended:
                    break  # An agent that it left behind holds the pipe open; it has nothing to say to us.
            else:
                piece = os.read(process.stdout.fileno(), 64 << 10)
                if not piece:
                    break
                output += piece
                if len(output) > _MAX_OUTPUT:
                    raise Unauthenticated(f"{program} answered with more than {_MAX_OUTPUT} bytes")
    while process.poll() is None:
        tasks.sleep(0.01)
        if time.monotonic() > deadline:
            raise Unauthenticated(f"{program} did not end within {timeout:g} seconds")
    return output
