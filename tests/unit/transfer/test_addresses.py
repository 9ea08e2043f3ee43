from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.errors import InvalidArgument, InvalidReference
from blobtee.oci import Reference
from blobtee.transfer import FileAddress, Form, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("python:3.12", Reference("docker.io", "library/python", "3.12")),
        ("docker://r.example/a:1", Reference("r.example", "a", "1")),
        ("oci:dir", FileAddress(Form.LAYOUT, Path("dir"))),
        ("oci:/a/b:latest", FileAddress(Form.LAYOUT, Path("/a/b"), "latest")),
        ("oci:x:docker.io/a/b:1", FileAddress(Form.LAYOUT, Path("x"), "docker.io/a/b:1")),
        ("oci-archive:f.tar", FileAddress(Form.OCI_ARCHIVE, Path("f.tar"))),
        ("docker-archive:f.tar:a:1", FileAddress(Form.DOCKER_ARCHIVE, Path("f.tar"), "a:1")),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, address: object) -> None:
    assert parse(text) == address


@pytest.mark.parametrize("text", ["oci:", "oci-archive::x", "oci:a\0b"])
def test_an_address_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="a path must follow"):
        parse(text)


def test_what_is_no_address_at_all_is_refused_as_a_name() -> None:
    with pytest.raises(InvalidReference):
        parse("not a name")


@pytest.mark.parametrize("text", ["oci:/a/b:latest", "docker-archive:f.tar", "oci-archive:f:v1"])
def test_an_address_prints_as_it_was_written(text: str) -> None:
    assert str(parse(text)) == text
