"""What `doctor` reports, whatever there is. Of sockets: `test_doctor_sockets`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import blobtee
from blobtee.content import LocalStore
from blobtee.plugin.containerd import BUILT_IN, configuration
from blobtee.plugin.server import Listen, Server
from blobtee.testing import MemoryRegistry, image

from .conftest import FAR, Run


def test_doctor_tells_what_matters_and_no_secret(
    server: MemoryRegistry, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hidden-one@proxy.example:3128")
    config = tmp_path / "home" / ".docker" / "config.json"
    config.parent.mkdir(parents=True)
    auths = {
        "r.example": {"auth": "aGlkZGVuOnR3bw=="},
        "empty.example": {},
        "t.example": {"identitytoken": "hidden-three"},
    }
    config.write_text(json.dumps({"auths": auths, "credHelpers": {"h.example": "pass"}, "credsStore": "desktop"}))
    (tmp_path / "hosts" / "r.example").mkdir(parents=True)
    (tmp_path / "hosts" / "r.example" / "hosts.toml").write_text("")
    run("pull", image([{"etc/name": b"base\n"}, {"etc/name": b"top\n"}]).push(server, "team/app"))
    result = run("doctor", "--json", "--hosts-dir", str(tmp_path / "hosts"))
    report = json.loads(result.out)
    assert (report["blobtee"], result.status) == (blobtee.__version__, 0)
    assert report["cpu"]["sha256"] in ("portable", "shani", "armv8-sha2")
    assert (report["store"]["images"], report["store"]["blobs"], report["store"]["problems"]) == (1, 4, [])
    assert report["credentials"][0]["hosts"] == {
        "r.example": "password",
        "empty.example": "empty",
        "t.example": "identity token",
        "h.example": "helper docker-credential-pass",
    }
    assert report["credentials"][0]["store"] == "docker-credential-desktop"
    assert report["hosts"] == {str(tmp_path / "hosts"): ["r.example"]}
    assert report["proxies"]["HTTPS_PROXY"] == "http://***@proxy.example:3128"
    text = run("doctor").text
    for secret in ("hidden", "aGlkZGVu"):
        assert secret not in text
        assert secret not in result.text


def test_doctor_asks_the_store_of_containerd(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "containerd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho containerd example.test/containerd v2.4.2 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    config, socket = tmp_path / "config.toml", tmp_path / "socket"

    def report() -> dict[str, Any]:
        found = json.loads(run("doctor", "--json", "--containerd-config", str(config)).out)["containerd"]
        assert isinstance(found, dict)
        return found

    assert report() == {"version": "2.4", "config": f"no {config}: containerd has its built-in store"}
    config.write_text("[")
    assert "not TOML" in report()["problems"][0]
    config.write_text("version = 3\n")
    assert report()["problems"] == []
    for half in (f'disabled_plugins = ["{BUILT_IN}"]', '[proxy_plugins.blobtee]\ntype = "content"'):
        config.write_text(f"version = 3\n{half}\n")
        assert report()["problems"] != []
    config.write_text(configuration(2, socket, "blobtee"))
    assert report()["sockets"][str(socket)].startswith("missing: ")
    with LocalStore(tmp_path / "store") as store, Server(store, [Listen("one", socket)]):
        assert report() == {
            "version": "2.4",
            "config": str(config),
            "sockets": {str(socket): "serving"},
            "problems": [],
        }
    config.write_text(config.read_text().replace('address = "', 'address = "unix://'))
    assert "has a scheme" in report()["problems"][0]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"auths": 7}', b"\xff"])
def test_doctor_survives_what_it_is_to_diagnose(run: Run, tmp_path: Path, damage: bytes) -> None:
    config = tmp_path / "home" / ".docker" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_bytes(damage)
    (tmp_path / "store" / "blobs").mkdir(parents=True)
    (tmp_path / "store" / "blobtee.db").write_bytes(b"no database at all" * 100)
    result = run("doctor")
    assert result.status == 0
    assert "problems: " in result.text


def test_the_doctor_reports_what_he_cannot_look_at(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", FAR)
    monkeypatch.setenv("DOCKER_CONFIG", FAR)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:sl/ash@hidden@proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "user:hidden@proxy.example:3128")
    result = run("doctor", "--json", "--root", FAR, "--containerd-config", FAR, "--hosts-dir", FAR)
    report = json.loads(result.out)
    assert (result.status, report["store"]["exists"]) == (0, False)
    assert report["proxies"] == {
        "HTTPS_PROXY": "http://***@proxy.example:3128",
        "HTTP_PROXY": "***@proxy.example:3128",
    }
