"""Configurations that are made of others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blobtee.errors import InvalidArgument, InvalidDocument
from blobtee.oci import Config, Digest, Platform
from blobtee.oci.documents import MAX_EPOCH, check_epoch, parse_config, rfc3339, to_raw

ONE, TWO, THREE = (f"sha256:{number * 64}" for number in "123")
AMD64 = Platform("linux", "amd64")


def config(**members: Any) -> Config:
    settings = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [ONE]}}
    return parse_config(json.dumps({**settings, **members}).encode())


def test_an_empty_configuration_has_a_platform_and_no_layers() -> None:
    made = Config.scratch(Platform("linux", "arm", "v7"))
    assert (made.platform, made.diff_ids) == (Platform("linux", "arm", "v7"), ())
    assert made.raw == Config.scratch(Platform("linux", "arm", "v7")).raw


def test_other_diff_ids_change_nothing_else() -> None:
    before = config(author="somebody", config={"Cmd": ["a"]}, unknown={"x": [1]})
    after = before.with_diff_ids([TWO])
    assert after.diff_ids == (Digest(TWO),)
    assert {**after.json, "rootfs": None} == {**before.json, "rootfs": None}


@pytest.mark.parametrize("words", ["python main.py", ["python", 3], [b"python"]])
@pytest.mark.parametrize("setting", ["cmd", "entrypoint"])
def test_a_command_is_a_list_of_words(setting: str, words: Any) -> None:
    with pytest.raises(InvalidArgument, match="is a list of words"):
        config().extended([ONE], **{setting: words})


def test_an_extended_configuration_tells_of_each_new_layer() -> None:
    base = config(history=[{"created_by": "first"}, {"created_by": "ENV", "empty_layer": True}], created="2020")
    made = base.extended([ONE, TWO, THREE], created=86_400, created_by="us")
    moment = "1970-01-02T00:00:00Z"
    assert made.json["created"] == moment
    assert made.json["history"] == [*base.json["history"], *[{"created": moment, "created_by": "us"}] * 2]
    assert [str(diff_id) for diff_id in made.diff_ids] == [ONE, TWO, THREE]


def test_without_a_new_layer_the_entry_of_the_history_says_so() -> None:
    made = config(created="2020").extended([ONE], cmd=["x"])
    assert made.json["history"] == [{"comment": "no history"}, {"created_by": "", "empty_layer": True}]
    assert "created" not in made.json
    assert made.json["config"] == {"Cmd": ["x"]}


def test_settings_are_replaced_and_tables_merged() -> None:
    base = config(
        config={
            "Env": ["PATH=/bin", "A=1", "EMPTY"],
            "Entrypoint": ["old"],
            "Cmd": ["old"],
            "Labels": {"a": "1", "b": "1"},
            "User": "root",
            "StopSignal": "SIGINT",
        }
    )
    made = base.extended(
        [ONE, TWO],
        entrypoint=["new"],
        env={"A": "2", "C": "x=y"},
        workdir="/srv",
        user="1000:1000",
        labels={"b": "2"},
    )
    assert made.json["config"] == {
        "Env": ["PATH=/bin", "A=2", "EMPTY=", "C=x=y"],
        "Entrypoint": ["new"],
        "Labels": {"a": "1", "b": "2"},
        "User": "1000:1000",
        "StopSignal": "SIGINT",
        "WorkingDir": "/srv",
    }
    assert base.extended([ONE, TWO], entrypoint=[], cmd=["c"]).json["config"]["Cmd"] == ["c"]


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0"}])
def test_a_variable_that_cannot_be_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="environment"):
        config().extended([ONE], env=env)


@pytest.mark.parametrize(
    "members",
    [
        {"config": []},
        {"config": {"Env": "A=1"}},
        {"config": {"Env": [1]}},
        {"config": {"Labels": ["a"]}},
        {"history": {"a": 1}},
        {"history": ["x"]},
    ],
)
def test_a_base_that_makes_no_sense_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocument):
        config(**members).extended([ONE], env={"A": "1"}, labels={"a": "b"})


def test_an_image_cannot_have_fewer_layers_than_its_base() -> None:
    with pytest.raises(InvalidArgument, match="cannot have 0"):
        config().extended([])


def test_moments_are_whole_seconds_up_to_the_year_9999() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(MAX_EPOCH) == "9999-12-31T23:59:59Z"
    check_epoch(None)
    for wrong in (-1, MAX_EPOCH + 1, 1.5, True):
        with pytest.raises(InvalidArgument):
            check_epoch(wrong)  # type: ignore[arg-type]


def test_a_value_that_is_no_json_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    with pytest.raises(InvalidDocument):
        to_raw(deep)
    while deep:  # level by level: freeing it at once would recurse as deeply
        deep = deep["x"]
