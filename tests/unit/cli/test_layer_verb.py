"""`blobtee layer`: directories to layer files and images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.compression import decompress
from blobtee.content import LocalStore
from blobtee.testing import MemoryRegistry, image

from .conftest import Run


@pytest.fixture
def app(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    (root / "srv").mkdir(parents=True)
    (root / "srv" / "main").write_text("new\n")
    return root


def names(raw: bytes) -> list[str]:
    with decompress(io.BytesIO(raw)) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        return archive.getnames()


@pytest.mark.parametrize(
    ("name", "magic", "media_type"),
    [
        ("a.tar", b"", "tar"),
        ("a.tar.gz", b"\x1f\x8b", "tar+gzip"),
        ("a.tgz", b"\x1f\x8b", "tar+gzip"),
        ("a.tar.zst", b"", "tar+zstd"),
        ("anything", b"\x1f\x8b", "tar+gzip"),
    ],
)
def test_a_layer_file_is_packed_as_its_name_says(
    run: Run, tmp_path: Path, app: Path, name: str, magic: bytes, media_type: str
) -> None:
    goal = tmp_path / name
    result = run("layer", str(app), "-o", str(goal), "--json")
    value = json.loads(result.out)
    raw = goal.read_bytes()
    assert raw.startswith(magic)
    assert names(raw) == ["srv", "srv/main"]
    assert (value["digest"], value["size"]) == (f"sha256:{hashlib.sha256(raw).hexdigest()}", len(raw))
    assert value["mediaType"].endswith(media_type)
    with decompress(io.BytesIO(raw)) as stream:
        assert value["diffId"] == f"sha256:{hashlib.sha256(stream.read()).hexdigest()}"
    assert not (tmp_path / "store").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("goal", ["app.tar.zst", "app.tgz", "./layer"])
def test_a_level_is_for_what_the_name_says(
    run: Run, app: Path, tmp_path: Path, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "srv/words").write_text("".join(f"{number:x} " for number in range(200_000)))
    monkeypatch.chdir(tmp_path)
    sizes = []
    for level in ("1", "12"):
        assert run("layer", str(app), "-o", goal, "--level", level).status == 0
        sizes.append((tmp_path / goal).stat().st_size)
    assert sizes[1] < sizes[0]
    assert "levels" in run("layer", str(app), "-o", goal, "--level", "99").err
    assert "no levels" in run("layer", str(app), "-o", "app.tar", "--level", "1").err


def test_a_relative_name_with_an_ending_is_a_file_too(
    run: Run, tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("layer", "app", "-o", "out.tar.zst", "--compression", "zstd", "--level", "19").status == 0
    assert run("layer", "app", "-o", "./plain", "--compression", "uncompressed").status == 0
    assert (tmp_path / "out.tar.zst").stat().st_size < (tmp_path / "plain").stat().st_size


def test_a_layer_on_standard_output_is_alone_there(run: Run, app: Path) -> None:
    result = run("layer", str(app), "-o", "-", "--epoch", "0")
    assert names(result.out) == ["srv", "srv/main"]
    assert f"sha256:{hashlib.sha256(result.out).hexdigest()}" in result.err
    assert hashlib.sha256(gzip.decompress(result.out)).hexdigest() in result.err
    assert run("layer", str(app), "-o", "-", "--epoch", "0").out == result.out
    assert run("layer", str(app), "-o", "-", "--json").status == 2


def test_source_date_epoch_is_honoured(run: Run, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = run("layer", str(app), "-o", "-", "--epoch", "1000").out
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    assert run("layer", str(app), "-o", "-").out == wanted
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert run("layer", str(app), "-o", "-").status == 2


def test_lower_gives_what_changed(run: Run, tmp_path: Path, app: Path) -> None:
    (tmp_path / "lower" / "gone").mkdir(parents=True)
    result = run("layer", str(app), "--lower", str(tmp_path / "lower"), "-o", "-")
    assert sorted(names(result.out)) == [".wh.gone", "srv", "srv/main"]


def test_overlay_turns_its_marks_into_deletions(run: Run, app: Path) -> None:
    try:
        os.setxattr(app / "srv", "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip("this file system has no user xattrs")
    plain = run("layer", str(app), "-o", "-").out
    marked = run("layer", str(app), "--overlay", "-o", "-").out
    assert "srv/.wh..wh..opq" not in names(plain)
    assert "srv/.wh..wh..opq" in names(marked)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "-", "--lower", ".", "--overlay"],
        ["-o", "a.tar", "--parent", "x"],
        ["-o", "a.tar", "--env", "A=1"],
        ["-o", "a.tar", "--platform", "linux/arm64"],
        ["-o", "a.tar.gz", "--compression", "zstd"],
        ["-o", "-", "--level", "99"],
        ["-o", "Not A Name"],
        ["-o", "oci:"],
        ["-o", "x/y", "--env", "A"],
        ["-o", "x/y", "--label", "=b"],
        ["-o", "x/y", "--cmd", '["a", 1]'],
        ["-o", "x/y", "--entrypoint", "[" * 100_000],
        ["-o", "x/y", "--parent", "Not A Name"],
        [],
    ],
)
def test_nonsense_is_wrong_usage(run: Run, app: Path, arguments: list[str]) -> None:
    result = run("layer", str(app), *arguments)
    assert (result.status, result.out) == (2, b"")


def test_a_layer_cannot_be_written_into_itself_or_over_a_directory(run: Run, app: Path, tmp_path: Path) -> None:
    inside = run("layer", str(app), "-o", str(app / "srv" / "out.tar"))
    assert (inside.status, "part of itself" in inside.err) == (2, True)
    (tmp_path / "folder.tar").mkdir()
    assert run("layer", str(app), "-o", str(tmp_path / "folder.tar")).status == 1
    assert run("layer", str(app), "-o", str(tmp_path / "none" / "a.tar")).status == 3
    assert run("layer", str(tmp_path / "nothing"), "-o", "-").status == 2


def test_an_image_on_a_parent_mounts_the_parent_s_layers(server: MemoryRegistry, run: Run, app: Path) -> None:
    source = image([{"etc/os": b"base\n"}], config={"config": {"Env": ["PATH=/bin"]}})
    parent = source.push(server, "library/base", "1")
    server.reset()
    result = run(
        "layer",
        str(app),
        "--parent",
        parent,
        "-o",
        f"{server.host}/team/app:1",
        "--cmd",
        '["cat", "/srv/main"]',
        "-e",
        "A=1=2",
        "-w",
        "/srv",
        "--user",
        "5:6",
        "-l",
        "who=us",
    )
    digest = server.document("team/app", "1").digest
    assert (result.status, result.text) == (0, f"{server.host}/team/app:1@{digest}\n")
    assert "1 mounted, 2 uploaded" in result.err
    layer_digest = source.layers[0].descriptor.digest
    assert layer_digest not in {entry.identifier for entry in server.entries("GET", "blob")}
    config = json.loads(run("inspect", "--json", f"{server.host}/team/app:1").out)["config"]["contents"]
    assert config["config"] == {
        "Env": ["PATH=/bin", "A=1=2"],
        "Cmd": ["cat", "/srv/main"],
        "WorkingDir": "/srv",
        "User": "5:6",
        "Labels": {"who": "us"},
    }
    run("pull", f"{server.host}/team/app:1")
    assert run("cat", f"{server.host}/team/app:1", "/srv/main").out == b"new\n"
    assert run("cat", f"{server.host}/team/app:1", "/etc/os").out == b"base\n"


def test_images_go_to_layouts_and_archives_too(run: Run, app: Path, tmp_path: Path) -> None:
    first = run("layer", str(app), "-o", f"oci:{tmp_path}/layout:v1", "--epoch", "0", "--entrypoint", "/srv/main")
    assert first.status == 0
    (app / "extra").write_text("x")
    second = run(
        "layer",
        str(app),
        "--lower",
        str(tmp_path / "layout"),
        "--parent",
        f"oci:{tmp_path}/layout:v1",
        "-o",
        f"docker-archive:{tmp_path}/a.tar",
    )
    assert second.status == 0
    assert run("cat", f"docker-archive:{tmp_path}/a.tar", "/extra").out == b"x"
    value = json.loads(run("inspect", "--json", f"docker-archive:{tmp_path}/a.tar").out)
    assert value["config"]["contents"]["config"] == {"Entrypoint": ["/srv/main"]}
    assert [layer["compression"] for layer in value["layers"]] == ["uncompressed"] * 2
    assert value["config"]["contents"]["history"][0] == {
        "created": "1970-01-01T00:00:00Z",
        "created_by": "blobtee layer",
    }


def test_the_same_directory_and_epoch_give_the_same_image(run: Run, app: Path, tmp_path: Path) -> None:
    digests = {
        run("layer", str(app), "-o", f"oci:{tmp_path}/{name}:x", "--epoch", "0").text.rpartition("@")[2]
        for name in ("one", "two")
    }
    assert len(digests) == 1


def test_nothing_of_a_layer_stays_but_its_blobs(server: MemoryRegistry, run: Run, app: Path, tmp_path: Path) -> None:
    parent = image([{"etc/os": b"base\n"}]).push(server, "base", "1")
    assert run("layer", str(app), "--parent", parent, "-o", f"{server.host}/app:1").status == 0
    assert run("layer", str(app), "-o", f"{server.host}/app:2", "--lower", str(tmp_path / "app" / "srv")).status == 0
    with LocalStore(tmp_path / "store") as store:
        manager = CacheManager(store)
        assert list(store.layout.names()) == [parent]
        assert all(record.blob is not None for record in manager.records.all())
        assert store.statuses() == []
