"""JSON a value at a time: what a decoder of the whole text says, across any piece's border, and within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import CorruptData, TooLarge
from blobtee.seeking import jsontext
from blobtee.seeking.jsontext import JsonText

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def values(data: bytes) -> list[Any]:
    text = JsonText(data)
    found = [text.value() for _ in text.each("[", "]")]
    text.end()
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, max_size=5), st.booleans(), st.sampled_from([None, 1, " \t"]), st.integers(1, 9))
def test_values_are_those_of_the_whole_text(wanted: list[Any], ascii_: bool, indent: Any, piece: int) -> None:
    data = json.dumps(wanted, ensure_ascii=ascii_, indent=indent).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsontext, "_PIECE", piece)
        assert values(b"  " + data + b"\n") == json.loads(data.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "data", [b"", b"[", b"[1", b"[1,", b"[1,]", b"[,]", b"[1]]", b"[1 2]", b"{}", b"[tru]", b"[] x"]
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises((CorruptData, ValueError)):
        values(data)


def test_bytes_that_are_no_text_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "_PIECE", 1)
    assert values('["é'.encode() + b'\xff"]') == ["é\udcff"]


def test_a_value_is_bounded_and_the_text_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "_PIECE", 16)
    monkeypatch.setattr(jsontext, "MAX_VALUE", 100)
    assert values(b"[" + b" " * 1000 + b",".join([b"[" + b"1," * 40 + b"1]"] * 50) + b"]") == [[1] * 41] * 50
    for data in (b"[[" + b"[]," * 40 + b"[]]]", b'["' + b"x" * 200 + b'"]', b"[" + b"1" * 200 + b"]"):
        with pytest.raises(TooLarge):
            values(data)


def test_nesting_ends_in_an_error_that_can_be_told() -> None:
    with pytest.raises(RecursionError):
        values(b"[" * 100_000)
