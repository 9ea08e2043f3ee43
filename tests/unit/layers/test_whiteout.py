from __future__ import annotations

import pytest

from blobtee.errors import CorruptData
from blobtee.layers import Whiteout, whiteout


@pytest.mark.parametrize("path", ["", "a", "a/b", "a/x.wh.b", "a/.wh", "wh.a"])
def test_ordinary_names_are_no_whiteouts(path: str) -> None:
    assert whiteout(path) is None


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        (".wh.a", Whiteout("a")),
        ("a/b/.wh.c", Whiteout("a/b/c")),
        ("a/.wh..hidden", Whiteout("a/.hidden")),
        (".wh..wh..opq", Whiteout("", opaque=True)),
        ("a/.wh..wh..opq", Whiteout("a", opaque=True)),
        (".wh..wh.plnk", Whiteout(None)),
        (".wh..wh.plnk/1.2", Whiteout(None)),
        ("a/.wh..wh.aufs", Whiteout(None)),
    ],
)
def test_whiteouts_say_what_they_hide(path: str, meaning: Whiteout) -> None:
    assert whiteout(path) == meaning


@pytest.mark.parametrize("path", [".wh.", "a/.wh.", "a/.wh..", "a/.wh..."])
def test_whiteouts_of_nothing_are_refused(path: str) -> None:
    with pytest.raises(CorruptData):
        whiteout(path)
