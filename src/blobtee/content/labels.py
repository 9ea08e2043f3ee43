"""Labels: text by text. An empty value is the same as no label (`spec/content.md` section 2, Update)."""

from __future__ import annotations

from collections.abc import Mapping

from blobtee.errors import InvalidArgument


def checked(labels: Mapping[str, str] | None) -> dict[str, str]:
    """`labels` of a new blob, without the empty ones; `InvalidArgument` for what is no text."""
    return merged({}, labels or {})


def merged(before: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """`before` with `changes` on top; None or an empty value removes one."""
    result = dict(before)
    for key, value in changes.items():
        if not isinstance(key, str) or not key or not (value is None or isinstance(value, str)):
            raise InvalidArgument(f"labels are text, not {key!r:.60}: {value!r:.60}")
        if value:
            result[key] = value
        else:
            result.pop(key, None)
    return result
