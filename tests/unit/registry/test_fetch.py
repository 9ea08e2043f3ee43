"""Reading blobs by the rules of `spec/tee.md` section 2: each rule is a test."""

from __future__ import annotations

import random
import threading
import time
from typing import cast

import pytest

from blobtee import tasks
from blobtee.content.api import ReaderAt
from blobtee.errors import (
    Cancelled,
    Closed,
    ConnectionFailed,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ProtocolViolation,
    RemoteError,
    SizeMismatch,
    TooManyRequests,
)
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Registry, Settings
from blobtee.registry.bodies import Source
from blobtee.registry.fetcher import BlobReader
from blobtee.registry.redirects import MOST, Redirects
from blobtee.registry.streams import BlobSource
from blobtee.registry.transport import Url
from tests.unit.registry.conftest import QUICK, Connect, Serve
from tests.unit.registry.scripted import Asked, Server, Wire, blob_script

DATA = random.Random(7).randbytes(1_000_003)
DESC = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))


def reader(registry: Registry, server: Server, desc: Descriptor = DESC) -> ReaderAt:
    return registry.repository(f"{server.host}/team/app").reader_at(desc)


def read_all(registry: Registry, server: Server, desc: Descriptor = DESC, offset: int = 0) -> bytes:
    with reader(registry, server, desc) as blob, blob.open(offset) as file:
        return file.read()


