"""Verbs: what they print, and their exit status."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from pathlib import Path

import pytest

import blobtee
from blobtee.cli import main
from blobtee.cli.app import VERBS
from blobtee.content import LocalStore
from blobtee.oci import Digest, Platform
from blobtee.plugin.server import Listen, Server
from blobtee.testing import Answer, MemoryRegistry, image, index
from blobtee.testing.images import Files

from .conftest import FAR, Run

FILES: list[Files] = [
    {"etc": None, "etc/name": b"base\n", "bin/tool": b"\x7fELF"},
    {"etc/name": b"top\n", "link": "etc/name", "bad\x1bname": b""},
]


def test_a_lazy_pull_prints_what_it_got_and_moves_no_layer(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    name = source.push(server, "team/app", "v1")
    result = run("pull", "--lazy", name)
    assert (result.status, result.text) == (0, f"{name}@{source.descriptor.digest}\n")
    assert result.err.startswith("2 layers of ")
    assert result.err.endswith(" left at the registry\n")
    assert server.counters.sent["blob"] == 0
    value = json.loads(run("pull", "--lazy", "--json", "--quiet", name).out)
    assert (value["name"], value["lazy"], len(value["layers"])) == (name, True, 2)
    assert value["layers"][0] == {
        "digest": source.layers[0].descriptor.digest,
        "size": len(source.layers[0].data),
        "mediaType": source.layers[0].descriptor.media_type,
    }


def test_a_lazy_pull_counts_only_what_is_not_here(server: MemoryRegistry, run: Run) -> None:
    run("pull", image(FILES).push(server, "team/app", "v1"))
    result = run("pull", "--lazy", image([*FILES, {"more": b"1"}]).push(server, "team/more", "v1"))
    assert result.err.startswith("1 layer of ")
    again = run("pull", "--lazy", f"{server.host}/team/app:v1")
    assert again.err.startswith("2 layers of ")
    assert again.err.endswith(" in the store\n")


def test_a_pull_may_say_what_the_image_is_called(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    source = image(FILES)
    name = source.push(server, "team/app", "v1")
    assert run("copy", name, f"oci:{tmp_path}/layout").status == 0
    pulled = run("pull", "--name", "dev/app", f"oci:{tmp_path}/layout")
    assert pulled.text == f"docker.io/dev/app:latest@{source.descriptor.digest}\n"
    assert run("cat", "dev/app", "etc/name").out == b"top\n"
    # Its digest cannot be that of its name, when it is converted.
    by_digest = ("pull", f"{server.host}/team/app@{source.descriptor.digest}", "--compression", "zstd")
    assert "give it a name" in run(*by_digest).err
    assert run(*by_digest, "--name", "dev/zstd").status == 0
    assert [line.split()[1] for line in run("images").text.splitlines()] == [
        "docker.io/dev/app:latest",
        "docker.io/dev/zstd:latest",
    ]
    for nonsense in ("", "Not A Name", f"a@{source.descriptor.digest}"):
        assert run("pull", "--name", nonsense, name).status == 2


def test_quiet_says_nothing_on_standard_error(server: MemoryRegistry, run: Run) -> None:
    assert run("pull", "-q", image(FILES).push(server, "a")).err == ""


def test_cat_prints_manifest_blobs_and_files(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    name = source.push(server, "team/app", "v1")
    run("pull", "--lazy", name)
    assert run("cat", name).out == source.manifest
    assert run("cat", f"{name}@{source.descriptor.digest}").out == source.manifest
    layer = source.layers[1]
    assert run("cat", layer.descriptor.digest).status == 3
    assert run("cat", f"{name}@{layer.descriptor.digest}").out == layer.data
    assert run("cat", layer.descriptor.digest).out == layer.data
    config = json.loads(source.manifest)["config"]["digest"]
    assert run("cat", f"{name}@{config}").out == source.config
    assert run("cat", name, "/link").out == b"top\n"
    missing = run("cat", name, "/no/such")
    assert (missing.status, missing.out) == (3, b"")
    assert missing.err.startswith("blobtee: error: ")
    assert run("cat", f"{name}@sha256:{'0' * 64}").status == 3


def test_an_image_pulled_by_digest_is_known_by_it(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    source.push(server, "team/app", "v1")
    name = f"{server.host}/team/app@{source.descriptor.digest}"
    assert run("pull", "--lazy", name).text == f"{name}\n"
    assert run("cat", name).out == source.manifest
    assert run("cat", name, "etc/name").out == b"top\n"


def test_ls_lists_one_level_or_all_and_escapes_what_moves_cursors(server: MemoryRegistry, run: Run) -> None:
    name = image(FILES).push(server, "team/app")
    run("pull", "--lazy", name)
    assert run("ls", name).text.splitlines() == ["/bad\\x1bname", "/bin", "/etc", "/link"]
    assert run("ls", name, "/etc").text == "/etc/name\n"
    assert run("ls", name, "/link").text == "/etc/name\n"
    assert run("ls", "-R", name).text.splitlines() == [
        "/bad\\x1bname",
        "/bin",
        "/bin/tool",
        "/etc",
        "/etc/name",
        "/link",
    ]
    long = run("ls", "-l", name).text.splitlines()
    assert long[3].startswith("lrwxrwxrwx     0     0")
    assert long[3].endswith("1970-01-01 00:00 /link -> etc/name")
    lines = [json.loads(line) for line in run("ls", "--json", name, "/etc").text.splitlines()]
    assert lines == [
        {
            "path": "/etc/name",
            "type": "file",
            "mode": "0644",
            "uid": 0,
            "gid": 0,
            "size": 4,
            "mtime": 0.0,
            "layer": 1,
        }
    ]
    assert run("ls", name, "/none").status == 3


def test_push_mounts_lazy_layers_and_says_so(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    run("pull", "--lazy", source.push(server, "team/app", "v1"))
    server.reset()
    result = run("push", f"{server.host}/team/app:v1", f"{server.host}/team/copy:v2")
    assert (result.status, result.text) == (0, f"{server.host}/team/copy:v2@{source.descriptor.digest}\n")
    assert "3 mounted; 0 B moved" in result.err
    assert server.counters.sent["blob"] == server.counters.received["upload"] == 0
    value = json.loads(run("push", "--json", f"{server.host}/team/app:v1", f"{server.host}/team/copy:v2").out)
    assert value["bytes"] == 0
    assert {blob["how"] for blob in value["blobs"]} == {"exists"}


def test_copy_needs_no_store_and_makes_none(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    name = image(FILES).push(server, "team/app", "v1")
    assert run("copy", name, f"oci:{tmp_path}/layout").text.startswith(f"oci:{tmp_path}/layout:v1@sha256:")
    assert run("copy", f"oci:{tmp_path}/layout:v1", f"docker-archive:{tmp_path}/a.tar").status == 0
    assert run("copy", f"docker-archive:{tmp_path}/a.tar", f"{server.host}/back:1").status == 0
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["up\x1b[2J\nblobtee: error", "half\ud800"])
def test_a_name_that_a_layout_gives_stays_on_its_line(run: Run, tmp_path: Path, name: str) -> None:
    source = image(FILES)
    source.write_layout(tmp_path / "layout", name)
    result = run("pull", f"oci:{tmp_path}/layout")
    assert (result.status, result.text.count("\n"), result.text[:-1].isprintable()) == (0, 1, True)
    assert json.loads(run("pull", "--json", f"oci:{tmp_path}/layout").out)["name"] == name


def test_without_a_home_folder_the_root_has_to_be_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOBTEE_ROOT")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    result = run("blobs")
    assert result.status == 2
    assert "--root" in result.err
    assert run("blobs", "--help").status == 0


def test_cat_and_ls_take_addresses_of_files_too(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    run("copy", image(FILES).push(server, "team/app", "v1"), f"oci-archive:{tmp_path}/a.tar")
    assert run("cat", f"oci-archive:{tmp_path}/a.tar", "etc/name").out == b"top\n"
    assert run("ls", f"oci-archive:{tmp_path}/a.tar", "bin").text == "/bin/tool\n"
    layer = ("layer", str(tmp_path / "empty"), "-o", f"oci:{tmp_path}/out", "--parent", f"oci-archive:{tmp_path}/a.tar")
    (tmp_path / "empty").mkdir()
    assert run(*layer).status == 0
    assert run("images").text == "", "an image of the store that is called so too would lose its name"


def test_platforms_choose_the_image(server: MemoryRegistry, run: Run) -> None:
    names = ("linux/amd64", "linux/s390x")
    name = index({n: image([{"p": n.encode()}], platform=Platform.parse(n)) for n in names}).push(server, "team/app")
    for platform in names:
        run("pull", "--platform", platform, name)
        assert run("cat", "--platform", platform, name, "p").text == platform
    assert run("pull", "--platform", "linux/arm64", name).status == 3
    assert run("pull", "--platform", "a/b/c/d", name).status == 2


def test_blobs_lists_what_is_there_and_filters(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    run("pull", source.push(server, "team/app"))
    listed = run("blobs").text.split()
    assert {word for word in listed if word.startswith("sha256:")} == {source.descriptor.digest, *source.blobs}
    only = [json.loads(line) for line in run("blobs", "--json", f"digest=={source.descriptor.digest}").out.splitlines()]
    assert [(blob["digest"], blob["size"]) for blob in only] == [(source.descriptor.digest, len(source.manifest))]
    assert "containerd.io/gc.ref.content.config" in only[0]["labels"]
    assert run("blobs", "digest==").status == 2


def test_what_the_work_logs_is_a_note_like_others(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    source = image(FILES)
    run("pull", source.push(server, "team/app"))
    digest = source.layers[0].descriptor.digest
    blob = tmp_path / "store" / "blobs" / "sha256" / digest.hex
    for quiet in (False, True):
        blob.chmod(0o600)
        blob.write_bytes(bytes(len(source.layers[0].data)))
        said = run("verify", "--repair", *(["--quiet"] if quiet else [])).err
        assert ("" if quiet else f"warning: blob {digest} is damaged; set aside as ") in said
        assert not quiet or not said
    (tmp_path / "tree").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "tree" / "s"))
        result = run("layer", str(tmp_path / "tree"), "-o", str(tmp_path / "layer.tar"))
    assert (result.status, result.err) == (0, "note: s: a socket is not part of a layer\n")


def test_verify_finds_and_repairs(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    run("pull", name)
    assert run("verify").status == 0
    digest = source.layers[0].descriptor.digest
    path = tmp_path / "store" / "blobs" / "sha256" / digest.hex
    path.chmod(0o644)
    path.write_bytes(b"\0" * path.stat().st_size)
    broken = run("verify")
    assert broken.status == 4
    assert broken.text.startswith(f"broken {digest}: its bytes are sha256:")
    assert f"(needed by {name})" in broken.text
    assert run("cat", digest).status == 4
    repaired = json.loads(run("verify", "--repair", "--json").out)
    assert (repaired["digest"], repaired["repaired"]) == (digest, True)
    assert run("verify").status == 0
    path.chmod(0o644)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert run("verify", "--repair", "--no-plain-http").status == 4, "it speaks no TLS"


def test_a_registry_that_lies_gives_status_4_and_one_line(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    size = len(source.layers[0].data)
    server.fault(
        lambda request: Answer(body=b"\0" * size) if request.identifier == source.layers[0].descriptor.digest else None
    )
    result = run("pull", name)
    assert result.status == 4
    assert result.err.splitlines()[-2].startswith("blobtee: error: ")
    assert "Traceback" not in result.err
    assert "Traceback" in run("pull", "--debug", name).err


def test_a_lazy_pull_for_the_containerds_of_a_server(server: MemoryRegistry, run: Run, tmp_path: Path) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    socket = tmp_path / "socket"
    with LocalStore(tmp_path / "of the server") as store, Server(store, [Listen("one", socket)]):
        result = run("pull", "--lazy", "--json", "--socket", str(socket), name)
        assert result.status == 0
        assert json.loads(result.out) == json.loads(run("pull", "--lazy", "--json", name).out)
        assert name in store.layout.names()
        assert run("pull", "--lazy", "--socket", str(socket), f"{server.host}/no/such").status == 3
    gone = run("pull", "--lazy", "--socket", str(socket), name)
    assert gone.status == 1
    assert f"missing: start `blobtee serve --socket {socket}`" in gone.err
    for wrong in (["--socket", "s"], ["--lazy", "--socket", "s", "--plain-http"]):
        assert run("pull", *wrong, name).status == 2


def test_adopting_tells_what_it_took_and_what_it_did_not(run: Run, tmp_path: Path) -> None:
    blobs = tmp_path / "old" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in (b"one", b"two"):
        (blobs / Digest.of(data).hex).write_bytes(b"one")
    result = run("adopt", "--json", str(tmp_path / "old"))
    report = json.loads(result.out)
    assert (result.status, report["held"], report["damaged"]) == (1, 1, [Digest.of(b"two")])
    assert "all blobs are held" in result.err
    assert f"damaged, not taken: {Digest.of(b'two')}" in result.err
    assert run("adopt", "--no-verify", "--in-place", str(tmp_path / "old")).text.startswith("tenant default holds 2 ")
    assert run("adopt", str(tmp_path)).status == 1
    misnamed = run("adopt", "--tenant", "a/b", str(tmp_path / "old"))
    assert misnamed.status == 2, "that is wrong usage, as it is of `serve`"
    assert "no name of a tenant: 'a/b'" in misnamed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["pull"],
        ["pull", "not a name"],
        ["pull", "a", "b"],
        ["pull", "--platform", "", "a"],
        ["pull", "oci:"],
        ["push", "a"],
        ["push", "a", "UPPER@x"],
        ["copy", "a"],
        ["--nonsense"],
        ["blobs", "--progress", "loud"],
        ["demo", "--push-to", "a"],
        ["demo", "oci:dir"],
        ["pull", "--username", "me", "r.example/a"],
        ["pull", "--password-stdin", "r.example/a"],
        ["copy", "--username", "me", "--password-stdin", "r.example/a", "s.example/a"],
    ],
)
def test_nonsense_is_wrong_usage_and_says_so_in_one_line_and_a_hint(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.status, result.out) == (2, b"")
    first, *hint = result.err.splitlines()
    assert first.startswith("blobtee: error: ")
    assert all(line.startswith("hint: see `blobtee") for line in hint)


def test_a_root_that_cannot_be_one_is_an_error_of_ours(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run("blobs", "--root", str(tmp_path / "file")).status == 2
    result = run("blobs", "--root", str(tmp_path / "file" / "below"))
    assert result.status in (1, 3)
    assert result.err.startswith("blobtee: error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["images", "--root", FAR],
        ["blobs", "--root", FAR],
        ["inspect", "a/b:1", "--root", FAR],
        ["copy", "oci:/nowhere", "oci:/nowhere/else", "--root", FAR],
        ["copy", f"oci:{FAR}", "oci:/nowhere/else"],
        ["copy", f"oci-archive:{FAR}", "oci:/nowhere/else"],
        ["layer", "/etc/skel", "-o", FAR],
        ["adopt", FAR],
        ["containerd", "config", "--check", FAR],
    ],
    ids=lambda arguments: " ".join(arguments[:2])[:20],
)
def test_a_path_that_cannot_be_looked_at_is_an_error_of_ours(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.status == 1
    assert "File name too long" in result.err
    assert "defect" not in result.err


def test_an_unreachable_registry_is_one_line_and_a_hint(run: Run) -> None:
    result = run("pull", "127.0.0.1:1/a")
    assert result.status == 1
    assert "cannot connect to 127.0.0.1:1" in result.err
    assert "hint: " in result.err


def test_an_image_that_is_not_in_the_store_is_status_3_and_says_what_to_do(run: Run) -> None:
    result = run("cat", "python:3.12")
    assert (result.status, "pull it first" in result.err) == (3, True)


def test_a_name_that_rm_does_not_know_need_not_be_pulled_for_it(run: Run) -> None:
    result = run("rm", "python:3.12")
    assert (result.status, result.err) == (3, "blobtee: error: no image 'python:3.12' in the store\n")


def test_images_are_listed_by_name_and_no_store_is_made_for_it(
    server: MemoryRegistry, run: Run, tmp_path: Path
) -> None:
    empty = run("images")
    assert (empty.status, empty.out, empty.err) == (0, b"", "0 images\n")
    assert not (tmp_path / "store").exists()
    source = image(FILES)
    names = [source.push(server, "team/app", tag) for tag in ("v2", "v1")]
    for name in names:
        run("pull", "--lazy", name)
    result = run("images")
    assert result.text == "".join(f"{source.descriptor.digest}  {name}\n" for name in sorted(names))
    values = [json.loads(line) for line in run("images", "--json").text.splitlines()]
    assert values[0] == {
        "name": min(names),
        "digest": source.descriptor.digest,
        "mediaType": source.descriptor.media_type,
    }
    run("rm", *names)
    assert run("images", "-q").err == run("images").text == ""


def test_plain_http_to_a_server_of_tls_is_told_with_the_option(server: MemoryRegistry, run: Run) -> None:
    said = b"Client sent an HTTP request to an HTTPS server.\n"  # net/http
    server.fault(lambda request: Answer(400, {"content-type": "text/plain"}, said))
    result = run("pull", f"{server.host}/a:1")
    assert (result.status, "or by --no-plain-http" in result.err) == (1, True)


def test_tls_to_a_server_of_plain_http_is_told_with_the_option(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        result = run("pull", "--no-plain-http", f"127.0.0.1:{listening.getsockname()[1]}/a:1")
        thread.join()
    assert (result.status, "or by --plain-http" in result.err) == (1, True)
    assert "hint" not in result.err, "a second try does not mend that"


@pytest.mark.parametrize("verb", ["push", "layer"])
def test_a_password_is_for_the_registry_that_is_pushed_to(
    server: MemoryRegistry, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    name = image(FILES).push(server, "team/app")
    run("pull", name)
    (tmp_path / "app").mkdir()
    with MemoryRegistry(users={"me": "secret"}) as other:
        goal = f"{other.host}/team/app:1"
        arguments = [name, goal] if verb == "push" else [str(tmp_path / "app"), "--parent", name, "-o", goal]
        monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
        assert run(verb, *arguments, "--username", "me", "--password-stdin").status == 0
        assert other.tags("team/app") == ["1"]


def test_a_password_comes_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with MemoryRegistry(users={"me": "secret"}) as server:
        source = image(FILES)
        name = source.push(server, "team/app")
        denied = run("pull", "--lazy", name)
        assert (denied.status, "docker login" in denied.err) == (1, True)
        monkeypatch.setattr(sys, "stdin", io.StringIO("wrong\n"))
        assert run("pull", "--lazy", "--username", "me", "--password-stdin", name).status == 1
        monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
        result = run("pull", "--lazy", "--username", "me", "--password-stdin", name)
        assert (result.status, "secret" in result.err) == (0, False)


@pytest.mark.parametrize("verb", [f"{verb} config" if verb == "containerd" else verb for verb in VERBS])
def test_every_verb_has_help_with_examples_and_the_common_options(run: Run, verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.status == 0
    assert "Examples:" in result.text
    for option in ("--root", "--json", "--quiet"):
        assert option in result.text


def test_the_list_of_verbs_and_the_version_are_printed(run: Run) -> None:
    text = run("--help").text
    assert all(f"  {verb} " in text for verb in VERBS)
    assert "Exit status:" in text
    assert run("--version").text == f"blobtee {blobtee.__version__}\n"
    assert run().status == 2


def test_progress_comes_as_json_events_when_asked(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    result = run("pull", "--progress", "rawjson", source.push(server, "a"))
    events = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    assert {event["digest"] for event in events} == {layer.descriptor.digest for layer in source.layers}
    last = {event["digest"]: event for event in events}
    assert all(event["completed"] and event["current"] == event["total"] for event in last.values())


def test_bars_are_drawn_and_removed(server: MemoryRegistry, run: Run) -> None:
    result = run("pull", "--progress", "tty", image(FILES).push(server, "a"))
    assert result.status == 0
    assert "layers of" in result.err


def test_the_demo_does_the_main_job_and_mounts_everything(run: Run) -> None:
    value = json.loads(run("demo", "--json").out)
    steps = {step["name"]: step for step in value["steps"]}
    assert list(steps) == ["lazy pull", "read a file", "unlazy", "verify", "convert", "push"]
    assert (steps["lazy pull"]["moved"], steps["push"]["moved"]) == (0, 0)
    assert steps["read a file"]["moved"] > 0
    assert steps["unlazy"]["moved"] == steps["unlazy"]["read"] > 0
    assert steps["convert"]["moved"] == 0
    assert "of zstd" in steps["convert"]["outcome"]
    assert "mounted" in steps["push"]["outcome"]


def test_the_demo_takes_an_image_of_ours_and_skips_the_push_unless_told(server: MemoryRegistry, run: Run) -> None:
    name = image(FILES).push(server, "team/app")
    text = run("demo", name).text
    assert "skipped: --push-to" in text
    assert run("demo", name, "--push-to", f"{server.host}/team/copy:1").status == 0
    assert server.tags("team/copy") == ["1"]


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["--version"]) == 1
    assert "pip install 'blobtee[cli]'" in capsys.readouterr().err


def test_an_interrupt_while_the_verbs_are_imported_is_one_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "blobtee.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "blobtee.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert main(["--version"]) == 130
    assert capsys.readouterr().err == ""
