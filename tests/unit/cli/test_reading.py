"""`cat` and `ls` of lazy images: how much is asked of the registry."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blobtee.testing import MemoryRegistry
from tests.unit.cli.conftest import Run

NOISE = random.Random(5).randbytes(6 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "etc").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "before").write_bytes(NOISE)
    (folder / "etc" / "conf").write_bytes(b"setting\n")
    (folder / "link").symlink_to("etc/conf")
    (folder / "zz").write_bytes(NOISE[::-1])
    return folder


@pytest.mark.parametrize("kind", ["gzip", "zstd", "estargz"])
def test_one_small_file_takes_few_requests_and_bytes(
    run: Run, server: MemoryRegistry, folder: Path, tmp_path: Path, kind: str
) -> None:
    name = f"{server.host}/team/app:1.0"
    assert run("layer", str(folder), "--compression", kind, "-o", name).status == 0
    elsewhere = ("--root", str(tmp_path / "elsewhere"))
    assert run("pull", *elsewhere, "--lazy", name).status == 0
    before = server.counters.sent["blob"], sum(server.counters.requests.values())
    assert run("cat", *elsewhere, name, "/link").out == b"setting\n"
    assert server.counters.sent["blob"] - before[0] <= 1 << 20
    assert sum(server.counters.requests.values()) - before[1] <= 3
    listed = run("ls", *elsewhere, name, "/etc").text.split()
    assert listed == ["/etc/conf"]
    assert run("ls", *elsewhere, "--trust", "blob", name, "/bin").text.split() == ["/bin/before"]
    assert server.counters.sent["blob"] - before[0] > 12 << 20, "the layer was filled"
    assert run("cat", *elsewhere, "--trust", "blob", name, "/zz").out == NOISE[::-1]
    assert run("cat", *elsewhere, "--trust", "much", name, "/zz").status == 2


def test_a_layer_without_a_table_is_filled(run: Run, server: MemoryRegistry, folder: Path, tmp_path: Path) -> None:
    name = f"{server.host}/team/app:1.0"
    assert run("layer", str(folder), "--compression", "uncompressed", "-o", name).status == 0
    elsewhere = ("--root", str(tmp_path / "elsewhere"))
    assert run("pull", *elsewhere, "--lazy", name).status == 0
    before = server.counters.sent["blob"]
    assert run("cat", *elsewhere, "--trust", "raw", name, "/etc/conf").out == b"setting\n"
    assert server.counters.sent["blob"] - before < 2 << 20
    assert run("cat", *elsewhere, name, "/etc/conf").out == b"setting\n"
    assert server.counters.sent["blob"] - before > 12 << 20
