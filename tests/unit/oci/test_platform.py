from __future__ import annotations

import platform as host

import pytest

from blobtee.errors import InvalidArgument, InvalidDocument
from blobtee.oci import Platform


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("linux/amd64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AArch64", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("windows/amd64", "windows/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
    ],
)
def test_platforms_are_read(text: str, meaning: str) -> None:
    assert str(Platform.parse(text)) == meaning


@pytest.mark.parametrize("text", ["", "/", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/amd64\n", "é"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/amd64/v1", 0),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64/v3", "linux/amd64/v3", 0),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64", "windows/amd64", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v8", "linux/arm64", 0),
        ("linux/arm", "linux/arm/v7", 0),
        ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm/v7", None),
        ("linux/s390x", "linux/s390x", 0),
        ("linux/s390x", "linux/ppc64le", None),
    ],
)
def test_what_runs_where(wanted: str, offered: str, rank: int | None) -> None:
    assert Platform.parse(wanted).rank(Platform.parse(offered)) == rank


@pytest.mark.parametrize(
    ("machine", "meaning"), [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7")]
)
def test_this_machine(machine: str, meaning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "machine", lambda: machine)
    assert str(Platform.current()) == meaning


def test_json_survives_a_round_trip() -> None:
    value = {
        "os": "windows",
        "architecture": "amd64",
        "variant": "v2",
        "os.version": "10.0.17763",
        "os.features": ["win32k"],
    }
    assert Platform.from_json(value).to_json() == value
    wanted = Platform("windows", "amd64", os_version="10.0.17763")
    assert wanted.rank(Platform("windows", "amd64", os_version="10.0.20348")) is None


@pytest.mark.parametrize("value", [{"os": 1}, {"architecture": ["x"]}, {"os.features": "x"}, {"variant": {"a": 1}}])
def test_hostile_json_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidDocument):
        Platform.from_json(value)
