from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.errors import BlobteeError, InvalidReference
from blobtee.oci import Digest, Reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("python", "docker.io", "library/python", "latest", None),
        ("python:3.12", "docker.io", "library/python", "3.12", None),
        ("team/app", "docker.io", "team/app", "latest", None),
        ("docker.io/python", "docker.io", "library/python", "latest", None),
        ("index.docker.io/team/app:1", "docker.io", "team/app", "1", None),
        ("localhost/app", "localhost", "app", "latest", None),
        ("localhost:5000/app:v1", "localhost:5000", "app", "v1", None),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c", "latest", None),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", None),
        ("ghcr.io/team/app:v1.2.3-rc_1", "ghcr.io", "team/app", "v1.2.3-rc_1", None),
        (f"python@{DIGEST}", "docker.io", "library/python", "", DIGEST),
        (f"python:3.12@{DIGEST}", "docker.io", "library/python", "3.12", DIGEST),
        (f"host:1/a__b/c--d/e.f@{DIGEST}", "host:1", "a__b/c--d/e.f", "", DIGEST),
        ("HOST/app", "HOST", "app", "latest", None),
        ("a:" + "t" * 128, "docker.io", "library/a", "t" * 128, None),
    ],
)
def test_names_mean_what_they_mean_elsewhere(
    text: str, host: str, repository: str, tag: str, digest: str | None
) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.tag, reference.digest) == (host, repository, tag, digest)
    assert Reference.parse(str(reference), default_tag=tag) == reference
    assert reference.identifier == (digest or tag)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "/",
        ":tag",
        "a:",
        "a@",
        "a/",
        "/a",
        "a//b",
        "Python",
        "team/App",
        "a b",
        "a\n",
        "a:b\n",
        "a:tag with space",
        "a:" + "t" * 129,
        "a:.hidden",
        "a@sha256:123",
        f"a@sha256:{HEX.upper()}",
        f"a@md5:{HEX}",
        f"a@{DIGEST}@{DIGEST}",
        "a_-b",
        "-a",
        "a-",
        "a..b",
        "host:port/a",
        "host:123456/a",
        "host_name.x/a",
        "[::1/a",
        HEX,
        "http://host/a",
        "a/" * 128 + "a",
        "ä",
        "host.io/",
    ],
)
def test_what_is_malformed_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["", f"@{DIGEST}"])
def test_no_name_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InvalidReference, match="no name of an image"):
        Reference.parse(text)


def test_errors_of_long_names_stay_short() -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse("A" * 100_000)
    assert len(str(caught.value)) < 500


def test_tag_and_digest_replace_each_other() -> None:
    reference = Reference.parse(f"host.io/a:1@{DIGEST}")
    assert str(reference.with_tag("2")) == "host.io/a:2"
    assert str(reference.with_digest(DIGEST)) == f"host.io/a@{DIGEST}"
    assert reference.name == "host.io/a"


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
hosts = st.builds(
    lambda parts, port: ".".join(parts) + port,
    st.lists(labels, min_size=2, max_size=3),
    st.just("") | st.integers(0, 65535).map(lambda port: f":{port}"),
)
components = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True).filter(lambda c: len(c) < 30)
tags = st.just("") | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digests = st.none() | st.binary(max_size=3).map(Digest.of)


@given(hosts, st.lists(components, min_size=1, max_size=4), tags, digests)
def test_names_survive_a_round_trip(host: str, path: list[str], tag: str, digest: Digest | None) -> None:
    text = f"{host}/{'/'.join(path)}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = Reference.parse(text, default_tag="latest")
    assert reference.digest == digest
    assert reference.tag == (tag or ("" if digest else "latest"))
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BlobteeError:
        return
    assert Reference.parse(str(reference)) == reference
