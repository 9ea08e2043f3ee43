"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Any

import click

_LETTERS = "kmgt"
_SIZE = re.compile(rf"(\d{{1,18}})(?:\.(\d{{1,9}}))?\s*([{_LETTERS}]?)(i?b)?\Z", re.IGNORECASE | re.ASCII)


class SizeType(click.ParamType[int]):
    """Bytes: `10GB` is 10,000,000,000, `512MiB` and `512M` are 512 times 1,048,576; a number alone is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.match(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no size: 10GB, 512MiB or 0, for instance", param, ctx)
        whole, fraction, letter, suffix = match.groups(default="")
        base = 1000 if suffix.lower() == "b" else 1024
        unit: int = base ** (_LETTERS.index(letter.lower()) + 1) if letter else 1
        return int(whole) * unit + int(fraction.ljust(9, "0")) * unit // 10**9


def nbytes(n: float) -> str:
    """`n` bytes for people: 1.2 GiB."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
