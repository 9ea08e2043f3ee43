from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click import UsageError
from click.testing import CliRunner

from blobtee.cli.containerd import config as command
from blobtee.errors import InvalidDocument, NotFound
from blobtee.plugin.containerd import BUILT_IN, check, configuration, content_sockets, installed_version, load

SOCKET = Path("/run/blobtee/blobtee.sock")


@pytest.mark.parametrize("major", [1, 2, 3])
def test_what_is_printed_is_right(major: int) -> None:
    config = tomllib.loads(configuration(major, SOCKET, "other"))
    assert check(config, major) == []
    assert config["version"] == (2 if major == 1 else 3)
    assert config["proxy_plugins"]["other"]["address"] == str(SOCKET)


@pytest.mark.parametrize(
    ("change", "to", "said"),
    [
        ('disabled_plugins = ["io.containerd.content.v1.content"]', "", "the built-in store is not disabled"),
        ('address = "/run', 'address = "unix:///run', "has a scheme"),
        ('address = "/run', 'address = "run', "no absolute path"),
        ('address = "/run/blobtee/blobtee.sock"', "", "has no address"),
        ("version = 2", "version = 3", "version = 3"),
        ("version = 2", "", "an old form"),
        ('type = "content"', 'type = "snapshot"', "no proxy plugin"),
        ('["io.containerd.content.v1.content"]', '["io.containerd.content.v1.blobtee"]', "itself is disabled"),
        (
            '"io.containerd.content.v1.blobtee", ',
            "",
            "io.containerd.content.v1.blobtee is not required",
        ),
        (
            "[proxy_plugins.blobtee]",
            '[proxy_plugins.more]\ntype = "content"\n[proxy_plugins.blobtee]',
            "2 proxy plugins",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(change: str, to: str, said: str) -> None:
    text = configuration(1, SOCKET, "blobtee")
    assert change in text
    problems = check(tomllib.loads(text.replace(change, to, 1)), 1)
    assert any(said in problem.what for problem in problems)
    assert all(problem.cure for problem in problems)


def test_the_form_of_newer_versions_is_right_where_it_is_read() -> None:
    """`containerd config default` writes version 4 since 2.3."""
    config = {**tomllib.loads(configuration(2, SOCKET, "blobtee")), "version": 4}
    assert check(config, 2) == check(config, 2, 3) == check(config, 2, 4) == []
    for old in ((1, 7), (2, 2)):
        (problem,) = check(config, *old)
        assert "version = 4" in problem.what
    assert check({**config, "version": 5}, 2)


@pytest.mark.parametrize("nonsense", [{}, {"proxy_plugins": 3, "disabled_plugins": "x"}, {"proxy_plugins": {"a": 1}}])
def test_nonsense_has_problems(nonsense: dict[str, object]) -> None:
    assert check(nonsense, 2)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load(tmp_path / "absent")
    (tmp_path / "bad").write_bytes(b"\xff = [")
    with pytest.raises(InvalidDocument):
        load(tmp_path / "bad")


def test_imports_are_joined_as_containerd_joins_them(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    main = tmp_path / "config.toml"
    main.write_text(
        'version = 2\nimports = ["conf.d/*.toml", "nothing-*.toml", "once.toml"]\ndisabled_plugins = ["a"]\n'
        '[proxy_plugins.blobtee]\ntype = "content"\naddress = "/before"\n'
    )
    (tmp_path / "conf.d" / "1.toml").write_text(
        f'version = 2\ndisabled_plugins = ["a", "{BUILT_IN}"]\n'
        f'imports = ["{main}", "../config.toml", "../once.toml", "*.toml"]\n'
        '[proxy_plugins.blobtee]\ntype = "content"\naddress = "/after"\n'
    )
    (tmp_path / "conf.d" / ".hidden.toml").write_text('required_plugins = ["x"]\nimports = ["../conf.d/*.toml"]\n')
    (tmp_path / "once.toml").write_text('required_plugins = ["x"]\n')
    loaded = load(main)
    assert loaded["disabled_plugins"] == ["a", BUILT_IN]
    assert loaded["required_plugins"] == ["x"]
    assert content_sockets(loaded) == [Path("/after")]
    assert all(not problem.fatal for problem in check(loaded, 1))
    main.write_text('version = 2\nimports = ["absent.toml"]\n')
    with pytest.raises(NotFound, match=r"absent\.toml"):
        load(main)


def test_the_version_that_is_installed(tmp_path: Path) -> None:
    program = tmp_path / "containerd"
    program.write_text("#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1\n")
    program.chmod(0o755)
    assert installed_version(str(program)) == (1, 6)
    program.write_text("#!/bin/sh\necho containerd github.com/containerd/containerd/v2 v2.4.2 abcdef1.2\n")
    assert installed_version(str(program)) == (2, 4)
    program.write_text("#!/bin/sh\n")
    with pytest.raises(NotFound):
        installed_version(str(program))
    with pytest.raises(NotFound):
        installed_version(str(tmp_path / "absent"))


def test_the_verb(tmp_path: Path) -> None:
    runner = CliRunner()
    printed = runner.invoke(command, ["--for", "2", "--socket", "/run/x.sock"], standalone_mode=False)
    assert tomllib.loads(printed.stdout)["proxy_plugins"]["blobtee"]["address"] == "/run/x.sock"
    file = tmp_path / "config.toml"
    file.write_text(printed.stdout)
    good = runner.invoke(command, ["--for", "2", "--check", str(file)], standalone_mode=False)
    assert (good.return_value, good.stdout) == (0, "")
    file.write_text(printed.stdout.replace("/run/x.sock", "unix:///run/x.sock"))
    bad = runner.invoke(command, ["--for", "2", "--check", str(file), "--json"], standalone_mode=False)
    assert bad.return_value == 1
    (problem,) = map(json.loads, bad.stdout.splitlines())
    assert problem["cure"] == "write it as a path: /run/x.sock"
    with pytest.raises(UsageError, match="without unix://"):
        runner.invoke(command, ["--socket", "unix:///run/x.sock"], standalone_mode=False, catch_exceptions=False)
