"""`pull --fill`, with hints and a bandwidth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blobtee.testing import MemoryRegistry, image
from tests.unit.cli.conftest import Run


@pytest.fixture
def name(server: MemoryRegistry) -> str:
    return image([{"etc/name": b"base" * 1000}, {"usr/big": bytes(100_000)}]).push(server, "team/app", "v1")


def test_fill_tells_the_name_first_and_then_what_came(run: Run, name: str, tmp_path: Path) -> None:
    (tmp_path / "hints").write_bytes(b"/etc/name\r\n\nno\xff\x1bthing\n/usr\n")
    result = run("pull", "--fill", "--hints", str(tmp_path / "hints"), "--bandwidth", "80Mbit/s", "--json", name)
    assert result.status == 0
    told, came = map(json.loads, result.text.splitlines())
    assert (told["name"], told["lazy"]) == (name, True)
    assert (came["filled"], came["hints"], came["missing"]) == (True, 3, ["no\udcff\x1bthing"])
    assert came["prefetched"] > 0
    assert "warning: hints that are not in the image: no" in result.err
    assert "\x1b" not in result.err
    assert run("cat", name, "/etc/name").out == b"base" * 1000
    assert run("pull", "--fill", name).status == 0


def test_hints_alone_leave_the_rest(run: Run, name: str, tmp_path: Path, server: MemoryRegistry) -> None:
    (tmp_path / "hints").write_bytes(b"/usr/big")
    result = run("pull", "--lazy", "--hints", str(tmp_path / "hints"), name)
    assert result.status == 0
    assert result.text.startswith(f"{name}@")
    assert "1 hint brought" in result.err
    inspected = json.loads(run("inspect", "--json", name).text)
    assert [layer["lazy"] for layer in inspected["layers"]] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hints", "-"], "--lazy or --fill"),
        (["--fill", "--hints", "/nowhere"], "/nowhere"),
        (["--bandwidth", "5Mb/s"], "write 5MB/s for bytes, 40Mbit/s for bits"),
        (["--fill", "--bandwidth", "7"], "at least 1 kB/s"),
        (["--lazy", "--fill", "--socket", "/nowhere"], "--socket"),
    ],
)
def test_wrong_usage(run: Run, name: str, arguments: list[str], said: str) -> None:
    result = run("pull", *arguments, name)
    assert result.status == 2
    assert said in result.err
