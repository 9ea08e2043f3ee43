"""`blobtee serve` as a process: signals, sockets, systemd, limits."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from blobtee.wire import health
from blobtee.wire.content import messages
from tests.integration.daemons import BLOBTEE, Blobtee, Daemon, running_blobtee, wait_for
from tests.integration.servers import free_port
from tests.unit.plugin.contentclient import Client, code, digest_of, request

DATA = b"kept"


@pytest.fixture
def blobtee(tmp_path: Path) -> Iterator[Blobtee]:
    with running_blobtee(tmp_path / "b", "one") as daemon:
        yield daemon


def status(client: Client, ref: str) -> messages.Status:
    return client.one("Status", messages.StatusRequest(ref=ref)).status


def test_its_socket_is_for_its_user_alone(blobtee: Blobtee) -> None:
    assert stat.S_IMODE(blobtee.socket("one").stat().st_mode) == 0o600


def test_sigterm_lets_a_write_end(blobtee: Blobtee) -> None:
    client = Client(blobtee.socket("one"))
    go_on = threading.Event()

    def requests() -> Iterator[messages.WriteContentRequest]:
        yield request("WRITE", ref="a", data=DATA)
        go_on.wait(20)
        yield request("COMMIT", offset=4)

    call = client.write(requests())
    assert next(call).offset == 4
    assert blobtee.process is not None
    blobtee.process.send_signal(signal.SIGTERM)
    wait_for("the socket goes", lambda: not blobtee.socket("one").exists())
    go_on.set()
    assert next(call).digest == digest_of(DATA)
    assert blobtee.process.wait(30) == 0
    client.channel.close()
    assert "stopped" in blobtee.log


def test_a_signal_that_reaches_another_thread_ends_it_too(blobtee: Blobtee) -> None:
    assert blobtee.process is not None
    main = blobtee.process.pid
    other = max(int(name) for name in os.listdir(f"/proc/{main}/task"))
    assert other != main
    assert ctypes.CDLL(None).tgkill(main, other, signal.SIGTERM) == 0
    assert blobtee.process.wait(20) == 0


def test_a_write_that_does_not_end_is_cancelled_and_can_be_resumed(tmp_path: Path) -> None:
    with running_blobtee(tmp_path / "b", "one", options=("--drain", "0.2")) as blobtee:
        client = Client(blobtee.socket("one"))
        done = threading.Event()

        def requests() -> Iterator[messages.WriteContentRequest]:
            yield request("WRITE", ref="a", data=DATA)
            done.wait(20)

        call = client.write(requests())
        next(call)
        assert blobtee.end() == 0
        assert code(lambda: next(call)) in ("CANCELLED", "UNAVAILABLE")
        done.set()
        client.channel.close()
        blobtee.start()
        client = Client(blobtee.socket("one"))
        assert status(client, "a").offset == 4
        client.channel.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_ingest_is_resumed_by_the_next_life(blobtee: Blobtee, how: signal.Signals) -> None:
    client = Client(blobtee.socket("one"))
    list(client.write([request("WRITE", ref="a", data=DATA)]))
    client.channel.close()
    blobtee.end(how)
    blobtee.start()
    client = Client(blobtee.socket("one"))
    assert status(client, "a").offset == 4
    client.channel.close()


def test_a_second_server_on_the_same_socket_says_so(blobtee: Blobtee) -> None:
    done = subprocess.run(blobtee.command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "another server listens on" in done.stderr
    assert "Traceback" not in done.stderr
    client = Client(blobtee.socket("one"))
    assert client.put("a", DATA) == digest_of(DATA)
    client.channel.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--socket is missing"),
        (["--socket", "unix:///run/x.sock"], "without unix://"),
        (["--socket", "one="], "says no path"),
        (["--socket", "a b=/tmp/x"], "no name of a tenant"),
        (["--socket", "{0}/x", "--mode", "rw"], "rights in octal"),
        (["--socket", "{0}/x", "--group", "no-such-group"], "there is no group"),
        (["--socket", "{0}/x", "--metrics", "9477"], "HOST:PORT"),
        (["--socket", "{0}/x", "--metrics", "0.0.0.0:9477"], "loopback"),
        (["--socket", "a={0}/x", "--socket", "a={0}/y"], "named 2 times"),
        (["--socket", "{0}"], "is no socket"),
    ],
)
def test_nonsense_ends_in_a_sentence(tmp_path: Path, options: list[str], said: str) -> None:
    command = [*BLOBTEE, "serve", "--root", str(tmp_path / "root"), *(each.format(tmp_path) for each in options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_limit_on_streams_answers_and_recovers(tmp_path: Path) -> None:
    with running_blobtee(tmp_path / "b", "one", options=("--max-streams", "2")) as blobtee:
        client = Client(blobtee.socket("one"))
        done = threading.Event()

        def requests(ref: str) -> Iterator[messages.WriteContentRequest]:
            yield request("STAT", ref=ref)
            done.wait(20)

        calls = [client.write(requests(ref)) for ref in ("a", "b")]
        for call in calls:
            next(call)
        asked = messages.InfoRequest(digest=digest_of(DATA))
        assert code(lambda: client.one("Info", asked)) == "RESOURCE_EXHAUSTED"
        done.set()
        for call in calls:
            assert list(call) == []
        wait_for("a place is free", lambda: code(lambda: client.one("Info", asked)) == "NOT_FOUND")
        client.channel.close()


def test_logs_and_metrics(tmp_path: Path) -> None:
    port = free_port()
    options = ("--log-format", "json", "--metrics", f"127.0.0.1:{port}")
    with running_blobtee(tmp_path / "b", "one", options=options) as blobtee:
        client = Client(blobtee.socket("one"))
        client.put("a", DATA)
        client.channel.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'blobtee_rpcs_total{tenant="one",method="Write",code="OK"} 1' in text
        assert 'blobtee_bytes_total{tenant="one",direction="received"} 4' in text
        lines = [json.loads(line) for line in blobtee.log.splitlines()]
        assert [line["level"] for line in lines] == ["info"] * len(lines)
        assert any("tenant one on" in line["msg"] for line in lines)


def test_it_tells_systemd_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(tmp_path / "notify"))
        notices.settimeout(30)
        folder = tmp_path / "b"
        command = [*BLOBTEE, "serve", "--root", str(folder / "store"), "--socket", str(folder / "s")]
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        daemon = Daemon(command, folder, [folder / "s"], environment)
        daemon.start()
        heard = [notices.recv(4096).decode() for _ in range(3)]
        daemon.end()
        while "STOPPING=1" not in heard[-1]:
            heard.append(notices.recv(4096).decode())
        assert heard[0].startswith("READY=1\nSTATUS=serving")
        assert heard[1] == heard[2] == "WATCHDOG=1"


@pytest.mark.parametrize("by", ["name", "path"])
def test_it_takes_its_sockets_from_systemd(tmp_path: Path, by: str) -> None:
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd is not installed")
    folder = tmp_path / "b"
    command = [activate, "--listen", str(tmp_path / "s")]
    if by == "name":
        command += ["--fdname", "one", *BLOBTEE, "serve"]
    else:  # the units of contrib work together as they are
        command += [*BLOBTEE, "serve", "--socket", f"one={tmp_path / 's'}"]
    daemon = Daemon([*command, "--root", str(folder / "store")], folder, [tmp_path / "s"])
    daemon.start()
    try:
        client = Client(tmp_path / "s")
        data = os.urandom(3 << 20)
        assert client.put("a", data) == digest_of(data)
        assert client.read(digest_of(data)) == data
        check: Any = client.channel.unary_unary(
            f"/{health.SERVICE}/Check",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=health.messages.HealthCheckResponse.FromString,
        )
        assert check(health.messages.HealthCheckRequest(), timeout=20).status == health.SERVING
        client.channel.close()
    finally:
        assert daemon.end() == 0
    assert "tenant one on a socket of systemd" in daemon.log


@pytest.mark.parametrize("kind", ["file", "datagram"])
def test_what_is_no_listening_socket_of_systemd_is_refused(tmp_path: Path, kind: str) -> None:
    with open(tmp_path / "file", "w") as file, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        given = file.fileno() if kind == "file" else datagram.fileno()
        # LISTEN_PID is the number of the process itself, which only the shell that becomes it knows.
        script = f'exec 3<&{given}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", *BLOBTEE, "serve", "--root", str(tmp_path / "root")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            pass_fds=[given],
        )
    assert done.returncode == 1
    assert "descriptor 3 of systemd's" in done.stderr
    assert "defect" not in done.stderr


def test_a_client_that_is_gone_leaves_nothing_open(blobtee: Blobtee) -> None:
    assert blobtee.process is not None
    descriptors = Path(f"/proc/{blobtee.process.pid}/fd")
    client = Client(blobtee.socket("one"))
    digest = client.put("big", os.urandom(8 << 20))
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        call = client.many("Read", messages.ReadContentRequest(digest=digest))
        next(call)
        call.cancel()
    client.channel.close()
    wait_for("they are closed", lambda: len(list(descriptors.iterdir())) <= before)
    with pytest.raises(grpc.RpcError):
        next(call)
