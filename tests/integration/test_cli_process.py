"""The command line as its users run it: a process with signals, pipes and a memory."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobtee.content import LocalStore, Trust
from blobtee.oci import Compressed, Descriptor, mediatypes
from blobtee.testing import Answer, Generated, Layer, MemoryRegistry, Request, image, layer
from blobtee.transfer import open_image, verify

BLOBTEE = [sys.executable, "-W", "error", "-m", "blobtee.cli"]


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LANG") if key in os.environ}
    return {**kept, "HOME": str(tmp_path), "BLOBTEE_ROOT": str(tmp_path / "store")}


def run(environ: dict[str, str], *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*BLOBTEE, *arguments], env=environ, input=data, capture_output=True, timeout=120, check=False
    )


def big_layer(size: int) -> Layer:
    return layer({"data": Generated(size).read()}, compression=Compressed.NONE)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["pull", "--help"], ["--version"], ["doctor"]])
def test_no_room_for_what_is_printed_is_no_defect(
    environ: dict[str, str], arguments: list[str], unbuffered: str
) -> None:
    environ["PYTHONUNBUFFERED"] = unbuffered
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*BLOBTEE, *arguments], env=environ, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert result.returncode == 1
    first, *hints = result.stderr.decode().splitlines()
    assert first.startswith("blobtee: error: cannot write to standard output: No space left on device")
    assert not any("defect" in hint for hint in hints)


def test_the_main_job_from_end_to_end(server: MemoryRegistry, environ: dict[str, str], tmp_path: Path) -> None:
    name = image([{"etc/name": b"base"}, {"etc/name": b"top"}]).push(server, "team/app", "v1")
    assert run(environ, "pull", "--lazy", name).returncode == 0
    assert run(environ, "cat", name, "/etc/name").stdout == b"top"
    pushed = run(environ, "push", "--json", name, f"{server.host}/team/copy:v1")
    assert {blob["how"] for blob in json.loads(pushed.stdout)["blobs"]} == {"mounted"}
    assert run(environ, "pull", name).returncode == 0
    assert run(environ, "verify").returncode == 0
    assert run(environ, "copy", name, f"oci:{tmp_path}/layout").returncode == 0
    assert run(environ, "cat", "nothing/here").returncode == 3
    assert run(environ, "nonsense").returncode == 2
    result = run(environ, "doctor", "--json")
    assert (result.returncode, result.stderr) == (0, b"")


def nbytes_here(root: Path) -> int:
    """Bytes of partial blobs of 8,000,000 bytes or a little more that are here, as their maps on the disk say."""
    maps = (root / "partial").glob("*/*/map")
    return max((path.read_bytes()[1024 : 1024 + 122].count(1) << 16 for path in maps), default=0)


def test_a_fill_stands_back_for_other_processes_and_leaves_what_came_when_it_is_interrupted(
    server: MemoryRegistry, environ: dict[str, str]
) -> None:
    source = image([big_layer(40_000_000)])
    name = source.push(server, "team/app")
    slowly = [*BLOBTEE, "pull", "--fill", "--bandwidth", "1MB/s", "--progress", "rawjson", name]
    with subprocess.Popen(slowly, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().decode().startswith(name), "known at once"
        came = 0
        while came < 1 << 20:
            line = process.stderr.readline()
            came = json.loads(line)["current"] if line.startswith(b"{") else 0
        # What lies near the end comes by another request, long before the fill would be there.
        with LocalStore(environ["BLOBTEE_ROOT"]) as store, open_image(name, store) as opened:
            provider, desc = opened.get_remote().provider, opened.manifest.layers[0]
            with provider.reader_at(desc, Trust.RAW) as reader:
                assert reader.read_at(30_000_000, 100) == source.layers[0].data[30_000_000:30_000_100]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.decode().splitlines()[-2] == "blobtee: error: interrupted"
    server.reset()
    assert run(environ, "pull", "--fill", name).returncode == 0
    assert server.counters.sent["blob"] <= 40_100_000 - (1 << 20)
    assert run(environ, "verify").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_pull_ends_clean_and_the_next_one_goes_on(
    server: MemoryRegistry, environ: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    source = image([big_layer(8_000_000)])
    name = source.push(server, "team/app")

    @server.fault
    def stall(request: Request) -> Answer | None:
        return Answer(cut=5_000_000, stall=True) if request.kind == "blob" else None

    with subprocess.Popen([*BLOBTEE, "pull", name], env=environ, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while nbytes_here(tmp_path / "store") < 4 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        began = time.monotonic()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - began < 5
    assert err.decode().splitlines()[-2] == "blobtee: error: interrupted"
    assert b"Traceback" not in err

    kept = nbytes_here(tmp_path / "store")
    assert kept >= 4 << 20
    server.faults.clear()
    server.reset()
    assert run(environ, "pull", name).returncode == 0
    assert server.counters.sent["blob"] == len(source.layers[0].data) - kept
    with LocalStore(tmp_path / "store") as store:
        assert store.problems == ()
        assert verify(store).good


def test_a_closed_pipe_ends_quietly(server: MemoryRegistry, environ: dict[str, str]) -> None:
    source = image([big_layer(8_000_000)])
    name = source.push(server, "team/app")
    assert run(environ, "pull", name).returncode == 0
    for arguments in (["cat", name, "data"], ["cat", source.layers[0].descriptor.digest]):
        with subprocess.Popen(
            [*BLOBTEE, *arguments], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert len(process.stdout.read(10)) == 10
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


def test_a_full_device_is_an_error_of_ours(server: MemoryRegistry, environ: dict[str, str]) -> None:
    name = image([big_layer(100_000)]).push(server, "team/app")
    run(environ, "pull", name)
    for arguments in (["cat", name, "data"], ["doctor"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*BLOBTEE, *arguments], env=environ, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(b"blobtee: error: cannot write to standard output")
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr


def test_closed_standard_streams_do_no_harm(server: MemoryRegistry, environ: dict[str, str]) -> None:
    name = image([{"f": b"1"}]).push(server, "team/app")
    command = " ".join([*BLOBTEE, "pull", name])
    assert (
        subprocess.run(["sh", "-c", f"{command} 2>&-"], env=environ, stdout=subprocess.PIPE, check=False).returncode
        == 0
    )


def test_data_that_find_standard_output_closed_are_not_lost_in_silence(
    server: MemoryRegistry, environ: dict[str, str]
) -> None:
    source = image([{"f": b"1"}])
    name = source.push(server, "team/app")
    for arguments, status in (
        (["pull", name], 1),
        (["cat", name], 1),
        (["cat", name, "f"], 1),
        (["cat", source.layers[0].descriptor.digest], 1),
        (["--version"], 1),
        (["verify", "--help"], 1),
        (["pull", "nothing here"], 2),
    ):
        command = " ".join([*BLOBTEE, *(repr(argument) for argument in arguments)])
        closed = subprocess.run(["sh", "-c", f"{command} >&-"], env=environ, stderr=subprocess.PIPE, check=False)
        said = closed.stderr.decode()
        assert closed.returncode == status, (arguments, said)
        assert (status == 2) or "error: cannot write to standard output: Bad file descriptor\n" in said
        assert "Traceback" not in said
        assert "defect" not in said


def test_room_for_a_part_alone_is_an_error_without_a_buffer_too(
    server: MemoryRegistry, environ: dict[str, str], tmp_path: Path
) -> None:
    source = image([big_layer((2 << 20) + 500_000)])
    run(environ, "pull", source.push(server, "team/app"))
    digest = source.layers[0].descriptor.digest
    limit = (2 << 20) + 1000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environ["PYTHONUNBUFFERED"] = "1"
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(
            [*BLOBTEE, "cat", digest], env=environ, stdout=out, stderr=subprocess.PIPE, preexec_fn=limited, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"blobtee: error: cannot write to standard output: File too large")


def on_a_terminal(environ: dict[str, str], *arguments: str) -> bytes:
    """All that the command shows on a terminal that both its outputs are."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*BLOBTEE, *arguments], env={**environ, "TERM": "xterm"}, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break
            shown += piece
        assert process.wait(20) == 0
    finally:
        os.close(ours)
    return shown


