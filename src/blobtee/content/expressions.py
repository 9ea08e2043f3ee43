"""Regular expressions from outside, bounded.

Python's `re` tries one way after the other and cannot be interrupted meanwhile, by any thread: `(a+)+$` takes longer
than anybody waits. So the ways that an expression has are counted before it is tried, rather too high than too low.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from blobtee.errors import InvalidArgument

MAX_WAYS = 100_000_000
"""Ways to match one value, at most: a few seconds."""

_PIECE = re.compile(
    r"""(?P<plain> \\. | \[ \^? \]? (?: [^\]\\] | \\. )* \] )
      | (?P<hidden> \(\? (?: \# | [a-zA-Z]*x ) )
      | (?P<open> \( (?: \? (?: P? < [=!]? | P= | [=!:>] | \( )? )? )
      | (?P<close> \) )
      | (?P<either> \| )
      | (?P<maybe> \? [?+]? )
      | (?P<repeat> (?: [*+] | \{ \d* (?: , \d* )? \} ) [?+]? )
      | (?P<other> . )""",
    re.VERBOSE | re.DOTALL,
)


def searcher(expression: str) -> Callable[[str], bool]:
    """Whether a value holds a match of `expression`; one that is no regular expression matches nothing.

    `InvalidArgument` for one that repeats what has choices or repeats inside, and for comments, behind which it may
    hide. The answer raises it for a value on which there are more than `MAX_WAYS` ways to try.
    """
    try:
        search = re.compile(expression).search
    except (re.error, RecursionError, OverflowError):
        return lambda value: False
    repeats, choices = _count(expression)

    def found(value: str) -> bool:
        # Where to begin, and where each repeat ends, one behind the other.
        if choices * math.comb(len(value) + repeats + 1, repeats + 1) > MAX_WAYS:
            raise _refused(expression, f"has too many ways to match {len(value)} characters")
        return search(value) is not None

    return found


def _count(expression: str) -> tuple[int, int]:
    """How many repeats there are, and how many ways its choices make together."""
    repeats, choices = 0, 1
    branches = [1]
    """Alternatives of each group that is open."""
    starts = [(0, 1)]
    """The two counts where each open group began."""
    closed: tuple[int, int] | None = None
    """The same for a group that ended just now."""
    for piece in _PIECE.finditer(expression):
        kind = piece.lastgroup
        before, closed = closed, None
        if kind == "hidden":
            raise _refused(expression, "has a comment or is verbose")
        if kind == "open":
            branches.append(1)
            starts.append((repeats, choices))
        elif kind == "close" and len(starts) > 1:
            choices *= branches.pop()
            closed = starts.pop()
        elif kind == "either":
            branches[-1] += 1
        elif kind == "maybe":
            choices *= 2
        elif kind == "repeat":
            if before is not None and before != (repeats, choices):
                raise _refused(expression, "repeats what has choices or repeats inside")
            repeats += 1
    return repeats, choices * branches[0]


def _refused(expression: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"the expression {expression[:200]!r} {why}")
