"""Rows of the table: what was to be reached, and what was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NONE = "none"
"""Target of what is told without having one."""


@dataclass(frozen=True)
class Row:
    """`exact`: a count, which does not depend on the machine; to miss its target is to fail."""

    metric: str
    target: str
    measured: str
    value: float
    met: bool
    exact: bool = False

    @property
    def verdict(self) -> str:
        if self.target == NONE:
            return ""
        return "met" if self.met else "MISSED"


def count(metric: str, value: float, most: float, unit: str = "", note: str = "") -> Row:
    """A count that may be `most` at most."""
    shown = f"{value:,.6g}{unit}" if isinstance(value, float) else f"{value:,}{unit}"
    bound = f"{most:,.6g}{unit}" if isinstance(most, float) else f"{most:,}{unit}"
    target = bound if not most else f"<= {bound}"
    return Row(metric, target, f"{shown}{f', {note}' if note else ''}", value, value <= most, exact=True)


def share(metric: str, part: int, whole: int, most: float = 1.0, note: str = "") -> Row:
    """A quotient of counts that may be `most` at most."""
    value = part / whole
    target = f"{most:.3f}" if most == 1.0 else f"<= {most:g}"
    return Row(metric, target, f"{value:.3f}{f', {note}' if note else ''}", value, value <= most, exact=True)


def table(rows: Sequence[Row]) -> str:
    lines = [
        ("metric", "target", "measured", ""),
        *((row.metric, row.target, row.measured, row.verdict) for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def mebibytes(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):.1f} MiB"
