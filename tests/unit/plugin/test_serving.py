"""gRPC's own rules and the server's limits."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from blobtee.content import LocalStore
from blobtee.core import H2Server, H2Stats
from blobtee.wire.content import MAX_MESSAGE
from tests.unit.plugin.asking import ECHO, FAIL, FLOW, HANG, SINK, TALK, Asker, Test, asking, eventually
from tests.unit.plugin.contentclient import serving_at
from tests.unit.plugin.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    WINDOW_UPDATE,
    block,
    frame,
    message,
    raw,
    request,
)

RESOURCE_EXHAUSTED, UNIMPLEMENTED, DEADLINE = b"8", b"12", b"4"


# ---- gRPC ---------------------------------------------------------------------------------------------------------


def test_metadata_comes_with_the_call(path: Path) -> None:
    with asking(path) as (asker, test, _):
        given = (("containerd-namespace", "k8s.io"), ("some-bin", b"\0\xff\x80"), ("some-bin", b"two"))
        assert asker.ask(ECHO, b"hello", metadata=given) == b"hello"
        found = [each for each in test.metadata if each[0] in ("containerd-namespace", "some-bin")]
        assert found == list(given)


@pytest.mark.parametrize("text", ["plain", "100 % of it", "ünïcode ✓", "two\nlines", "x" * 3000])
def test_what_an_error_says_arrives(path: Path, text: str) -> None:
    with asking(path) as (asker, _, _):
        assert asker.status(FAIL, text.encode()) == ("INVALID_ARGUMENT", text)


def test_what_cannot_be_is_refused_by_its_code(path: Path) -> None:
    with asking(path) as (asker, _, served):
        assert asker.status("/test.Test/None")[0] == "UNIMPLEMENTED"
        assert asker.status("/other.Test/Echo")[0] == "UNIMPLEMENTED"
        assert asker.status(ECHO, b"no message")[0] == "INVALID_ARGUMENT"
        assert asker.status(ECHO, b"x" * 1000, compression=grpc.Compression.Gzip)[0] == "UNIMPLEMENTED"
        assert asker.status(ECHO, bytes(MAX_MESSAGE + 1))[0] == "RESOURCE_EXHAUSTED"
        assert asker.status(ECHO, b"y" * 50000, metadata=(("big", "z" * 20000),))[0] == "RESOURCE_EXHAUSTED"
        # The largest there is, and what comes after all that.
        data = os.urandom(1 << 20) * 16
        assert asker.ask(ECHO, data) == data
        eventually(lambda: served.stats()[1:3] == (0, 0))


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([request(1, ECHO, flags=END_HEADERS | END_STREAM)], b"3"),
        ([request(1, ECHO), frame(DATA, 1, b"\0\0\0", END_STREAM)], b"13"),
        ([request(1, ECHO), frame(DATA, 1, message(b"whole")[:-1], END_STREAM)], b"13"),
        ([request(1, ECHO), frame(DATA, 1, message(b"x", flag=2), END_STREAM)], b"13"),
        ([request(1, ECHO, (b"grpc-timeout", b"0m")), frame(DATA, 1, message(b""), END_STREAM)], DEADLINE),
        ([request(1, ECHO, (b"grpc-timeout", b"soon")), frame(DATA, 1, message(b""), END_STREAM)], b"0"),
        ([frame(HEADERS, 1, block(ECHO, method=b"GET"), END_HEADERS)], b"405"),
        ([frame(HEADERS, 1, block(ECHO, kind=b"text/plain"), END_HEADERS)], b"415"),
        ([frame(HEADERS, 1, block(ECHO, kind=b"application/grpcx"), END_HEADERS)], b"415"),
    ],
)
def test_requests_that_are_none(path: Path, sent: list[bytes], said: bytes) -> None:
    with asking(path) as (asker, _, _), raw(path) as connection:
        connection.send(*sent)
        payload = connection.end(1)
        assert said in payload or (len(said) > 1 and _huffman(said) in payload)
        assert asker.ask(ECHO, b"still there") == b"still there"


def _huffman(digits: bytes) -> bytes:
    """Digits as HPACK codes them (RFC 7541 appendix B): five bits for 0, 1 and 2, six for the others."""
    bits = "".join(f"{d - 48:05b}" if d < 51 else f"{d - 48 + 22:06b}" for d in digits)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_a_message_in_many_frames_and_many_in_one(path: Path) -> None:
    with asking(path) as (_, _, _), raw(path) as connection:
        sent = message(b"a" * 1000) + message(b"") + message(b"b" * 300)
        connection.send(request(1, TALK), *(frame(DATA, 1, sent[i : i + 1]) for i in range(700)))
        connection.send(frame(DATA, 1, sent[700:] + message(b"c") * 3), frame(DATA, 1, b"", END_STREAM))
        got = b""
        for kind, flags, stream, payload in connection.frames():
            if kind == DATA and stream == 1:
                got += payload
            if kind == HEADERS and flags & END_STREAM:
                break
        assert got == sent + message(b"c") * 3


def test_padding_is_no_data(path: Path) -> None:
    with asking(path) as (_, _, _), raw(path) as connection:
        padded = b"\x05" + message(b"padded") + bytes(5)
        connection.send(request(1, ECHO), frame(DATA, 1, padded, END_STREAM | 8))
        assert connection.until(DATA, 1) == message(b"padded")


def test_a_stream_that_was_answered_early_is_closed_for_its_client(path: Path) -> None:
    with asking(path) as (_, _, _), raw(path) as connection:
        connection.send(request(1, FAIL), frame(DATA, 1, message(b"no")))
        connection.end(1)
        assert connection.until(RST_STREAM, 1) == bytes(4)


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600", "%", "\n", "a\u20ac"])
def test_a_long_text_costs_no_status(path: Path, letter: str) -> None:
    with asking(path) as (asker, _, _):
        for before in range(4):  # where it is cut
            text = "y" * before + letter * 5000
            code, detail = asker.status(FAIL, text.encode())
            assert code == "INVALID_ARGUMENT"
            assert text.startswith(detail)
            assert len(detail.encode()) > 1000


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_call_on_both_sides(path: Path) -> None:
    with asking(path) as (_, test, _), raw(path) as connection:
        begun = time.monotonic()
        connection.send(request(1, HANG, (b"grpc-timeout", b"200m")), frame(DATA, 1, message(b""), END_STREAM))
        assert DEADLINE in connection.end(1)
        assert 0.2 <= time.monotonic() - begun < 10
        assert test.ended.acquire(timeout=10)


def test_a_deadline_ends_an_answer_that_nobody_reads(path: Path) -> None:
    with asking(path) as (_, test, served), raw(path) as connection:
        # Time enough for its handler to begin.
        connection.send(request(1, FLOW, (b"grpc-timeout", b"1500m")), frame(DATA, 1, message(b"8"), END_STREAM))
        assert test.ended.acquire(timeout=10)
        connection.until(RST_STREAM, 1)
        eventually(lambda: served.stats().calls == 0)


@pytest.mark.parametrize("how", ["reset", "lost"])
@pytest.mark.parametrize("what", [HANG, TALK, FLOW])
def test_a_client_that_goes_ends_its_calls(path: Path, how: str, what: str) -> None:
    with asking(path) as (asker, test, served):
        with raw(path) as connection:
            connection.send(request(1, what), frame(DATA, 1, message(b"9"), 0 if what == TALK else END_STREAM))
            eventually(lambda: served.stats().calls == 1)
            if what == HANG:
                assert test.hanging.acquire(timeout=10)
            else:
                connection.until(DATA, 1)
            if how == "reset":
                connection.send(frame(RST_STREAM, 1, b"\0\0\0\x08"))
                assert test.ended.acquire(timeout=10)
        if how == "lost":
            assert test.ended.acquire(timeout=10)
        eventually(lambda: served.stats().calls == 0)
        assert asker.ask(ECHO, b"others go on") == b"others go on"


def test_a_file_that_loses_its_end_is_never_read_as_whole(store: LocalStore, path: Path) -> None:
    from tests.unit.plugin.contentclient import Client, code
    from tests.unit.plugin.contentclient import serving as serving_content

    with serving_content(store, path) as client:
        data = os.urandom(8 << 20)
        digest = client.put("a", data)
        call = client.many("Read", _read(digest))
        next(call)
        os.truncate(store.root / "blobs" / "sha256" / digest.partition(":")[2], 3 << 20)
        assert code(lambda: list(call)) in ("INTERNAL", "DATA_LOSS")
        assert isinstance(client, Client)


def _read(digest: str) -> Any:
    from blobtee.wire.content import messages

    return messages.ReadContentRequest(digest=digest)


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_calls_above_the_limit_are_refused_until_some_end(path: Path) -> None:
    with asking(path, max_calls=3) as (asker, test, served):
        hanging = [asker.channel.unary_unary(HANG).future(b"", timeout=20) for _ in range(3)]
        for _ in hanging:
            assert test.hanging.acquire(timeout=10)
        for _ in range(5):
            assert asker.status(ECHO)[0] == "RESOURCE_EXHAUSTED"
        assert served.stats().refused == 5
        test.go_on.set()
        for each in hanging:
            each.result()
        eventually(lambda: asker.status(ECHO)[0] == "OK")


def test_a_reset_frees_no_place_before_its_handler_has_ended(path: Path) -> None:
    """Or who opens and resets would have as many handlers run as it likes."""
    with asking(path, max_calls=2) as (asker, test, _), raw(path) as connection:
        for stream in (1, 3):
            connection.send(request(stream, SINK), frame(DATA, stream, message(b"x")))
            assert test.hanging.acquire(timeout=10)
            connection.send(frame(RST_STREAM, stream, b"\0\0\0\x08"))
        for _ in range(3):
            assert asker.status(ECHO)[0] == "RESOURCE_EXHAUSTED"
        test.go_on.set()
        eventually(lambda: asker.status(ECHO)[0] == "OK")


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_large_messages_wait_for_room_and_all_arrive(path: Path) -> None:
    budget, nbytes, count = 8 << 20, 1 << 20, 24
    with asking(path, buffered_nbytes=budget) as (asker, test, served):
        talks = [asker.talk(SINK, iter([bytes(nbytes)])) for _ in range(count)]
        assert test.hanging.acquire(timeout=10)
        eventually(lambda: served.stats().buffered > nbytes)
        for _ in range(20):
            assert served.stats().buffered <= budget
            time.sleep(0.01)
        test.go_on.set()
        for talk in talks:
            list(talk)
        assert test.taken == count * nbytes
        eventually(lambda: served.stats().buffered == 0)


def test_a_large_message_that_does_not_come_on_gives_its_room_to_others(path: Path) -> None:
    with asking(path, buffered_nbytes=4 << 20, stall_seconds=0.3) as (asker, test, served), raw(path) as connection:
        test.go_on.set()
        connection.send(request(1, SINK), frame(DATA, 1, message(bytes(2 << 20))[:5000]))
        connection.until(WINDOW_UPDATE, 1)

        def fits() -> bool:
            try:
                return list(asker.talk(SINK, iter([bytes(2 << 20)]))) == [b"%d" % (2 << 20)]
            except grpc.RpcError as error:
                refused.add(error.code())
                return False

        refused: set[grpc.StatusCode] = set()
        eventually(fits)
        # On a machine that stood still, this one too waited for too long.
        assert refused <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert RESOURCE_EXHAUSTED in connection.end(1)
        eventually(lambda: served.stats().buffered == 0)


def test_what_waits_for_room_in_vain_is_told(path: Path) -> None:
    """One handler keeps its message for long."""
    with asking(path, buffered_nbytes=4 << 20, stall_seconds=0.5) as (asker, test, _):
        first = asker.talk(SINK, iter([bytes(2 << 20)]))
        assert test.hanging.acquire(timeout=10)
        assert asker.status(ECHO, bytes(2 << 20))[0] == "RESOURCE_EXHAUSTED"
        assert asker.ask(ECHO, bytes(2 << 10)) == bytes(2 << 10)
        test.go_on.set()
        assert list(first) == [b"%d" % (2 << 20)]
        eventually(lambda: asker.status(ECHO, bytes(2 << 20))[0] == "OK")


def test_small_messages_beyond_the_budget_are_refused_and_recover(path: Path) -> None:
    with asking(path, buffered_nbytes=1 << 20) as (asker, test, served), raw(path) as connection:
        for stream in range(1, 81, 2):
            connection.send(request(stream, SINK), frame(DATA, stream, message(bytes(16000))))
            connection.send(frame(DATA, stream, message(bytes(16000))), frame(DATA, stream, message(bytes(16000))))
        statuses = 0
        for kind, flags, _, payload in connection.frames():
            if kind == HEADERS and flags & END_STREAM:
                assert RESOURCE_EXHAUSTED in payload
                statuses += 1
                if statuses == 5:
                    break
        assert served.stats().buffered <= 1 << 20
        test.go_on.set()
        connection.close()
        eventually(lambda: served.stats()[1:3] == (0, 0))
        assert asker.ask(ECHO, b"again") == b"again"


def test_a_stream_may_not_send_more_than_its_window(path: Path) -> None:
    with asking(path) as (_, _, served), raw(path) as connection:
        connection.send(request(1, SINK), *(frame(DATA, 1, message(bytes(16000))) for _ in range(9)))
        assert connection.until(RST_STREAM, 1) == b"\0\0\0\x03"  # FLOW_CONTROL_ERROR
        assert served.stats().buffered <= 80 << 10


def test_who_does_not_read_holds_little(path: Path) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    with asking(path) as (asker, test, served), raw(path) as connection:
        asker.ask(ECHO, b"warm")
        before = resident()
        ask = (frame(DATA, stream, message(b"64"), END_STREAM) for stream in range(1, 201, 2))
        connection.send(*(request(stream, FLOW) + next(ask) for stream in range(1, 201, 2)))
        eventually(lambda: served.stats().calls == 100)
        time.sleep(0.3)
        assert asker.ask(ECHO, b"others are served") == b"others are served"
        # A message of the handler's own each, here, and the thread: nothing that follows 64 MiB.
        assert resident() - before < 100 * (1 << 20) + (60 << 20)
        connection.close()
        for _ in range(100):
            assert test.ended.acquire(timeout=20)


# ---- stopping -------------------------------------------------------------------------------------------------------


def test_what_runs_at_the_stop_may_end_and_what_does_not_is_unavailable(path: Path) -> None:
    test = Test()
    with serving_at(path, test) as served:
        asker = Asker(path)
        ends = asker.channel.unary_unary(HANG).future(b"", timeout=20)
        assert test.hanging.acquire(timeout=10)
        stopping = threading.Thread(target=served.stop, args=(20,))
        stopping.start()
        time.sleep(0.1)
        test.go_on.set()
        assert bytes(ends.result()) == b"late"
        stopping.join(20)
        assert not stopping.is_alive()
        asker.channel.close()
    path.unlink()
    test = Test()
    with serving_at(path, test) as served:
        asker = Asker(path)
        call = asker.talk(TALK, iter([b"x"]))
        cut = asker.channel.unary_unary(HANG).future(b"", timeout=20)
        assert test.hanging.acquire(timeout=10)
        assert next(call) == b"x"
        eventually(lambda: served.stats().calls == 1)
        served.stop(0.1)
        assert cut.code() is grpc.StatusCode.UNAVAILABLE
        assert list(call) == []
        asker.channel.close()


def test_a_client_is_told_to_go_elsewhere(path: Path) -> None:
    test = Test()
    with serving_at(path, test) as served, raw(path) as connection:
        connection.send(request(1, HANG), frame(DATA, 1, message(b""), END_STREAM))
        assert test.hanging.acquire(timeout=10)
        served.drain()
        assert connection.until(GOAWAY)[:4] == b"\x7f\xff\xff\xff"
        ping = connection.until(PING)
        # What was under way to it before it knew is answered.
        connection.send(request(3, ECHO), frame(DATA, 3, message(b"just in time"), END_STREAM))
        assert connection.until(DATA, 3) == message(b"just in time")
        connection.send(frame(PING, 0, ping, ACK))
        assert connection.until(GOAWAY)[:4] == b"\0\0\0\x03"
        # What comes now was never seen, as the last frame says; its client may ask elsewhere.
        connection.send(request(5, ECHO), frame(DATA, 5, message(b"too late"), END_STREAM))
        test.go_on.set()
        assert connection.until(DATA, 1) == message(b"late")
        assert connection.is_closed()


def test_who_asks_for_figures_at_the_end_gets_them_before_all_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats, close = H2Server.stats, H2Server.close
    asking_now, closed = threading.Event(), threading.Event()
    closed_meanwhile: list[bool] = []

    def slow_stats(server: H2Server) -> H2Stats:
        asking_now.set()
        closed_meanwhile.append(closed.wait(1))
        return stats(server)

    def noted_close(server: H2Server) -> None:
        closed.set()
        close(server)

    monkeypatch.setattr(H2Server, "stats", slow_stats)
    monkeypatch.setattr(H2Server, "close", noted_close)
    with serving_at(path, Test()) as served:
        scrape = threading.Thread(target=served.stats)
        scrape.start()
        assert asking_now.wait(10)
    scrape.join()
    assert closed_meanwhile == [False]
    assert served.stats().connections == 0
