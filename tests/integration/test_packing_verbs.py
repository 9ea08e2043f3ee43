"""`convert`, `layer` and `inspect` on a real registry, and what skopeo and umoci make of the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobtee.compression import Type
from blobtee.oci import Platform
from blobtee.testing import ImageSource, image, index
from blobtee.testing.images import Files
from tests.integration.servers import DockerRegistry, tool

FILES: list[Files] = [
    {"etc": None, "etc/name": b"base\n", "etc/gone": b"x", "data": b"0123456789abcdef" * 50_000},
    {"etc/name": b"top\n", "etc/.wh.gone": b"", "link": "etc/name"},
]


def blobtee(store: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "blobtee.cli", *arguments],
        env={**os.environ, "BLOBTEE_ROOT": str(store)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        [tool("skopeo"), "--insecure-policy", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def unpacked(layout: Path, tag: str, target: Path) -> Path:
    """The root file system that umoci makes of an image."""
    command = [tool("umoci"), "unpack", *([] if os.geteuid() == 0 else ["--rootless"]), "--image"]
    subprocess.run([*command, f"{layout}:{tag}", str(target)], check=True, capture_output=True, timeout=120)
    return target / "rootfs"


def on_registry(source: ImageSource, server: DockerRegistry, folder: Path, name: str) -> str:
    source.write_layout(folder, "v1")
    blobtee(folder.with_name("none"), "copy", "--quiet", f"oci:{folder}:v1", f"{server.host}/{name}")
    return f"{server.host}/{name}"


def check_tree(root: Path) -> None:
    assert (root / "etc" / "name").read_text() == "top\n"
    assert not (root / "etc" / "gone").exists()
    assert os.readlink(root / "link") == "etc/name"
    assert (root / "data").read_bytes() == b"0123456789abcdef" * 50_000


@pytest.mark.parametrize("kind", list(Type), ids=lambda kind: kind.value)
def test_other_tools_read_an_image_of_each_type(server: DockerRegistry, tmp_path: Path, kind: Type) -> None:
    name = on_registry(image(FILES, docker=True), server, tmp_path / "source", "team/app:v1")
    goal = f"{server.host}/team/{kind.value}:v1"
    said = blobtee(tmp_path / "store", "convert", name, goal, "--compression", kind.value, "--quiet")
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{goal}")
    manifest = json.loads(raw)
    if kind is not Type.GZIP:
        assert {layer["mediaType"] for layer in manifest["layers"]} == {kind.media_type}
    told = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{goal}"))
    assert said.strip() == f"{goal}@{told['Digest']}"
    skopeo("copy", "--src-tls-verify=false", f"docker://{goal}", f"oci:{tmp_path}/copied:v1")
    # umoci 0.4 knows no zstd, so that one it gets back as gzip from us.
    readable = tmp_path / "copied"
    if kind is Type.ZSTD:
        readable = tmp_path / "readable"
        blobtee(tmp_path / "store", "convert", goal, f"oci:{readable}:v1", "--compression", "gzip", "--quiet")
    check_tree(unpacked(readable, "v1", tmp_path / "bundle"))


def test_an_index_goes_through_with_all_its_platforms(server: DockerRegistry, tmp_path: Path) -> None:
    names = ("linux/amd64", "linux/arm64")
    source = index({name: image([*FILES, {"arch": name.encode()}], platform=Platform.parse(name)) for name in names})
    name = on_registry(source, server, tmp_path / "source", "team/app:v1")
    goal = f"{server.host}/team/zstd:v1"
    blobtee(tmp_path / "store", "convert", name, goal, "--compression", "zstd", "--quiet")
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{goal}", f"oci:{tmp_path}/copied:v1")
    for platform in names:
        architecture = platform.partition("/")[2]
        raw = skopeo("--override-arch", architecture, "inspect", "--config", "--tls-verify=false", f"docker://{goal}")
        assert json.loads(raw)["architecture"] == architecture


def test_a_layer_on_a_parent_is_an_image_that_others_unpack(server: DockerRegistry, tmp_path: Path) -> None:
    parent = on_registry(image(FILES), server, tmp_path / "source", "library/base:v1")
    app = tmp_path / "app" / "srv"
    app.mkdir(parents=True)
    (app / "main").write_text("print()\n")
    goal = f"{server.host}/team/app:v1"
    before = len(server.requests())
    blobtee(
        tmp_path / "store",
        *("layer", str(tmp_path / "app"), "--parent", parent, "-o", goal),
        *("--entrypoint", '["/srv/main", "-v"]', "--env", "A=1", "--quiet"),
    )
    layers = {layer.descriptor.digest for layer in image(FILES).layers}
    moved = [path for method, path, _, _ in server.requests()[before:] if method == "GET" and "/blobs/" in path]
    assert not any(digest in path for digest in layers for path in moved), "the parent's layers stay where they are"
    skopeo("copy", "--src-tls-verify=false", f"docker://{goal}", f"oci:{tmp_path}/copied:v1")
    root = unpacked(tmp_path / "copied", "v1", tmp_path / "bundle")
    check_tree(root)
    assert (root / "srv" / "main").read_text() == "print()\n"
    config = json.loads(skopeo("inspect", "--config", "--tls-verify=false", f"docker://{goal}"))
    assert (config["config"]["Entrypoint"], config["config"]["Env"]) == (["/srv/main", "-v"], ["A=1"])


def test_an_interrupted_conversion_leaves_no_name_and_nothing_half(server: DockerRegistry, tmp_path: Path) -> None:
    big = image([{f"f{number}": os.urandom(1 << 20) * 4 for number in range(24)}])
    name = on_registry(big, server, tmp_path / "source", "team/app:v1")
    store = tmp_path / "store"
    blobtee(store, "pull", "--lazy", "--quiet", name)
    goal = f"{server.host}/team/zstd:v1"
    command = [sys.executable, "-m", "blobtee.cli", "convert", name, goal, "--compression", "zstd", "--level", "19"]
    running = subprocess.Popen(
        [*command, "--progress", "rawjson"],
        env={**os.environ, "BLOBTEE_ROOT": str(store)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if '"convert"' in line and json.loads(line)["current"]:
            break
    running.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, rest = running.communicate(timeout=60)
    assert running.returncode == 130
    assert time.monotonic() - began < 30
    assert "Traceback" not in rest
    assert list((store / "ingest").iterdir()) == []
    assert not [path for method, path, _, _ in server.requests() if method == "PUT" and "zstd/manifests" in path]
    # Again, and quicker, it comes to its end.
    blobtee(store, *command[3:-2], "--quiet")
    assert json.loads(blobtee(store, "inspect", "--json", goal))["layers"][0]["compression"] == "zstd"
