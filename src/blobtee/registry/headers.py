"""Headers that need more than reading: challenges, links, ranges, delays."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from blobtee.errors import ProtocolViolation

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,*\s*({_TOKEN})(?=[ \t,]|$)")
_PARAMETER = re.compile(rf'[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^",\s]*))[ \t]*(?=,|$)')
_ESCAPE = re.compile(r"\\(.)")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z")
_UPLOAD_RANGE = re.compile(r"(?:bytes=)?(\d{1,19})-(\d{1,19})\Z")
_LINK = re.compile(r'\s*<([^>]*)>((?:\s*;\s*[^;,="\s]+\s*(?:=\s*(?:"[^"]*"|[^;,"\s]*))?)*)\s*(?:,|\Z)')
_REL = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^;,"\s]*))', re.IGNORECASE)
_MAX_CHALLENGES = 16
_MAX_LINK = 4096


@dataclass(frozen=True)
class Challenge:
    """One way to sign in: the scheme in lower case and its parameters, names in lower case (RFC 9110 11.6.1)."""

    scheme: str
    parameters: dict[str, str]


def challenges(values: Sequence[str]) -> list[Challenge]:
    """All challenges of WWW-Authenticate headers, in order. What cannot be read ends that header's list."""
    found: list[Challenge] = []
    for value in values:
        position = 0
        while len(found) < _MAX_CHALLENGES and (scheme := _SCHEME.match(value, position)):
            position = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(value, position):
                name, quoted, plain = parameter.groups()
                parameters.setdefault(name.lower(), _ESCAPE.sub(r"\1", quoted) if quoted is not None else plain)
                position = parameter.end()
            found.append(Challenge(scheme.group(1).lower(), parameters))
    return found


def next_link(values: Sequence[str]) -> str | None:
    """The target of the first `rel="next"` link (RFC 8288), None without one; `ProtocolViolation`: too long."""
    for value in values:
        if len(value) > _MAX_LINK:
            raise ProtocolViolation(f"a Link header of {len(value)} characters")
        position = 0
        while link := _LINK.match(value, position):
            position = link.end()
            rel = _REL.search(link.group(2))
            if rel and "next" in (rel.group(1) or rel.group(2) or "").lower().split():
                return link.group(1)
    return None


def content_range(value: str, where: str) -> tuple[int, int, int]:
    """(start, end, total) of a Content-Range, half-open. An unknown total (`*`) is refused like any other nonsense."""
    match = _CONTENT_RANGE.match(value.strip())
    if match is None:
        raise ProtocolViolation(f"{where} sent a Content-Range that says nothing: {value[:80]!r}")
    return int(match[1]), int(match[2]) + 1, int(match[3])


def upload_offset(value: str | None, where: str) -> int:
    """How many bytes an upload has, by its Range header (`0-<last>`).

    `0-0` is what registries say of an empty upload as well as of one byte; it counts as empty.
    """
    if not value:
        return 0
    match = _UPLOAD_RANGE.match(value.strip())
    if match is None or match[1] != "0":
        raise ProtocolViolation(f"{where} sent an upload Range that says nothing: {value[:80]!r}")
    return int(match[2]) + 1 if int(match[2]) else 0


def retry_after(value: str | None, limit: float) -> float | None:
    """Seconds to wait, at most `limit`; None when the header is absent or senseless (RFC 9110 10.2.3)."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), limit)
    with suppress(ValueError, TypeError, OverflowError):
        return min(max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()), limit)
    return None


def strong_etag(value: str | None) -> str | None:
    """The tag when it promises equal bytes, None for a weak or absent one."""
    return value if value and value.startswith('"') else None
