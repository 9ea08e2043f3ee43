"""What the README and the pages of docs/ show is run, on a registry in this process instead of the public ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blobtee.cli.app import VERBS
from blobtee.testing import ImageSource, MemoryRegistry, image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def source() -> ImageSource:
    return image([{"etc/os-release": b"NAME=demo\n"}, {"srv/data": bytes(100_000)}])


def snippets(page: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    return found


def run_python(page: Path, registry: MemoryRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's snippets one after another in one namespace, in `folder`, which has the directories they name."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    for name in ("app/srv", "tree/etc", "assets/img"):
        (folder / name).mkdir(parents=True)
        (folder / name / "main.py").write_text(f"print({name!r})\n")
    namespace: dict[str, object] = {}
    for snippet in snippets(page):
        code = (
            snippet.replace("docker.io/", f"{registry.host}/")
            .replace("registry.example/", f"{registry.host}/")
            .replace("/tmp/blobtee-example", str(folder / "store"))
        )
        exec(compile(code, page.name, "exec"), namespace)


def test_the_readmes_python_does_what_it_says(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MemoryRegistry() as registry:
        source.push(registry, "library/python", "3.12")
        run_python(ROOT / "README.md", registry, tmp_path, monkeypatch)
        assert registry.document("team/python", "3.12").raw == source.manifest
        assert registry.counters.requests["POST", "upload"] > 0
        assert registry.counters.received["upload"] == 0, "the push moved bytes that it could have mounted"


def test_the_builders_page_does_what_it_says(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with MemoryRegistry() as registry:
        source.push(registry, "library/python", "3.12")
        image([{"etc/redis.conf": b"port 6379"}]).push(registry, "library/redis", "7")
        run_python(ROOT / "docs" / "builders.md", registry, tmp_path, monkeypatch)
        said = capsys.readouterr().out.splitlines()
        app = registry.document("team/app", "1.0")
        assert [layer["mediaType"].rpartition("+")[2] for layer in app.json["layers"]] == ["gzip", "gzip", "zstd"]
        name, digest, mounted, _ = said[0].split()
        assert (name, digest, mounted) == (f"{registry.host}/team/app:1.0", app.digest, "2")
        zstd = registry.document("team/app", "1.0-zstd")
        assert {layer["mediaType"].rpartition("+")[2] for layer in zstd.json["layers"]} == {"zstd"}
        assert said[1:3] == ["['etc', 'srv']", "4 layers"]
        assert len([line for line in said if " here " in line]) == 3
        assert (tmp_path / "store-out" / "index.json").exists()
        assert said[-1].startswith("copy sha256:"), "who pulls by asyncio sees how far it is"


def test_the_tees_page_does_what_it_says(source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryRegistry() as registry:
        source.push(registry, "library/python", "3.12")
        run_python(ROOT / "docs" / "tee.md", registry, tmp_path, monkeypatch)
        layers = sum(len(layer.data) for layer in source.layers)
        assert registry.counters.sent["blob"] == layers, "each byte came once"


def test_the_page_on_formats_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"etc": None, "etc/os-release": b"NAME=demo\n", "usr": None, "usr/lib": None, "usr/lib/a": bytes(9)}
    with MemoryRegistry() as registry:
        image([files]).push(registry, "library/python", "3.12")
        run_python(ROOT / "docs" / "formats.md", registry, tmp_path, monkeypatch)
        assert capsys.readouterr().out == "blob\nusr/lib/a 9\n"


def test_the_pages_python_passes_a_strict_type_check(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api", reason="mypy is there for `make lint` only")
    pages = [page for page in PAGES if "```python" in page.read_text()]
    for page in pages:
        (tmp_path / f"{page.stem}_snippets.py").write_text("\n".join(snippets(page)))
    said, problems, status = mypy.run(
        ["--strict", f"--cache-dir={tmp_path / 'cache'}", *map(str, sorted(tmp_path.glob("*.py")))]
    )
    assert status == 0, said + problems


def test_the_first_example_of_the_builders_page_is_twenty_lines_of_code() -> None:
    first = snippets(ROOT / "docs" / "builders.md")[0]
    code = [line for line in first.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_verbs_that_there_are(page: Path) -> None:
    named = set(re.findall(r"^\$ blobtee ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named
    assert named <= set(VERBS)
