"""Labels: text by text. An empty value is the same as no label (`spec/content.md` section 2, Update)."""

from __future__ import annotations

from collections.abc import Mapping

from blobtee.errors import InvalidArgument, TooLarge

MAX_LABELS = 1 << 20
"""Characters of all labels of a blob: whoever lists blobs has to take them in one message of at most 16 MiB
(containerd), and does not get past one that is larger."""


def checked(labels: Mapping[str, str] | None) -> dict[str, str]:
    """`labels` of a new blob, without the empty ones; `InvalidArgument` for what is no text, `TooLarge` for more than
    `MAX_LABELS`."""
    return merged({}, labels or {})


def merged(before: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """`before` with `changes` on top; None or an empty value removes one. Errors are those of `checked`."""
    result = dict(before)
    for key, value in changes.items():
        if not isinstance(key, str) or not key or not (value is None or isinstance(value, str)):
            raise InvalidArgument(f"labels are text, not {key!r:.60}: {value!r:.60}")
        if value:
            result[key] = value
        else:
            result.pop(key, None)
    nchars = sum(len(key) + len(value) for key, value in result.items())
    # What is too much already may become less.
    if nchars > MAX_LABELS and any(changes.values()):
        raise TooLarge(f"a blob may have labels of {MAX_LABELS} characters together, not of {nchars}")
    return result
