"""`blobtee gc --shrink`: what it prints, and its exit status."""

from __future__ import annotations

import io
import json
import sys

import pytest

from blobtee.cli.sizes import SizeType
from blobtee.testing import MemoryRegistry, image
from blobtee.testing.images import Files

from .conftest import Result, Run

FILES: list[Files] = [{"a": b"base " * 99}, {"b": b"top " * 99}]


def test_layers_are_lazy_again_and_files_come_out_of_them(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    run("pull", name)
    sizes = {layer.descriptor.digest: layer.descriptor.size for layer in source.layers}
    planned = run("gc", "--shrink", "0", "--dry-run")
    assert (planned.status, "would take" in planned.err) == (0, True)
    done = run("gc", "--shrink", "0")
    assert (done.status, done.out) == (0, planned.out)
    gone = {line.split()[0]: line.split()[1:] for line in done.text.splitlines()}
    assert gone == {digest: [str(size), "lazy"] for digest, size in sizes.items()}
    assert "manifests, configs and indexes: 2 blobs" in done.err
    assert "more than 0 B" in done.err
    assert run("gc", "--shrink", "1").status == 1
    assert len(run("blobs").text.splitlines()) == 2
    assert run("cat", name, "/a").out == FILES[0]["a"]
    assert run("pull", name).status == 0
    assert len(run("blobs").text.splitlines()) == 4


def test_json_says_what_went_and_what_holds_the_rest(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    run("pull", source.push(server, "team/app"))
    nbytes = sum(layer.descriptor.size for layer in source.layers)
    documents = len(source.config) + len(source.manifest)
    result = run("gc", "--json", "--shrink", "1GB")
    shrunk = json.loads(result.out)["shrunk"]
    assert (result.status, shrunk["blobs"]) == (0, [])
    left = shrunk["before"] - nbytes
    result = run("gc", "--json", "--shrink", str(left))
    shrunk = json.loads(result.out)["shrunk"]
    assert (result.status, shrunk["reached"]) == (0, True)
    assert (shrunk["before"], shrunk["after"], shrunk["target"]) == (left + nbytes, left, left)
    assert sum(blob["size"] for blob in shrunk["blobs"]) == nbytes == json.loads(result.out)["freed"]
    assert shrunk["held"] == {
        "documents": {"blobs": 2, "size": documents},
        "indexes": {"blobs": 2, "size": left - documents},
    }


def test_a_plan_takes_off_what_would_be_collected_first(server: MemoryRegistry, run: Run) -> None:
    kept, gone = (image(files).push(server, name) for files, name in ((FILES[:1], "kept"), (FILES[1:], "gone")))
    for name in (kept, gone):
        run("pull", name)
    run("rm", gone)
    planned, done = (
        json.loads(run("gc", "--json", "--grace", "0", "--shrink", "0", *more).out) for more in (["--dry-run"], [])
    )
    assert {**planned, "dryRun": False} == done
    assert len(done["blobs"]) == 3


def test_what_the_registry_has_no_more_stays(server: MemoryRegistry, run: Run) -> None:
    source = image(FILES)
    name = source.push(server, "team/app")
    run("pull", name)
    lost, there = (layer.descriptor for layer in source.layers)
    server.remove_blob(lost.digest)
    for more in (["--dry-run"], []):
        result = run("gc", "--json", "--shrink", "0", *more)
        shrunk = json.loads(result.out)["shrunk"]
        assert (result.status, [blob["digest"] for blob in shrunk["blobs"]]) == (1, [there.digest])
        assert shrunk["held"]["unobtainable"] == {"blobs": 1, "size": lost.size}
        assert f"blob {lost.digest} stays" in result.err
        assert "does not have it any more" in result.err
    assert run("cat", name, "/a").out == FILES[0]["a"]
    shrunk = json.loads(run("gc", "--json", "--shrink", "0", "--unchecked").out)["shrunk"]
    assert lost.digest in [blob["digest"] for blob in shrunk["blobs"]]  # reading may have brought the other again
    assert run("gc", "--unchecked").status == 2


def test_while_the_registry_is_away_all_layers_stay(server: MemoryRegistry, run: Run) -> None:
    run("pull", image(FILES).push(server, "team/app"))
    server.stop()
    result = run("gc", "--json", "--shrink", "0")
    shrunk = json.loads(result.out)["shrunk"]
    assert (result.status, shrunk["blobs"], shrunk["held"]["unobtainable"]["blobs"]) == (1, [], 2)


def went(result: Result) -> int:
    return len(json.loads(result.out)["shrunk"]["blobs"])


def test_a_registry_that_wants_a_sign_in_gets_the_one_that_is_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(password: str) -> tuple[str, ...]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
        return ("--username", "me", "--password-stdin")

    with MemoryRegistry(users={"me": "secret"}) as server:
        name = image(FILES).push(server, "team/app")
        assert run("pull", *give("secret"), name).status == 0
        refused = run("gc", "--json", "--shrink", "0")
        assert (refused.status, went(refused), "docker login" in refused.err) == (1, 0, True)
        assert went(run("gc", "--json", "--shrink", "0", *give("wrong"))) == 0
        assert went(run("gc", "--json", "--shrink", "0", *give("secret"))) == 2
        assert run("gc", "--shrink", "0", "--username", "me").status == 2


def test_how_to_speak_to_the_registry_can_be_said_when_it_is_one(server: MemoryRegistry, run: Run) -> None:
    run("pull", image(FILES[:1]).push(server, "team/app"))
    assert went(run("gc", "--json", "--shrink", "0", "--no-plain-http")) == 0
    assert went(run("gc", "--json", "--shrink", "0", "--plain-http", "--no-tls-verify")) == 1
    with MemoryRegistry() as other:
        run("pull", image(FILES[1:]).push(other, "team/app"))
        for options in (["--plain-http"], ["--no-tls-verify"], ["--username", "me", "--password-stdin"]):
            result = run("gc", "--shrink", "0", *options)
            assert result.status == 2
            assert server.host in result.err
            assert other.host in result.err
        assert went(run("gc", "--json", "--shrink", "0", "--no-plain-http")) == 0
        assert went(run("gc", "--json", "--shrink", "0", "--hosts-dir", "/nowhere")) == 1


@pytest.mark.parametrize(
    "options", [["--plain-http"], ["--shrink", "0", "--unchecked", "--no-tls-verify"], ["--hosts-dir", "/nowhere"]]
)
def test_registries_are_said_something_of_only_where_they_are_asked(run: Run, options: list[str]) -> None:
    assert run("gc", *options).status == 2


def test_a_store_without_anything_asks_nobody(run: Run) -> None:
    assert run("gc", "--shrink", "0", "--username", "me", "--password-stdin", "--plain-http").status == 0


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("12", 12),
        ("10GB", 10**10),
        ("10 gb", 10**10),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("1.5KiB", 1536),
        ("7kB", 7000),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str, nbytes: int) -> None:
    assert SizeType().convert(text, None, None) == nbytes


@pytest.mark.parametrize("text", ["", "much", "-1", "1e9", "10XB", "1.GB", "٣GB", "nan"])
def test_what_is_no_size_is_wrong_usage(run: Run, text: str) -> None:
    assert run("gc", "--shrink", text).status == 2
