"""Expressions that would never end are refused; those that people write are not."""

from __future__ import annotations

import pytest

from blobtee.content import MemoryStore
from blobtee.content.expressions import searcher
from blobtee.errors import InvalidArgument
from tests.conformance.blobs import put

DIGEST = "sha256:" + 8 * "0123abcd"


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(a*)*$",
        "(?:a|a)*$",
        "(a?){30}",
        "((a)+b?)+",
        r"(\(a+)+",
        "([)]a+)+",
        "([^]]a+)+",
        "(?P<n>a+)+",
        "(?x) # [\n (a+)+",
        "(?# [ )(a+)+",
    ],
)
def test_an_expression_without_end_is_refused(expression: str) -> None:
    with pytest.raises(InvalidArgument):
        searcher(expression)


@pytest.mark.parametrize(
    ("expression", "value"),
    [(".*.*.*x", "a" * 3000), ("a?" * 40 + "a" * 40, "a" * 40), ("(a|a)" * 40 + "$", "a" * 40 + "b")],
)
def test_an_expression_that_takes_too_long_on_a_value_is_refused_there(expression: str, value: str) -> None:
    found = searcher(expression)
    with pytest.raises(InvalidArgument):
        found(value)


@pytest.mark.parametrize(
    ("expression", "value", "wanted"),
    [
        ("^sha256:[0-9a-f]+$", DIGEST, True),
        ("^sha256:(01|23).*$", DIGEST, True),
        ("sha.*:.*3.*cd$", DIGEST, True),
        ("^(sha512:)?[0-9a-f]+$", DIGEST, False),
        ("(?i)SHA(256|512)", DIGEST, True),
        (r"^docker\.io/library/[^:]+:(latest|\d+)$", "docker.io/library/alpine:3", True),
        ("(ab){2}", "abab", True),
        ("x*", "", True),
        ("(", "(", False),
    ],
)
def test_expressions_that_people_write_are_tried(expression: str, value: str, wanted: bool) -> None:
    assert searcher(expression)(value) is wanted


def test_a_list_says_so_and_is_not_stopped_for_others() -> None:
    with MemoryStore() as store:
        put(store, b"data", {"long": "a" * 3000})
        with pytest.raises(InvalidArgument):
            store.walk("labels.long~=(a+)+$")
        with pytest.raises(InvalidArgument):
            list(store.walk("labels.long~=.*.*.*x"))
        assert len(list(store.walk("labels.long~=a+$"))) == 1
