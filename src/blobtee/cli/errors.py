"""How errors leave the command line: one line, a hint, an exit status."""

from __future__ import annotations

import sys

from blobtee.errors import (
    BlobteeError,
    ConnectionFailed,
    DigestMismatch,
    InvalidDocument,
    LazyUnavailable,
    NeedsRemoteProvider,
    NotFound,
    PermissionDenied,
    StorageFull,
    TooManyRequests,
    Unauthenticated,
)

FAILED, USAGE, NOT_FOUND, MISMATCH = 1, 2, 3, 4
INTERRUPTED = 128 + 2
OUTPUT_CLOSED = 128 + 13
"""As for a program that SIGPIPE ends, which is what a closed standard output does to others."""


class Interrupted(Exception):
    """A signal asked the command to end."""


class OutputClosed(Exception):
    """Nobody reads standard output any more."""


_HINTS: tuple[tuple[type[BlobteeError], str], ...] = (
    (Unauthenticated, "`podman login` does as well; or, for this command alone, --username with --password-stdin"),
    (ConnectionFailed, "the same command again goes on where this one stopped"),
    (TooManyRequests, "wait a while, or sign in: registries grant more to those they know"),
    (StorageFull, "`blobtee gc` removes what no image in a store needs"),
    (NeedsRemoteProvider, "pull the image again to say where its layers are"),
    (LazyUnavailable, "see `blobtee doctor` for proxies, mirrors and credentials"),
    (DigestMismatch, "nothing of it was kept; the source is damaged or lies"),
    (InvalidDocument, ""),
    (PermissionDenied, "see `blobtee doctor` for the store and the credentials in use"),
)


def status_of(error: BlobteeError) -> int:
    if isinstance(error, LazyUnavailable) and isinstance(error.__cause__, BlobteeError):
        return status_of(error.__cause__)
    if isinstance(error, DigestMismatch):
        return MISMATCH
    return NOT_FOUND if isinstance(error, NotFound) else FAILED


def _hint(error: BlobteeError) -> str:
    if isinstance(error, ConnectionFailed) and "; " in str(error):
        return ""  # the text says what has to be changed first
    return next((text for kind, text in _HINTS if isinstance(error, kind)), "")


def report(error: BlobteeError | str, hint: str = "", status: int = FAILED) -> int:
    """Say what went wrong on standard error, in one line and perhaps a hint; returns `status`."""
    if not hint and isinstance(error, BlobteeError):
        hint = _hint(error)
    line = "".join(c if c.isprintable() else " " for c in str(error)).strip()
    try:
        print(f"blobtee: error: {line or 'unknown'}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens; the status still tells
    return status
