"""The filter language by itself; what it selects in stores is in the conformance suite."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.content import filters
from blobtee.errors import InvalidArgument

FIELDS = filters.blob_fields("sha256:abc", {"a": "1", "b.c": "two words", "d/e": "x,y", "q": 'say "hi"\t'})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", True),
        ("digest==sha256:abc", True),
        ('digest=="sha256:abc"', True),
        ("labels.a == 1", True),
        (" labels.a", True),
        ("labels.z", False),
        ("labels.z!=1", True),
        ("labels.z==", None),
        ("labels.z~=^$", True),
        ("labels.a,labels.b.c", True),
        ("labels.a, labels.z", False),
        ('labels.b.c=="two words"', True),
        ('labels."b.c"~="two .*"', True),
        ('labels."d/e"=="x,y"', True),
        ("labels.d/e", None),
        ('labels.q=="say \\"hi\\"\\t"', True),
        ('labels.q=="say \\x22hi\\042\\u0009"', True),
        ("labels.q~=|hi..$|", True),
        ("labels.q~=/hi.\\t$/", True),
        ("labels.a==/1/", None),
        ("labels.a=~1", None),
        ("labels.a===1", None),
        ('labels.a=="\\q"', None),
        ('labels.a=="\\ud800"', None),
        ('labels.a=="\\U00110000"', None),
        ('labels.a=="a\nb"', None),
        ("labels..a", None),
        (".a", None),
        ("labels.a==1 ", None),
        ("labels.a ,labels.b", None),
        ("labels", False),
        ("digest.x", False),
        ("labels.a~=[", False),
        ("labels.a~=(?P<x", False),
        ("x" * (filters.MAX_FILTER + 1), None),
    ],
)
def test_a_filter_matches_or_not_or_is_refused(text: str, wanted: bool | None) -> None:
    if wanted is None:
        with pytest.raises(InvalidArgument):
            filters.parse([text])
    else:
        assert filters.parse([text])(FIELDS) is wanted


def test_no_filter_matches_and_one_of_several_is_enough() -> None:
    assert filters.parse([])(FIELDS)
    assert filters.parse(["labels.z", "labels.a"])(FIELDS)
    assert not filters.parse(["labels.z", "labels.y"])(FIELDS)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=30))
def test_any_value_can_be_asked_for_in_quotes(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert filters.parse([f'labels.k=="{quoted}"'])(filters.blob_fields("", {"k": value}))
    assert not filters.parse([f'labels.k!="{quoted}"'])(filters.blob_fields("", {"k": value}))


@given(st.text(alphabet='ab.,="|/~!\\ \n(*', max_size=30))
def test_any_text_is_a_filter_or_an_invalid_argument(text: str) -> None:
    try:
        match = filters.parse([text])
    except InvalidArgument:
        return
    assert match(FIELDS) in (True, False)
