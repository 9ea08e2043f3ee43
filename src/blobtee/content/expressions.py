"""Regular expressions from outside, bounded.

Python's `re` tries one way after the other and cannot be interrupted meanwhile, by any thread: `(a+)+$` takes longer
than anybody waits. So the steps that an expression may take are counted before it is tried, rather too many than too
few. What Go's `regexp` does not know, as containerd's store uses, is no expression here either: what refers back to a
group, for one, may cost any number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from blobtee.errors import InvalidArgument

MAX_STEPS = 100_000_000
"""To match one value, at most: some tenths of a second."""

_PIECE = re.compile(
    r"""(?P<foreign> \\[1-9] | \( \? (?: P= | P?<?[=!] | [>(] ) | (?: [*+?] | \{ \d* (?: , \d* )? \} ) \+ )
      | (?P<plain> \\. | \[ \^? \]? (?: [^\]\\] | \\. )* \] )
      | (?P<hidden> \(\? (?: \# | [a-zA-Z]*x ) )
      | (?P<open> \( (?: \? (?: P? < | : )? )? )
      | (?P<close> \) )
      | (?P<either> \| )
      | (?P<maybe> \? \?? )
      | (?P<repeat> (?: [*+] | \{ \d* (?: , \d* )? \} ) \?? )
      | (?P<other> . )""",
    re.VERBOSE | re.DOTALL,
)


def searcher(expression: str) -> Callable[[str], bool]:
    """Whether a value holds a match of `expression`; one that is no regular expression matches nothing.

    `InvalidArgument` for one that repeats what has choices or repeats inside, and for comments, behind which it may
    hide. The answer raises it for a value that may take more than `MAX_STEPS` steps.
    """
    try:
        search = re.compile(expression).search
    except (re.error, RecursionError, OverflowError):
        return lambda value: False
    cost = _count(expression)
    if cost is None:
        return lambda value: False

    def found(value: str) -> bool:
        # Where to begin, and where each repeat ends, one behind the other.
        if cost.choices * cost.nsteps * _selections(len(value), cost.repeats + 1) > MAX_STEPS:
            raise _refused(expression, f"has too many ways to match {len(value)} characters")
        return search(value) is not None

    return found


@dataclass
class _Cost:
    """`repeats` of an expression, the ways that its choices make together, and the steps of the longest way; the last
    two may be less when they are above `MAX_STEPS`."""

    repeats: int = 0
    choices: int = 1
    nsteps: int = 1


@dataclass
class _Group:
    """One that is open: what was counted where it began, its alternatives, and the steps of the longest of them and of
    the last."""

    before: tuple[int, int]
    branches: int = 1
    longest: int = 0
    last: int = 0

    def end_branch(self) -> None:
        self.longest, self.last = max(self.longest, self.last), 0


def _count(expression: str) -> _Cost | None:
    """None for what Go does not know."""
    repeats, choices = 0, 1
    groups = [_Group((0, 1))]
    closed: tuple[int, int] | None = None
    """What was counted at the beginning of a group that ended just now."""
    for piece in _PIECE.finditer(expression):
        kind = piece.lastgroup
        before, closed = closed, None
        group = groups[-1]
        if kind == "foreign":
            return None
        if kind == "hidden":
            raise _refused(expression, "has a comment or is verbose")
        if kind == "open":
            groups.append(_Group((repeats, choices)))
        elif kind == "close" and len(groups) > 1:
            group.end_branch()
            choices = min(choices * group.branches, MAX_STEPS)
            groups.pop()
            groups[-1].last += group.longest
            closed = group.before
        elif kind == "either":
            group.end_branch()
            group.branches += 1
        elif kind == "maybe":
            choices = min(choices * 2, MAX_STEPS)
        elif kind == "repeat":
            if before is not None and before != (repeats, choices):
                raise _refused(expression, "repeats what has choices or repeats inside")
            repeats += 1
        else:
            group.last += 1
    groups[0].end_branch()
    return _Cost(repeats, choices * groups[0].branches, max(1, groups[0].longest))


def _selections(length: int, bounds: int) -> int:
    """In how many ways `bounds` places can be chosen in a value, in order, the same more than once; it may be less when
    that is above `MAX_STEPS`."""
    few, many = sorted((length, bounds))
    found = 1
    for i in range(1, few + 1):
        found = found * (many + i) // i
        if found > MAX_STEPS:
            break
    return found


def _refused(expression: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"the expression {expression[:200]!r} {why}")
