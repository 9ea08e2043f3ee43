from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.cache import labels
from blobtee.errors import InvalidReference


def test_a_source_keeps_its_port_its_order_and_has_no_duplicates() -> None:
    annotations: dict[str, str] = {}
    for name in ("host:5000/b/c:1", "host:5000/a@sha256:" + "0" * 64, "host:5000/b/c:2", "python"):
        annotations |= labels.with_source(annotations, name)
    assert annotations == {
        "containerd.io/distribution.source.host:5000": "b/c,a",
        "containerd.io/distribution.source.docker.io": "library/python",
    }
    with pytest.raises(InvalidReference):
        labels.with_source({}, "Not A Name")


def test_sources_are_read_with_and_without_the_port() -> None:
    written = {labels.SOURCE + "host:5000": "b,a", labels.SOURCE + "host": "a,c", labels.SOURCE + "other": "x"}
    assert labels.repositories(written, "host:5000") == ["b", "a", "c"]
    assert labels.repositories(written, "host") == ["a", "c"]
    assert labels.repositories({}, "host") == []


def test_merged_sources_fit_a_label() -> None:
    many = ",".join(f"repository{n}" for n in range(1000))
    merged = labels.merged_sources({labels.SOURCE + "h": "first"}, {labels.SOURCE + "h": many, "other": "x"})
    assert list(merged) == [labels.SOURCE + "h"]
    value = merged[labels.SOURCE + "h"]
    assert value.startswith("first,repository0,")
    assert len(value) + len(labels.SOURCE + "h") <= labels.MAX_LABEL


def test_links_are_sorted_and_broken_ones_passed_over() -> None:
    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    written = {labels.LINK + b: b, labels.LINK + a: a, labels.LINK + "x": "no digest", "other": b}
    assert labels.links(written) == [a, b]


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00.5+01:00", 500_000_000),
        ("2024-05-01T12:00:00.000000001Z", 1_714_564_800_000_000_001),
        ("yesterday", None),
        ("2024-05-01T12:00:00", None),
        ("2024-05-01T12:00:00.Z", None),
        ("", None),
    ],
)
def test_times_are_read(text: str, nanoseconds: int | None) -> None:
    assert labels.from_rfc3339(text) == nanoseconds


@given(st.integers(0, 253_402_300_799 * 10**9))
def test_times_survive_a_round_trip(nanoseconds: int) -> None:
    assert labels.from_rfc3339(labels.rfc3339(nanoseconds)) == nanoseconds
