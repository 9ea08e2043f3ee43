"""`blobtee gc` and `blobtee rm`: what they print, and their exit status."""

from __future__ import annotations

import json
from pathlib import Path

from blobtee.testing import MemoryRegistry, image
from blobtee.testing.images import Files

from .conftest import Run

FILES: list[Files] = [{"a": b"base " * 99}, {"b": b"top " * 99}]


def test_an_image_is_forgotten_and_its_blobs_are_collected(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    run("pull", name)
    nbytes = sum(len(layer.data) for layer in source.layers) + len(source.config) + len(source.manifest)
    kept = json.loads(run("gc", "--json", "--grace", "0").out)
    assert (kept["freed"], kept["kept"]["images"]) == (0, {"blobs": 4, "size": nbytes})
    removed = run("rm", name)
    assert (removed.status, removed.text) == (0, f"{name}\n")
    assert "blobtee gc" in removed.err
    young = run("gc")
    assert (young.status, young.out) == (0, b"")
    assert "4 blobs" in young.err.splitlines()[-1]
    assert "not 3600 seconds old: see --grace" in young.err
    planned = run("gc", "--grace", "0", "--dry-run")
    assert "4 blobs, 0 partial blobs, 2 refs and 0 leases would be removed" in planned.err
    assert len(run("blobs").text.splitlines()) == 4
    done = run("gc", "--grace", "0")
    assert (done.status, done.out) == (0, planned.out)
    config = json.loads(source.manifest)["config"]["digest"]
    layers = [layer.descriptor.digest for layer in source.layers]
    gone = [line.split()[0] for line in done.text.splitlines()]
    assert sorted(gone) == sorted([*layers, config, source.descriptor.digest])
    assert run("blobs").out == b""


def test_json_is_one_object_with_all_that_went(server: MemoryRegistry, run: Run) -> None:
    name = image(FILES).push(server, "app")
    run("pull", name)
    assert json.loads(run("rm", "--json", name).out)["name"] == name
    value = json.loads(run("gc", "--json", "-q", "--grace", "0", "--dry-run").out)
    assert value["dryRun"] is True
    assert value["freed"] == sum(blob["size"] for blob in value["blobs"]) > 0
    assert (len(value["refs"]), value["leases"], value["ingests"], value["problems"]) == (2, [], [], [])


def test_names_that_are_not_known_leave_all_as_it_is(server: MemoryRegistry, run: Run) -> None:
    name = image(FILES).push(server, "app")
    run("pull", name)
    result = run("rm", name, "other")
    assert (result.status, result.out) == (3, b"")
    assert "other" in result.err
    assert run("rm", name, name).text == f"{name}\n"
    assert run("rm", name).status == 3
    assert run("rm").status == 2


def test_a_damaged_document_is_told_and_nothing_is_removed(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    run("pull", image(FILES).push(server, "app"))
    index = tmp_path / "store" / "index.json"
    value = json.loads(index.read_text())
    value["manifests"][0]["digest"] = "sha256:" + "0" * 64
    index.write_text(json.dumps(value))
    result = run("gc", "--grace", "0")
    assert (result.status, result.out) == (1, b"")
    assert "sha256:000" in result.err
    assert "nothing is removed" in result.err
    assert len(run("blobs").text.splitlines()) == 4


def test_a_grace_that_makes_no_sense_is_wrong_usage(run: Run) -> None:
    for grace in ("-1", "nan", "inf", "soon"):
        assert run("gc", "--grace", grace).status == 2
