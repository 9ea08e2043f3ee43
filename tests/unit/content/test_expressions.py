"""Expressions that would never end are refused; those that people write are not."""

from __future__ import annotations

import pytest

from blobtee.content import MemoryStore, filters
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
    [
        (".*.*.*x", "a" * 3000),
        ("a?" * 40 + "a" * 40, "a" * 40),
        ("(a|a)" * 40 + "$", "a" * 40 + "b"),
        (".*" + 3000 * "a" + "b", 10_000 * "a"),  # two minutes
        (".*" + 9 * "a?" + 500 * "[ab]" + "c", 700 * "a"),
        ("a*" * 20_000, "a" * 4000),
    ],
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
        ("^sha256:(" + "|".join(f"{number:064x}" for number in range(2000)) + ")$", f"sha256:{1999:064x}", True),
        # No expressions to Go.
        (r"(\w*)\1", "aa", False),
        ("(?=a)a", "a", False),
        ("a*+b", "ab", False),
    ],
)
def test_expressions_that_people_write_are_tried(expression: str, value: str, wanted: bool) -> None:
    assert searcher(expression)(value) is wanted


def test_what_expressions_take_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_SECONDS", 0.05)
    with MemoryStore() as store:
        for number in range(200):
            put(store, b"%d" % number, {"long": "a" * 400})
        assert len(list(store.walk("labels.long~=a+b", "labels.long~=a$"))) == 200
        with pytest.raises(InvalidArgument, match="seconds"):
            list(store.walk("labels.long~=a*a*b"))
        with pytest.raises(InvalidArgument, match="seconds"):
            store.walk(*(f"labels.long~=(?i){number}" + 500 * "[а-я]" for number in range(200)))


def test_a_list_says_so_and_is_not_stopped_for_others() -> None:
    with MemoryStore() as store:
        put(store, b"data", {"long": "a" * 3000})
        with pytest.raises(InvalidArgument):
            store.walk("labels.long~=(a+)+$")
        with pytest.raises(InvalidArgument):
            list(store.walk("labels.long~=.*.*.*x"))
        assert len(list(store.walk("labels.long~=a+$"))) == 1
