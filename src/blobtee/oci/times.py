"""Moments as documents write them."""

from __future__ import annotations

from datetime import UTC, datetime


def from_rfc3339(text: str) -> int | None:
    """The moment in nanoseconds since the epoch; None when `text` is not one."""
    head, dot, tail = text.partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    zone = tail[len(digits) :] if dot else ""
    try:
        moment = datetime.fromisoformat(head + zone)
    except ValueError:
        return None
    if moment.tzinfo is None or (dot and not digits):
        return None
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + int(digits[:9].ljust(9, "0") or "0")
