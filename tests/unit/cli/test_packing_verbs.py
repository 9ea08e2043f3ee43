"""`convert`, `inspect`, and `--compression` of pull, push and copy: what they print, and their exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blobtee.oci import Compressed, Platform, mediatypes
from blobtee.testing import ImageSource, MemoryRegistry, image, index, layer

from .conftest import Run

ZSTD = mediatypes.OCI_LAYER + "+zstd"


def source_of() -> ImageSource:
    return image([{"a": b"a" * 3000}, layer({"b\x1b": b"b" * 3000}, compression=Compressed.ZSTD)])


def types(server: MemoryRegistry, repository: str, tag: str = "1") -> list[str]:
    return [desc["mediaType"] for desc in json.loads(server.document(repository, tag).raw)["layers"]]


def test_convert_prints_where_the_image_is_and_makes_no_store(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    name = source_of().push(server, "app")
    result = run("convert", name, f"{server.host}/out:1", "--compression", "zstd")
    digest = server.document("out", "1").digest
    assert (result.status, result.text) == (0, f"{server.host}/out:1@{digest}\n")
    assert "2 mounted, 1 uploaded" in result.err
    assert types(server, "out") == [ZSTD, ZSTD]
    assert not (tmp_path / "store").exists()
    value = json.loads(run("convert", "--json", name, f"{server.host}/out:1", "--compression", "zstd").out)
    assert (value["digest"], "dropped" in value) == (digest, False)


def test_convert_keeps_what_it_made_where_there_is_a_store(server: MemoryRegistry, run: Run) -> None:
    name = source_of().push(server, "app")
    run("pull", "--lazy", name)
    run("convert", name, f"{server.host}/out:1", "--compression", "zstd", "--level", "1", "--force")
    server.reset()
    run("convert", name, f"{server.host}/out:2", "--compression", "zstd", "--level", "1", "--force")
    assert server.counters.sent["blob"] == 0
    assert server.document("out", "1").digest == server.document("out", "2").digest


def test_convert_shows_its_progress(server: MemoryRegistry, run: Run) -> None:
    source = source_of()
    name = source.push(server, "app")
    result = run("convert", "--progress", "rawjson", name, f"{server.host}/out:1", "--compression", "zstd")
    events = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    told = [event for event in events if event["action"] == "convert"]
    assert {event["digest"] for event in told} == {source.layers[0].descriptor.digest}
    assert told[-1]["completed"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Missing option '--compression'. Choose from: uncompressed, gzip, estargz, zstd"),
        (["--compression", "lzma"], "'lzma' is not one of"),
        (["--compression", "zstd", "--level", "23"], "levels 1 to 22"),
        (["--compression", "uncompressed", "--level", "1"], "no levels"),
        (["--compression", "zstd", "--level", "x"], "not a valid integer"),
        (["--compression", "zstd", "--epoch", "-1"], "--epoch"),
        (["--compression", "zstd", "--epoch", "2024-01-01"], "--epoch"),
        (["--compression", "zstd", "--epoch", str(2**62)], "--epoch"),
    ],
)
def test_nonsense_is_wrong_usage(run: Run, arguments: list[str], reason: str) -> None:
    result = run("convert", "a/b:c", "oci:/nowhere", *arguments)
    assert result.status == 2
    assert reason in result.err


@pytest.mark.parametrize("verb", ["pull", "push", "copy"])
def test_a_level_needs_a_compression(run: Run, verb: str) -> None:
    result = run(verb, "--level", "3", *(["a/b:c"] if verb == "pull" else ["a/b:c", "oci:/nowhere"]))
    assert (result.status, "--level belongs to --compression" in result.err) == (2, True)


def test_pull_push_and_copy_convert(server: MemoryRegistry, run: Run) -> None:
    name = source_of().push(server, "app", "1")
    pulled = run("pull", "--lazy", "--compression", "zstd", "--json", name)
    assert [desc["mediaType"] for desc in json.loads(pulled.out)["layers"]] == [ZSTD, ZSTD]
    assert run("push", "--compression", "uncompressed", name, f"{server.host}/pushed:1").status == 0
    assert types(server, "pushed") == [mediatypes.OCI_LAYER] * 2
    assert run("copy", "--compression", "gzip", name, f"{server.host}/copied:1").status == 0
    assert types(server, "copied") == [mediatypes.OCI_LAYER + "+gzip"] * 2
    assert run("cat", name, "/a").out == b"a" * 3000


def test_what_a_conversion_leaves_out_is_said(server: MemoryRegistry, run: Run) -> None:
    source = source_of()
    source.push(server, "app")
    statement = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": {"mediaType": "text/x", "digest": server.add_blob("app", b"{}"), "size": 2},
        "layers": [],
    }
    digest = server.add_document("app", json.dumps(statement).encode(), mediatypes.OCI_MANIFEST)
    attestation = {
        "mediaType": mediatypes.OCI_MANIFEST,
        "digest": digest,
        "size": len(json.dumps(statement)),
        "annotations": {"vnd.docker.reference.digest": source.descriptor.digest},
    }
    members = [{**source.descriptor.to_json(), "platform": Platform.current().to_json()}, attestation]
    server.add_document("app", json.dumps({"schemaVersion": 2, "manifests": members}).encode(), "", "all")
    result = run("convert", "--json", f"{server.host}/app:all", f"{server.host}/out:1", "--compression", "zstd")
    assert json.loads(result.out)["dropped"] == [digest]
    assert "left out: 1 attestations" in result.err


def test_inspect_tells_of_a_remote_image_and_keeps_nothing(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    source = image(
        [{"a": b"a" * 3000}, layer({"b": b"b" * 3000}, compression=Compressed.ZSTD)],
        config={"config": {"Cmd": ["sh", "\x1b[2J"], "WorkingDir": "/srv"}, "created": "2020-01-01T00:00:00Z"},
    )
    name = source.push(server, "app", "1")
    result = run("inspect", name)
    lines = result.text.splitlines()
    assert (result.status, lines[0]) == (0, f"{name}@{source.descriptor.digest}")
    assert "created     2020-01-01T00:00:00Z" in lines
    assert r'cmd         ["sh", "\u001b[2J"]' in lines, "a command is written as --cmd takes it"
    assert "workingdir  /srv" in lines
    assert "\x1b" not in result.text
    first, second = source.layers
    assert [line.split() for line in lines[-2:]] == [
        ["lazy", first.descriptor.digest, str(len(first.data)), "B", "gzip"],
        ["lazy", second.descriptor.digest, str(len(second.data)), "B", "zstd"],
    ]
    assert not (tmp_path / "store").exists()


def test_inspect_as_json_is_one_object_with_everything(server: MemoryRegistry, run: Run) -> None:
    source = source_of()
    name = source.push(server, "app", "1")
    run("pull", "--lazy", name)
    run("push", "--compression", "zstd", name, f"{server.host}/out:1")
    value = json.loads(run("inspect", "--json", name).out)
    assert (value["name"], value["digest"], value["platforms"]) == (name, source.descriptor.digest, [])
    assert value["config"]["contents"] == json.loads(source.config)
    first, second = value["layers"]
    assert (first["lazy"], first["compression"], first["diffId"]) == (False, "gzip", source.layers[0].diff_id)
    assert [variant["compression"] for variant in first["variants"]] == ["zstd"]
    assert (second["lazy"], second["compression"], second["variants"]) == (True, "zstd", [])
    assert second["chainId"].startswith("sha256:")
    text = run("inspect", name).text
    assert "  here " in text
    assert "variant" in text


def test_inspect_raw_prints_the_bytes_as_they_are(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    source = index({"linux/amd64": image([{"a": b""}]), "linux/arm64": image([{"b": b""}])})
    name = source.push(server, "app")
    assert run("inspect", "--raw", name).out == source.manifest
    one = run("inspect", "--raw", "--platform", "linux/arm64", name).out
    assert json.loads(one)["layers"]
    told = run("inspect", "--platform", "linux/arm64", name).text
    assert "index of    linux/amd64, linux/arm64" in told
    assert run("inspect", f"{server.host}/none:1").status == 3
    assert run("inspect", f"oci:{tmp_path}/none").status == 3
    assert run("inspect", "Not A Name").status != 0