def test_a_whole_blob_is_one_request_without_a_range(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    assert read_all(connect(), server) == DATA
    [asked] = server.requests
    assert asked.path == f"/v2/team/app/blobs/{DESC.digest}"
    assert "range" not in asked.headers
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["user-agent"].startswith("blobtee/")
    assert "authorization" not in asked.headers


def test_the_rest_of_a_blob_is_one_bounded_range(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    assert read_all(connect(), server, offset=1234) == DATA[1234:]
    assert [r.range for r in server.requests] == [(1234, len(DATA))]


@pytest.mark.parametrize(("offset", "n"), [(0, 1), (5, 100), (65_536, 65_536), (len(DATA) - 3, 10), (0, 2_000_000)])
def test_a_read_is_one_bounded_range(serve: Serve, connect: Connect, offset: int, n: int) -> None:
    server = serve(blob_script(DATA))
    with reader(connect(), server) as blob:
        assert blob.read_at(offset, n) == DATA[offset : offset + n]
    assert len(server.requests) == 1


def test_random_ranges_come_out_exact_and_share_one_connection(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    chance = random.Random(3)
    with reader(connect(settings=Settings()), server) as blob:
        for _ in range(60):
            offset = chance.randrange(len(DATA))
            n = chance.choice([1, 10, 1000, 100_000, 700_000])
            assert blob.read_at(offset, n) == DATA[offset : offset + n]
    assert server.connections == 1


def test_random_ranges_come_out_exact_when_the_socket_is_taken_over(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    chance = random.Random(4)
    with reader(connect(settings=Settings(takeover=1)), server) as blob:
        for _ in range(60):
            offset = chance.randrange(len(DATA))
            n = chance.choice([1, 10, 1000, 100_000, 700_000])
            assert blob.read_at(offset, n) == DATA[offset : offset + n]


def test_nothing_to_read_is_no_request(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    empty = Descriptor("application/octet-stream", Digest.of(b""), 0)
    with connect() as registry:
        with reader(registry, server) as blob:
            assert blob.read_at(len(DATA), 10) == b""
            assert blob.read_at(5, 0) == b""
            with pytest.raises(OutOfRange):
                blob.read_at(len(DATA) + 1, 1)
        assert read_all(registry, server, empty) == b""
    assert server.requests == []


def test_a_closed_reader_refuses(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    blob = reader(connect(), server)
    file = blob.open()
    blob.close()
    with pytest.raises(Closed):
        blob.read_at(0, 1)
    with pytest.raises(Closed):
        file.read(1)
    file.close()


def test_a_seek_inside_the_file_costs_a_request_and_gives_the_right_bytes(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    with reader(connect(), server) as blob, blob.open() as file:
        assert file.read(10) == DATA[:10]
        file.seek(900_000)
        assert file.read(10) == DATA[900_000:900_010]
        file.seek(3)
        assert file.read(4) == DATA[3:7]
        file.seek(20_000)  # Near enough to read up to.
        assert file.read(5) == DATA[20_000:20_005]
    assert len(server.requests) == 3


def lying(**headers: str) -> str:
    return "\r\n".join(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())


SIZE = len(DATA)


@pytest.mark.parametrize(
    ("case", "status", "fields", "body"),
    [
        ("wrong start", 206, [("Content-Range", f"bytes 99-199/{SIZE}")], DATA[99:199]),
        ("wrong end", 206, [("Content-Range", f"bytes 100-198/{SIZE}")], DATA[100:199]),
        ("other total", 206, [("Content-Range", f"bytes 100-199/{SIZE + 1}")], DATA[100:200]),
        ("unknown total", 206, [("Content-Range", "bytes 100-199/*")], DATA[100:200]),
        ("unsatisfied", 206, [("Content-Range", f"bytes */{SIZE}")], DATA[100:200]),
        ("no Content-Range", 206, [], DATA[100:200]),
        (
            "two Content-Range",
            206,
            [("Content-Range", f"bytes 100-199/{SIZE}"), ("Content-Range", f"bytes 100-199/{SIZE}")],
            DATA[100:200],
        ),
        ("multipart", 206, [("Content-Type", "multipart/byteranges; boundary=x")], b"--x\r\n\r\nabc\r\n--x--"),
        ("longer body", 206, [("Content-Range", f"bytes 100-199/{SIZE}")], DATA[100:300]),
        ("shorter body", 206, [("Content-Range", f"bytes 100-199/{SIZE}")], DATA[100:150]),
        (
            "gzip",
            206,
            [("Content-Range", f"bytes 100-199/{SIZE}"), ("Content-Encoding", "gzip")],
            DATA[100:200],
        ),
        ("200 with another length", 200, [], DATA[100:200]),
    ],
)
def test_a_wrong_answer_to_a_range_is_refused(
    serve: Serve, connect: Connect, case: str, status: int, fields: list[tuple[str, str]], body: bytes
) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        wire.send(f"HTTP/1.1 {status} X\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    server = serve(script)
    with reader(connect(), server) as blob, pytest.raises(ProtocolViolation) as caught:
        blob.read_at(100, 100)
    assert server.host in str(caught.value)


def test_416_means_that_the_size_is_wrong(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(416, {"Content-Range": "bytes */5"}))
    with reader(connect(), server) as blob, pytest.raises(SizeMismatch):
        blob.read_at(100, 100)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_whole_blob_of_another_length_is_refused_before_its_bytes(serve: Serve, connect: Connect, extra: int) -> None:
    server = serve(blob_script(DATA + b"x" if extra > 0 else DATA[:-1]))
    with pytest.raises(SizeMismatch):
        read_all(connect(), server)


def test_a_partial_answer_to_a_whole_request_is_refused(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(206, {"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}, DATA))
    with pytest.raises(ProtocolViolation):
        read_all(connect(), server)


def chunked(data: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (data[:7], data[7:])) + b"0\r\n\r\n"


def test_a_body_without_a_length_is_counted(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(200, {"Transfer-Encoding": "chunked"}, chunked(DATA)))
    assert read_all(connect(), server) == DATA


def test_a_body_without_a_length_that_goes_on_is_refused(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(200, {"Transfer-Encoding": "chunked"}, chunked(DATA + b"more")))
    with pytest.raises(ProtocolViolation, match="more bytes"):
        read_all(connect(), server)


def test_bytes_after_the_end_do_not_reach_the_next_request(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        assert asked.range is not None
        start, end = asked.range
        head = (
            f"HTTP/1.1 206 X\r\nContent-Range: bytes {start}-{end - 1}/{SIZE}\r\nContent-Length: {end - start}\r\n\r\n"
        )
        wire.send(head.encode() + DATA[start:end] + b"HTTP/1.1 206 Smuggled\r\nContent-Length: 0\r\n\r\n")

    server = serve(script)
    with reader(connect(), server) as blob:
        for start in (0, 50, 1000):
            assert blob.read_at(start, 20) == DATA[start : start + 20]
    assert server.connections == 3


def test_200_to_a_range_is_taken_whole_and_once(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(200, {}, DATA))
    with reader(connect(), server) as blob:
        for start in (500_000, 3, 999_999):
            assert blob.read_at(start, 1000) == DATA[start : start + 1000]
    assert len(server.requests) == 1


def test_200_on_the_third_range_only_is_taken_whole(serve: Serve, connect: Connect) -> None:
    good = blob_script(DATA)

    def script(asked: Asked, wire: Wire) -> None:
        if len(server.requests) == 3:
            wire.answer(200, {}, DATA)
        else:
            good(asked, wire)

    server = serve(script)
    with reader(connect(), server) as blob:
        for start in (500_000, 3, 999_000, 7, 8):
            assert blob.read_at(start, 1000) == DATA[start : start + 1000]
    assert len(server.requests) == 3


def test_501_to_a_range_asks_for_the_whole(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(501) if asked.range else wire.answer(200, {}, DATA))
    with reader(connect(), server) as blob:
        assert blob.read_at(100, 10) == DATA[100:110]
        assert blob.read_at(5000, 10) == DATA[5000:5010]
    assert len(server.requests) == 2


def test_a_stream_from_a_host_without_ranges_starts_over_once_and_no_more(serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.answer(200, {"Content-Length": str(SIZE)}, DATA[: SIZE // 2])
        wire.drop()

    server = serve(script)
    with pytest.raises(ProtocolViolation, match="no ranges"):
        read_all(connect(), server)
    assert len(server.requests) == 2


def dying(at: list[int], how: str) -> tuple[list[int], object]:
    """A blob whose connection ends after so many bytes, one number for each of the first requests."""
    sent: list[int] = []

    def script(asked: Asked, wire: Wire) -> None:
        start, end = asked.range or (0, SIZE)
        limit = at[len(sent)] if len(sent) < len(at) else end - start
        piece = DATA[start : min(end, start + limit)]
        sent.append(len(piece))
        head = {"Content-Length": str(end - start), "ETag": '"one"'}
        if asked.range:
            head["Content-Range"] = f"bytes {start}-{end - 1}/{SIZE}"
        wire.answer(206 if asked.range else 200, head, piece)
        if len(piece) < end - start:
            getattr(wire, how)()

    return sent, script


@pytest.mark.parametrize("how", ["drop", "silence"])
@pytest.mark.parametrize("takeover", [1, 1 << 30])
def test_a_body_that_breaks_off_is_resumed_at_the_byte(serve: Serve, connect: Connect, how: str, takeover: int) -> None:
    sent, script = dying([700_000, 0, 123_457], how)
    server = serve(script)
    settings = Settings(stall=0.2, backoff=0.01, patience=5, takeover=takeover)
    assert read_all(connect(settings=settings), server) == DATA
    assert [r.range for r in server.requests] == [None, (700_000, SIZE), (700_000, SIZE), (823_457, SIZE)]
    assert sum(sent) == SIZE


def test_a_range_that_breaks_off_is_resumed_at_the_byte(serve: Serve, connect: Connect) -> None:
    _, script = dying([100], "drop")
    server = serve(script)
    with reader(connect(), server) as blob:
        assert blob.read_at(1000, 1000) == DATA[1000:2000]
    assert [r.range for r in server.requests] == [(1000, 2000), (1100, 2000)]


def test_eof_one_byte_early_is_never_taken_for_the_end(serve: Serve, connect: Connect) -> None:
    _, script = dying([SIZE - 1], "drop")
    server = serve(script)
    assert read_all(connect(), server) == DATA
    assert server.requests[1].range == (SIZE - 1, SIZE)


def test_what_came_before_a_final_failure_is_handed_out_first(serve: Serve, connect: Connect) -> None:
    _, script = dying([600_000, *[0] * 1000], "drop")
    server = serve(script)
    settings = Settings(backoff=0.01, patience=0.2)
    with reader(connect(settings=settings), server) as blob, blob.open() as file:
        buffer = bytearray(SIZE)
        n = file.readinto(buffer)
        assert n == 600_000
        assert buffer[:n] == DATA[:n]
        with pytest.raises(ConnectionFailed) as caught:
            file.read(1)
        assert server.host in str(caught.value)


def test_a_trickle_is_no_progress(serve: Serve, connect: Connect) -> None:
    _, script = dying([10] * 100_000, "drop")
    server = serve(script)
    with pytest.raises(ConnectionFailed):
        read_all(connect(settings=Settings(backoff=0.02, patience=0.5)), server)
    assert len(server.requests) < 100


def test_a_changed_etag_is_refused_on_resume(serve: Serve, connect: Connect) -> None:
    _, script = dying([1000], "drop")

    def changing(asked: Asked, wire: Wire) -> None:
        if asked.range is None:
            script(asked, wire)  # type: ignore[operator]
        start, end = asked.range or (0, 0)
        head = {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "ETag": '"two"'}
        wire.answer(206, head, DATA[start:end])

    server = serve(changing)
    with pytest.raises(ProtocolViolation, match="other bytes"):
        read_all(connect(), server)


def test_a_weak_etag_says_nothing(serve: Serve, connect: Connect) -> None:
    tags = iter(['W/"a"', 'W/"b"'])

    def script(asked: Asked, wire: Wire) -> None:
        start, end = asked.range or (0, SIZE)
        head = {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "ETag": next(tags)}
        wire.answer(206, head, DATA[start:end])

    with reader(connect(), serve(script)) as blob:
        assert blob.read_at(1, 5) + blob.read_at(6, 5) == DATA[1:11]


def test_the_registry_dies_at_70_percent_and_comes_back(connect: Connect) -> None:
    _, script = dying([SIZE * 7 // 10], "drop")
    first = Server(script)  # type: ignore[arg-type]
    second: list[Server] = []
    registry = connect(settings=Settings(backoff=0.1, patience=20))
    got = bytearray()
    with reader(registry, first) as blob, blob.open() as file:
        while len(got) < SIZE * 7 // 10:
            got += file.read(100_000)
            if len(got) == 600_000:
                # The listener is gone by the time the body ends: connections are refused for a while.
                back = threading.Timer(0.5, lambda: second.append(Server(script, port=first.port)))  # type: ignore[arg-type]
                back.start()
                threading.Thread(target=first.close).start()
        got += file.read()
    back.join()
    second[0].close()
    assert bytes(got) == DATA
    moved = sum(
        (r.range or (0, SIZE * 7 // 10))[1] - (r.range or (0, 0))[0] for r in first.requests + second[0].requests
    )
    assert moved <= 1.01 * SIZE


def test_retry_after_is_waited_for(serve: Serve, connect: Connect) -> None:
    good = blob_script(DATA)

    def script(asked: Asked, wire: Wire) -> None:
        if len(server.requests) == 1:
            wire.answer(429, {"Retry-After": "1"})
        else:
            good(asked, wire)

    server = serve(script)
    started = time.monotonic()
    assert read_all(connect(settings=Settings(backoff=0.001)), server) == DATA
    assert time.monotonic() - started >= 1.0


def test_429_to_the_end_is_too_many_requests(serve: Serve, connect: Connect) -> None:
    server = serve(
        lambda asked, wire: wire.answer(429, {}, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}')
    )
    with pytest.raises(TooManyRequests, match="TOOMANYREQUESTS: slow"):
        read_all(connect(settings=Settings(backoff=0.01, patience=0.1)), server)


def test_an_unreasonable_retry_after_does_not_hang(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(503, {"Retry-After": "999999999999"}))
    started = time.monotonic()
    with pytest.raises(RemoteError):
        read_all(connect(), server)
    assert time.monotonic() - started < 30, "the longest pause that a host is granted is a minute"


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (403, PermissionDenied)])
def test_refusals_name_host_repository_and_digest(
    serve: Serve, connect: Connect, status: int, kind: type[Exception]
) -> None:
    server = serve(lambda asked, wire: wire.answer(status))
    with pytest.raises(kind) as caught:
        read_all(connect(), server)
    assert server.host in str(caught.value)
    assert f"team/app@{DESC.digest}" in str(caught.value)


def signed(serve: Serve, lifetime: int) -> tuple[Server, Server]:
    """A registry that redirects to storage with signatures that are good for `lifetime` requests."""
    good = blob_script(DATA)
    uses: dict[str, int] = {}

    def store(asked: Asked, wire: Wire) -> None:
        assert "authorization" not in asked.headers
        key = asked.query["signature"][0]
        uses[key] = uses.get(key, 0) + 1
        if uses[key] > lifetime:
            wire.answer(403, {}, b"expired")
        else:
            good(asked, wire)

    storage = serve(store)

    def front(asked: Asked, wire: Wire) -> None:
        wire.answer(307, {"Location": f"{storage.url}/data?signature=s{len(registry.requests)}"})

    registry = serve(front)
    return registry, storage


def test_a_redirect_is_remembered_and_renewed_when_its_signature_expires(serve: Serve, connect: Connect) -> None:
    registry, storage = signed(serve, 3)
    with reader(connect(), registry) as blob:
        for start in range(0, 700, 100):
            assert blob.read_at(start, 100) == DATA[start : start + 100]
    assert len(registry.requests) == 3
    assert len(storage.requests) == 9


def test_a_redirect_is_remembered_from_reader_to_reader(serve: Serve, connect: Connect) -> None:
    registry, storage = signed(serve, 3)
    client = connect()
    for start in range(0, 400, 100):
        with reader(client, registry) as blob:
            assert blob.read_at(start, 100) == DATA[start : start + 100]
    assert len(registry.requests) == 2
    assert len(storage.requests) == 5


def test_redirects_are_remembered_of_so_many_blobs_and_no_more() -> None:
    known = Redirects()
    urls = [Url.parse(f"http://127.0.0.1/{number}") for number in range(MOST + 1)]
    for url in urls[:-1]:
        known.remember(url, urls[-1])
    assert known.get(urls[0]) == urls[-1]
    known.remember(urls[-1], urls[0])
    assert known.get(urls[0]) == urls[-1], "it was asked for last"
    assert known.get(urls[1]) is None
    known.forget(urls[0], urls[5])
    assert known.get(urls[0]) == urls[-1], "it is another by now"
    known.forget(urls[0], urls[-1])
    assert known.get(urls[0]) is None


def test_a_signature_that_is_never_good_is_tried_twice(serve: Serve, connect: Connect) -> None:
    registry, storage = signed(serve, 0)
    with pytest.raises(PermissionDenied):
        read_all(connect(), registry)
    assert len(registry.requests) == len(storage.requests) == 2


def test_cancelling_ends_a_blocked_read_at_once(serve: Serve, connect: Connect) -> None:
    _, script = dying([1000], "silence")
    server = serve(script)
    registry = connect(settings=Settings(stall=60))
    with tasks.scope() as scope:
        threading.Timer(0.2, scope.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            read_all(registry, server)
    assert time.monotonic() - started < 15


def test_cancelling_ends_a_pause_between_tries_at_once(serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(503, {"Retry-After": "30"}))
    registry = connect(settings=Settings())
    with tasks.scope() as scope:
        threading.Timer(0.2, scope.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            read_all(registry, server)
    assert time.monotonic() - started < 15


def test_five_files_read_in_turn_do_not_wait_for_each_other_for_ever(serve: Serve, connect: Connect) -> None:
    server = serve(blob_script(DATA))
    with reader(connect(settings=Settings(takeover=1)), server) as blob:
        files = [blob.open() for _ in range(6)]
        for _ in range(2):
            for file in files:
                assert len(file.read(1000)) == 1000
        for file in files:
            assert file.read() == DATA[2000:]
            file.close()


def test_no_more_than_the_allowed_downloads_run_at_once(serve: Serve, connect: Connect) -> None:
    running = 0
    most = 0
    lock = threading.Lock()
    good = blob_script(DATA)

    def script(asked: Asked, wire: Wire) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        good(asked, wire)

    server = serve(script)
    with reader(connect(), server) as blob, tasks.Group() as group:
        for start in range(16):
            group.spawn(blob.read_at, start * 100, 100)
    assert 2 <= most <= QUICK.downloads


def test_two_threads_that_fail_at_once_both_get_the_error() -> None:
    class Forgotten:
        """Failed when the reader looks, and forgiven by another thread right after."""

        looks = 0

        @property
        def failure(self) -> NotFound | None:
            self.looks += 1
            return NotFound("gone") if self.looks == 1 else None

        @failure.setter
        def failure(self, error: NotFound | None) -> None:
            pass

    with BlobReader(BlobSource(cast(list[Source], [Forgotten()]), DESC, QUICK)) as reader, pytest.raises(NotFound):
        reader.read_at(0, 1)
