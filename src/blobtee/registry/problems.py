"""A registry's refusals as errors: what happened, where, and what to do about it.

Error bodies come from strangers: they are read up to a bound and shown without control characters.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from http import HTTPStatus
from typing import Protocol

from blobtee.errors import (
    BlobteeError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    RemoteError,
    ResourceExhausted,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
)
from blobtee.registry.headers import retry_after
from blobtee.registry.retry import Transient
from blobtee.registry.settings import Settings

_MAX_ERROR_BODY = 64 << 10
_MAX_SHOWN = 300
_SECRET = re.compile(r"\b(basic|bearer)\s+[^\s\"',;]+", re.IGNORECASE)
_XML = re.compile(r"<(Code|Message)>([^<]*)</\1>")
_WANTS_TLS = "sent an HTTP request to an HTTPS server"
"""What a server in Go says of plain HTTP, which is what registries on loopback are spoken to in."""
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Refusal(Protocol):
    """What is needed of an answer here."""

    status: int

    def headers(self, name: str, /) -> list[str]: ...

    def read(self, limit: int) -> bytes: ...

    def close(self) -> None: ...


def clean(text: str, limit: int = _MAX_SHOWN) -> str:
    """`text` on one line, printable, at most `limit` characters: fit for a terminal and a log.

    A server that repeats the Authorization header it was sent does not get it into either.
    """
    shown = "".join(c if c.isprintable() else " " for c in text[: limit * 4])
    shown = _SECRET.sub(r"\1 …", shown)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[:limit] + "…"


def explanation(answer: Refusal) -> str:
    """What the registry says of its refusal: `code: message` of each error (distribution spec), or its text."""
    try:
        body = answer.read(_MAX_ERROR_BODY)
    except (RemoteError, TooLarge):
        return ""
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
        if isinstance(document, dict):
            errors = document.get("errors")
            if isinstance(errors, list):
                said = [_one(error) for error in errors[:5] if isinstance(error, dict)]
                return clean("; ".join(part for part in said if part))
            for key in ("details", "message", "error_description", "error"):
                if isinstance(document.get(key), str):
                    return clean(document[key])
        return ""
    text = body.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if text.startswith("<"):
        # A page for browsers, or a storage's XML: beside these two it repeats the signature that it refuses.
        return clean(": ".join(said for _, said in _XML.findall(text)[:2]))
    return clean(text)


def _one(error: dict[str, object]) -> str:
    return ": ".join(str(error[key]) for key in ("code", "message") if isinstance(error.get(key), str) and error[key])


def problem(answer: Refusal, what: str, settings: Settings) -> BlobteeError | Transient:
    """The error for an answer that is no success. Reads its body and closes it.

    `what` completes "cannot …": it names the thing and the host. A `Transient` is worth another try.
    """
    try:
        said = explanation(answer)
    finally:
        answer.close()
    status = answer.status
    tail = f" ({said})" if said else ""
    if status == 404:
        return NotFound(f"cannot {what}: not found{tail}; check the name, and that you are signed in if it is private")
    if status == 401:
        return Unauthenticated(f"cannot {what}: the registry wants a sign-in{tail}; run `docker login` for this host")
    if status == 403:
        return PermissionDenied(f"cannot {what}: not allowed{tail}; check what these credentials may do")
    if status == 413:
        return ResourceExhausted(f"cannot {what}: too large for the registry{tail}")
    reason = _reason(status)
    if status in _TEMPORARY:
        error: BlobteeError = RemoteError(f"cannot {what}: the registry answered {reason}{tail}; try again later")
        if status == 429:
            error = TooManyRequests(
                f"cannot {what}: the registry asks for fewer requests{tail}; wait, or sign in for a higher limit"
            )
        after = answer.headers("retry-after")
        return Transient(error, after=retry_after(after[0] if after else None, settings.max_retry_after))
    if status == 400 and _WANTS_TLS in said:
        tail += "; say so in hosts.toml, or by --no-plain-http"
    if 400 <= status < 500:
        return InvalidArgument(f"cannot {what}: the registry refused with {reason}{tail}")
    if status >= 500:
        return RemoteError(f"cannot {what}: the registry answered {reason}{tail}")
    return ProtocolViolation(f"cannot {what}: the registry answered {reason} where that makes no sense{tail}")


def _reason(status: int) -> str:
    with suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)
