"""How counts are told to people."""

from __future__ import annotations


def counted(n: int, what: str) -> str:
    """1 blob, 2 blobs."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
