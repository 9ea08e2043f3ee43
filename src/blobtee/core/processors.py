"""Which processor a thread runs on. Many that mostly take turns in the interpreter are faster on one than on more."""

from __future__ import annotations

from blobtee.core.native import lib


def huddle() -> None:
    """Have this thread run on the same processor as all that huddle, until it `spread`s. As good as it goes. A thread
    that it starts meanwhile stays there for ever."""
    lib.bt_huddle()


def spread() -> None:
    """Have this thread run wherever it might before it huddled, if it did."""
    lib.bt_spread()