def test_a_terminal_gets_bars_and_everything_else_plain_lines(server: MemoryRegistry, environ: dict[str, str]) -> None:
    name = image([big_layer(3_000_000)]).push(server, "team/app")

    @server.fault
    def slow(request: Request) -> Answer | None:
        return Answer(delay=0.3) if request.kind == "blob" else None

    shown = on_a_terminal(environ, "pull", name)
    assert b"\x1b[" in shown
    assert "━".encode() in shown
    alone = rb"(\n|\x1b\[2K)(\x1b\[\?25h)?\r?" + name.encode() + rb"@[^\r\n]*\r\n"
    assert re.search(alone, shown), "the result is on a line of its own"
    server.fault(lambda request: None)
    piped = run(environ, "pull", name)
    assert b"\x1b" not in piped.stderr


def test_bars_take_nothing_away_of_what_is_printed(server: MemoryRegistry, environ: dict[str, str]) -> None:
    name = image([layer({"a": b"no end of line", "b": Generated(3_000_000).read()})]).push(server, "team/app")
    run(environ, "pull", "--lazy", name)
    assert on_a_terminal(environ, "cat", name, "a").endswith(b"no end of line")


_CHILD = """\
import re, sys
from blobtee.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""


@pytest.mark.slow
def test_two_gibibytes_are_pulled_in_less_than_128_mebibytes(
    server: MemoryRegistry, environ: dict[str, str], tmp_path: Path
) -> None:
    body = Generated(2 << 30)
    digest = body.digest()
    descriptor = Descriptor(mediatypes.OCI_LAYER, digest, body.size)
    source = image([Layer(b"", descriptor, digest)])
    server.add_blob("team/big", body, digest)
    for config, raw in source.blobs.items():
        if config != digest:
            server.add_blob("team/big", raw)
    server.add_document("team/big", source.manifest, source.descriptor.media_type, "latest")
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    done = subprocess.run(
        [sys.executable, script, "pull", "--quiet", f"{server.host}/team/big"],
        env=environ,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    assert peak < 128 << 10, f"{peak >> 10} MiB"
    (tmp_path / "store" / "blobs" / "sha256" / digest.hex).unlink()
