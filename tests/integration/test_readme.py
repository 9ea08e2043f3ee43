"""What the README shows is run, on a registry in this process instead of the public ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blobtee.testing import MemoryRegistry, image

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_python_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert snippets
    with MemoryRegistry() as registry:
        source = image([{"etc/os-release": b"NAME=demo\n"}, {"srv/data": bytes(100_000)}])
        source.push(registry, "library/python", "3.12")
        for snippet in snippets:
            code = (
                snippet.replace("docker.io/", f"{registry.host}/")
                .replace("registry.example/", f"{registry.host}/")
                .replace("/tmp/blobtee-example", str(tmp_path / "store"))
            )
            exec(compile(code, "README.md", "exec"), {})
        assert registry.document("team/python", "3.12").raw == source.manifest
        assert registry.counters.requests["POST", "upload"] > 0
        assert registry.counters.received["upload"] == 0, "the push moved bytes that it could have mounted"
