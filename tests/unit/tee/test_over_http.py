"""The tee over HTTP: what hosts do wrong, and when (`spec/tee.md` section 5). `test_corner_cases.py` has the list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.content import LocalStore, ReaderAt, Trust
from blobtee.errors import (
    Cancelled,
    Closed,
    DigestMismatch,
    LazyUnavailable,
    ProtocolViolation,
    SizeMismatch,
)
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Hosts, Registry
from blobtee.tee import Source, Tee
from blobtee.tee.map import CHUNK
from tests.unit.registry.conftest import QUICK, Connect, Serve
from tests.unit.registry.scripted import Asked, Script, Server, Wire, blob_script
from tests.unit.registry.test_auth import Guarded
from tests.unit.tee.support import chunks, desc_of, some_bytes

DATA = some_bytes(chunks(20) + 777, 3)
DESC = desc_of(DATA)
SIZE = len(DATA)
GOOD = blob_script(DATA)

every_trust = pytest.mark.parametrize("trust", [Trust.RAW, Trust.STREAMED, Trust.BLOB])


def source_of(registry: Registry, server: Server, desc: Descriptor = DESC) -> Callable[[], Source]:
    """A factory that is bound anew for each reader."""
    return lambda: registry.repository(f"{server.host}/a/b").source(desc)


def sent_ranges(server: Server) -> list[tuple[int, int] | None]:
    return [asked.range for asked in server.requests]


class Turning:
    """A host that is good, until it is told to do something else."""

    def __init__(self) -> None:
        self.script: Script = GOOD

    def __call__(self, asked: Asked, wire: Wire) -> None:
        self.script(asked, wire)


@contextmanager
def begun(tee: Tee, registry: Registry, server: Server, trust: Trust) -> Iterator[ReaderAt]:
    """A reader of a blob of which the first chunk is here: whatever is asked for from now on is a range."""
    with tee.reader_at(DESC, source_of(registry, server), Trust.RAW) as first:
        first.read_at(0, 1)
        server.requests.clear()
        with tee.reader_at(DESC, source_of(registry, server), trust) as reader:
            yield reader


# ---- HTTP -----------------------------------------------------------------------------------------------------------


def whole(asked: Asked, wire: Wire) -> None:
    """200 to whatever was asked."""
    wire.answer(200, {}, DATA)


@every_trust
@pytest.mark.parametrize("at", [0, chunks(7) + 5], ids=["200 at offset 0", "200 at an offset above 0"])
def test_a_host_that_answers_a_range_with_everything_is_asked_once(
    at: int, trust: Trust, tee: Tee, store: LocalStore, serve: Serve, connect: Connect
) -> None:
    server = serve(whole)
    source = source_of(connect(), server)
    with tee.reader_at(DESC, source, trust) as reader:
        assert reader.read_at(at, 100) == DATA[at : at + 100]
        assert reader.read_at(0, SIZE) == DATA
    tee.fill(DESC, source)
    assert len(server.requests) == 1
    with store.reader_at(DESC) as committed:
        assert committed.read_at(0, SIZE) == DATA


@every_trust
def test_200_on_the_third_part_only(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        (whole if len(server.requests) == 3 else GOOD)(asked, wire)

    server = serve(script)
    source = source_of(connect(), server)
    with tee.reader_at(DESC, source, Trust.RAW) as raw:
        for at in (chunks(2), chunks(5), chunks(9)):
            assert raw.read_at(at, 100) == DATA[at : at + 100]
        with tee.reader_at(DESC, source, trust) as reader:
            assert reader.read_at(0, SIZE) == DATA
    assert len(server.requests) == 3


def says(status: int, *fields: tuple[str, str], start: int = 0, end: int = 0, body: bytes | None = None) -> Script:
    """An answer to a range that is moved by `start` and `end` from what was asked for; `{start}`, `{last}` and `{size}`
    in a field are those of the request."""

    def script(asked: Asked, wire: Wire) -> None:
        assert asked.range is not None
        begin, stop = asked.range
        head = "".join(
            f"{name}: {value.format(start=begin, last=stop - 1, short=stop - 2, late=begin + 1, size=SIZE)}\r\n"
            for name, value in fields
        )
        data = DATA[begin + start : stop + min(end, 0)] + bytes(max(end, 0)) if body is None else body
        wire.send(f"HTTP/1.1 {status} X\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    return script


RANGE = ("Content-Range", "bytes {start}-{last}/{size}")
WRONG: dict[str, Script] = {
    "206 with a wrong start": says(206, ("Content-Range", "bytes {late}-{last}/{size}"), start=1),
    "206 with a short end": says(206, ("Content-Range", "bytes {start}-{short}/{size}"), end=-1),
    "206 with a short body": says(206, RANGE, end=-1),
    "206 with a long body": says(206, RANGE, end=1),
    "206 of an unknown total": says(206, ("Content-Range", "bytes {start}-{last}/*")),
    "206 of another total": says(206, ("Content-Range", "bytes {start}-{last}/{size}1")),
    "206 without Content-Range": says(206),
    "two Content-Range headers": says(206, RANGE, RANGE),
    "multipart answer": says(
        206, ("Content-Type", "multipart/byteranges; boundary=x"), body=b"--x\r\n\r\nabc\r\n--x--"
    ),
    "gzip encoding": says(206, RANGE, ("Content-Encoding", "gzip")),
    "200 of another length": says(200),
}


@every_trust
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_an_answer_that_is_not_what_was_asked_for_is_refused_and_leaves_nothing(
    wrong: Script, trust: Trust, tee: Tee, store: LocalStore, serve: Serve, connect: Connect
) -> None:
    host = Turning()
    server = serve(host)
    registry = connect()
    with begun(tee, registry, server, trust) as reader:
        host.script = wrong
        with pytest.raises(ProtocolViolation) as caught:
            reader.read_at(chunks(4), 100)
        assert server.host in str(caught.value)
        host.script = GOOD
        assert reader.read_at(chunks(4), 100) == DATA[chunks(4) : chunks(4) + 100]
        assert reader.read_at(0, SIZE) == DATA
    tee.fill(DESC, source_of(registry, server))
    with store.reader_at(DESC) as committed:
        assert committed.read_at(0, SIZE) == DATA


@every_trust
def test_a_whole_blob_that_is_encoded_is_refused(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    host = Turning()
    host.script = lambda asked, wire: wire.answer(200, {"Content-Encoding": "gzip"}, DATA)
    server = serve(host)
    with tee.reader_at(DESC, source_of(connect(), server), trust) as reader:
        with pytest.raises(ProtocolViolation, match="gzip"):
            reader.read_at(chunks(4), 100)
        host.script = GOOD
        assert reader.read_at(chunks(4), 100) == DATA[chunks(4) : chunks(4) + 100]


@every_trust
@pytest.mark.parametrize("more", [b"", b"more"], ids=["no length", "no length, and more than the blob"])
def test_a_body_without_a_length_is_counted(
    more: bytes, trust: Trust, tee: Tee, serve: Serve, connect: Connect
) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        start, end = asked.range or (0, SIZE)
        head = {"Transfer-Encoding": "chunked"}
        if asked.range:
            head["Content-Range"] = f"bytes {start}-{end - 1}/{SIZE}"
        parts = [part for part in (DATA[start : start + 7], DATA[start + 7 : end] + more) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        wire.answer(206 if asked.range else 200, head, body)

    server = serve(script)
    with tee.reader_at(DESC, source_of(connect(), server), trust) as reader:
        if more:
            with pytest.raises(ProtocolViolation, match="more bytes"):
                reader.read_at(SIZE - 100, 100)
        else:
            assert reader.read_at(SIZE - 100, 100) == DATA[-100:]
            assert reader.read_at(0, SIZE) == DATA


@every_trust
def test_head_is_not_needed(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "HEAD":
            wire.answer(405)
        else:
            GOOD(asked, wire)

    server = serve(script)
    with tee.reader_at(DESC, source_of(connect(), server), trust) as reader:
        assert reader.read_at(chunks(3), 9) == DATA[chunks(3) : chunks(3) + 9]
    assert not server.asked("HEAD")


@every_trust
@pytest.mark.parametrize("relative", [False, True], ids=["307 chains", "relative Location"])
def test_redirects_are_followed_and_remembered(
    relative: bool, trust: Trust, tee: Tee, serve: Serve, connect: Connect
) -> None:
    storage = serve(lambda asked, wire: step(asked, wire))
    base = "" if relative else storage.url

    def step(asked: Asked, wire: Wire) -> None:
        number = int(asked.query.get("step", ["0"])[0])
        if number < 3:
            wire.answer(307, {"Location": f"{base}/data?step={number + 1}"})
        else:
            GOOD(asked, wire)

    front = storage if relative else serve(lambda asked, wire: wire.answer(307, {"Location": f"{base}/data?step=1"}))
    with begun(tee, connect(), front, trust) as reader:
        assert reader.read_at(chunks(3), 9) == DATA[chunks(3) : chunks(3) + 9]
        assert reader.read_at(0, SIZE) == DATA
    assert all(asked.query["step"] == ["3"] for asked in front.requests), "the end of the chain is asked at once"


# ---- Time -----------------------------------------------------------------------------------------------------------


class Signed:
    """A registry that redirects to storage by links which are good until `expire`; a body breaks off after `breaks_at`
    bytes, once, and its link is good no more then."""

    def __init__(self, serve: Serve, breaks_at: int | None = None) -> None:
        self.good = 0
        self.breaks_at = breaks_at
        self.storage = serve(self.store)
        self.front = serve(self.redirect)

    def expire(self) -> None:
        self.good += 1

    def redirect(self, asked: Asked, wire: Wire) -> None:
        wire.answer(307, {"Location": f"{self.storage.url}/data?signature={self.good}"})

    def store(self, asked: Asked, wire: Wire) -> None:
        assert "authorization" not in asked.headers
        if asked.query["signature"] != [str(self.good)]:
            wire.answer(403, {}, b"expired")
            return
        if self.breaks_at is None or asked.range is None or asked.range[1] - asked.range[0] < self.breaks_at:
            GOOD(asked, wire)
            return
        start, end = asked.range
        head = {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "Content-Length": str(end - start)}
        wire.answer(206, head, DATA[start : start + self.breaks_at])
        self.breaks_at = None
        self.expire()
        wire.drop()


@every_trust
def test_a_url_that_expires_while_its_body_comes(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    signed = Signed(serve, breaks_at=150_001)
    with begun(tee, connect(), signed.front, trust) as reader:
        assert reader.read_at(chunks(2), chunks(10)) == DATA[chunks(2) : chunks(12)]
        assert reader.read_at(0, SIZE) == DATA
    assert len(signed.front.requests) == 1, "the first was before"
    *_, refused, resumed = sent_ranges(signed.storage)[:4]
    assert refused == resumed
    assert resumed is not None
    assert resumed[0] % CHUNK, "from the byte that it came to"


@every_trust
def test_a_url_that_expires_between_reads(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    signed = Signed(serve)
    with begun(tee, connect(), signed.front, trust) as reader:
        signed.expire()
        assert reader.read_at(chunks(9), 9) == DATA[chunks(9) : chunks(9) + 9]
    assert len(signed.front.requests) == 1


def test_a_token_that_expires_while_its_request_waits_in_line(tee: Tee, serve: Serve, connect: Connect) -> None:
    gate = threading.Event()

    def slow(asked: Asked, wire: Wire) -> None:
        if asked.range == (0, CHUNK):
            gate.wait(10)
        GOOD(asked, wire)

    guarded = Guarded(serve, slow)
    source = source_of(connect(settings=replace(QUICK, downloads=1, answer=10.0)), guarded.registry)
    with tee.reader_at(DESC, source, Trust.RAW) as reader, tasks.Group() as group:
        first = group.spawn(reader.read_at, 0, 9)
        while not guarded.valid or not guarded.registry.requests[1:]:
            tasks.sleep(0.001)
        waiting = group.spawn(reader.read_at, chunks(8), 9)
        while len(next(iter(tee._open)).engine._fetches) < 2:
            tasks.sleep(0.001)
        guarded.valid.clear()
        gate.set()
        assert first.result() == DATA[:9]
        assert waiting.result() == DATA[chunks(8) : chunks(8) + 9]
    assert len(guarded.tokens.requests) == 2, "a new one, once"


@every_trust
def test_a_session_that_closes_while_another_waits_for_what_it_fetches(
    trust: Trust, tee: Tee, serve: Serve, connect: Connect
) -> None:
    def slow(asked: Asked, wire: Wire) -> None:
        if len(server.requests) == 1:
            wire.silence()
        GOOD(asked, wire)

    server = serve(slow)
    ours, theirs = connect(settings=replace(QUICK, stall=60.0, answer=60.0)), connect()
    with (
        tee.reader_at(DESC, source_of(ours, server), trust) as one,
        tee.reader_at(DESC, source_of(theirs, server), trust) as other,
        tasks.Group() as group,
    ):

        def read_or_be_closed() -> None:
            with suppress(Closed):  # or what the other one has brought
                assert one.read_at(chunks(3), 9) == DATA[chunks(3) : chunks(3) + 9]

        closed = group.spawn(read_or_be_closed)
        while not server.requests:
            tasks.sleep(0.001)
        waiting = group.spawn(other.read_at, chunks(3), 9)
        tasks.sleep(0.02)
        ours.close()
        closed.result()
        assert waiting.result() == DATA[chunks(3) : chunks(3) + 9]
    assert len(server.requests) == 2


def ends(after: int, how: str) -> Script:
    """The first body that is longer stops after so many bytes, and the connection does `how`."""
    done: list[bool] = []

    def script(asked: Asked, wire: Wire) -> None:
        start, end = asked.range or (0, SIZE)
        if done or end - start <= after:
            GOOD(asked, wire)
            return
        done.append(True)
        head = {"Content-Length": str(end - start)}
        if asked.range:
            head["Content-Range"] = f"bytes {start}-{end - 1}/{SIZE}"
        wire.answer(206 if asked.range else 200, head, DATA[start : start + after])
        getattr(wire, how)()

    return script


@every_trust
@pytest.mark.parametrize("takeover", [1 << 10, 1 << 30], ids=["socket taken over", "by the library"])
@pytest.mark.parametrize(
    ("how", "left"),
    [("silence", 100_000), ("drop", 1), ("reset", 100_000)],
    ids=["a stall without a close", "EOF one byte early", "a reset"],
)
def test_a_body_that_ends_early_is_gone_on_with(
    how: str, left: int, takeover: int, trust: Trust, tee: Tee, serve: Serve, connect: Connect
) -> None:
    host = Turning()
    server = serve(host)
    registry = connect(settings=replace(QUICK, stall=0.1, takeover=takeover))
    with begun(tee, registry, server, trust) as reader:
        nbytes = chunks(19) - CHUNK // 2 if trust is Trust.RAW else SIZE - CHUNK
        host.script = ends(nbytes // CHUNK * CHUNK - left, how)
        assert reader.read_at(CHUNK, SIZE - CHUNK) == DATA[CHUNK:]
    first, resumed = sent_ranges(server)[:2]
    assert first == (CHUNK, SIZE)
    assert resumed is not None
    assert resumed[0] > CHUNK
    assert sum(end - start for start, end in filter(None, sent_ranges(server))) >= SIZE - CHUNK


@every_trust
def test_bytes_after_the_end_are_nobodys(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        start, end = asked.range or (0, SIZE)
        stated = f"Content-Range: bytes {start}-{end - 1}/{SIZE}\r\n" if asked.range else ""
        head = f"HTTP/1.1 {206 if asked.range else 200} X\r\n{stated}Content-Length: {end - start}\r\n\r\n"
        wire.send(head.encode() + DATA[start:end] + b"HTTP/1.1 206 Smuggled\r\nContent-Length: 0\r\n\r\n")

    server = serve(script)
    with begun(tee, connect(), server, trust) as reader:
        for at in (chunks(3), chunks(7), 0):
            assert reader.read_at(at, 20) == DATA[at : at + 20]
        assert reader.read_at(0, SIZE) == DATA


# ---- Size -----------------------------------------------------------------------------------------------------------


@every_trust
@pytest.mark.parametrize(
    "size", [0, 1, *(number * CHUNK + more for number in (1, 2, 17) for more in (-1, 0, 1))], ids="{} bytes".format
)
def test_blobs_of_any_size_over_http(size: int, trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    data = DATA[:size]
    desc = desc_of(data)
    server = serve(blob_script(data))
    with tee.reader_at(desc, source_of(connect(), server, desc), trust) as reader:
        assert reader.read_at(max(0, size - 5), 10) == data[max(0, size - 5) :]
        assert b"".join(reader.read_at(at, 50_000) for at in range(0, size, 50_000)) == data
        assert reader.read_at(size, 1) == b""
    assert bool(server.requests) is bool(size)


FAR = (5 << 30) + 12_345


def far_bytes(start: int, end: int) -> bytes:
    """A blob that says at each eighth byte where that is."""
    first = start // 8
    words = b"".join(number.to_bytes(8, "big") for number in range(first, -(-end // 8)))
    return words[start - 8 * first :][: end - start]


@pytest.mark.parametrize(
    "at",
    [(2 << 30) - 50, (4 << 30) - CHUNK - 1, (4 << 30) - 1, 4 << 30, (4 << 30) + CHUNK, FAR - 100],
    ids=["2 GiB", "before 4 GiB", "across 4 GiB", "4 GiB", "past 4 GiB", "the end"],
)
def test_reads_past_4_gib(at: int, tee: Tee, store: LocalStore, serve: Serve, connect: Connect) -> None:
    """Of a blob that takes no room here, nor there."""

    def script(asked: Asked, wire: Wire) -> None:
        assert asked.range is not None
        start, end = asked.range
        wire.answer(206, {"Content-Range": f"bytes {start}-{end - 1}/{FAR}"}, far_bytes(start, end))

    desc = Descriptor("", Digest.of(b"never compared"), FAR)
    server = serve(script)
    source = source_of(connect(), server, desc)
    with tee.reader_at(desc, source, Trust.RAW) as reader:
        for _ in range(2):
            assert reader.read_at(at, 100) == far_bytes(at, at + 100)
    again = Tee(store)
    tee.close()
    with again.reader_at(desc, source, Trust.RAW) as reader:
        assert reader.read_at(at, 100) == far_bytes(at, at + 100)
    again.close()
    assert len(server.requests) == 1
    assert (store.root / "partial/sha256" / desc.digest.hex / "data").stat().st_blocks * 512 < 1 << 20


@every_trust
@pytest.mark.parametrize("more", [-1, 1, CHUNK], ids="a descriptor that lies by {} bytes".format)
def test_a_descriptor_that_lies_about_the_size(
    more: int, trust: Trust, tee: Tee, store: LocalStore, serve: Serve, connect: Connect
) -> None:
    wrong = Descriptor("", DESC.digest, SIZE + more)

    def script(asked: Asked, wire: Wire) -> None:
        if asked.range is not None and asked.range[0] >= SIZE:
            wire.answer(416, {"Content-Range": f"bytes */{SIZE}"})
        else:
            GOOD(asked, wire)

    registry, server = connect(), serve(script)
    with tee.reader_at(wrong, source_of(registry, server, wrong), trust) as reader:
        for at in (0, SIZE + more - 1):
            with pytest.raises((SizeMismatch, ProtocolViolation)):
                reader.read_at(at, 1)
    with tee.reader_at(DESC, source_of(registry, server), Trust.BLOB) as reader:
        assert reader.read_at(0, SIZE) == DATA


@pytest.mark.parametrize("trust", [Trust.STREAMED, Trust.BLOB])
def test_a_descriptor_that_lies_about_the_digest(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    wrong = Descriptor("", Digest.of(b"another"), SIZE)
    with tee.reader_at(wrong, source_of(connect(), serve(GOOD), wrong), trust) as reader:
        with pytest.raises(DigestMismatch):
            reader.read_at(SIZE - 1, 1)


# ---- Concurrency ----------------------------------------------------------------------------------------------------


def test_a_hundred_readers_of_one_chunk_make_one_get(tee: Tee, serve: Serve, connect: Connect) -> None:
    gate = threading.Event()

    def slow(asked: Asked, wire: Wire) -> None:
        gate.wait(10)
        GOOD(asked, wire)

    server = serve(slow)
    registry = connect(settings=replace(QUICK, answer=10.0))
    readers = [tee.reader_at(DESC, source_of(registry, server), Trust.RAW) for _ in range(100)]
    with tasks.Group() as group:
        reads = [group.spawn(reader.read_at, chunks(7) + at, 9) for at, reader in enumerate(readers)]
        while not tee._open or len(next(iter(tee._open)).engine._waiters) < 100:
            tasks.sleep(0.001)
        gate.set()
        assert [read.result() for read in reads] == [DATA[chunks(7) + at :][:9] for at in range(100)]
    for reader in readers:
        reader.close()
    assert sent_ranges(server) == [(chunks(7), chunks(8))]


def test_a_reader_who_gives_up_ends_the_request_for_nobody_else(tee: Tee, serve: Serve, connect: Connect) -> None:
    gate = threading.Event()

    def slow(asked: Asked, wire: Wire) -> None:
        gate.wait(10)
        GOOD(asked, wire)

    server = serve(slow)
    source = source_of(connect(settings=replace(QUICK, answer=10.0)), server)
    with (
        tee.reader_at(DESC, source, Trust.RAW) as one,
        tee.reader_at(DESC, source, Trust.RAW) as other,
        tasks.Group() as group,
    ):
        impatient = tasks.Cancellation()

        def give_up() -> None:
            with tasks.scope(impatient), pytest.raises(Cancelled):
                one.read_at(chunks(2), 9)

        gone = group.spawn(give_up)
        patient = group.spawn(other.read_at, chunks(2), 9)
        while not tee._open or len(next(iter(tee._open)).engine._waiters) < 2:
            tasks.sleep(0.001)
        impatient.cancel()
        gone.result()
        gate.set()
        assert patient.result() == DATA[chunks(2) : chunks(2) + 9]
    assert len(server.requests) == 1


@pytest.mark.parametrize("trust", [Trust.RAW, Trust.STREAMED])
@pytest.mark.parametrize("what", ["promotion", "eviction"])
def test_a_reader_that_is_open_when_the_blob_is_promoted_or_evicted_reads_on(
    what: str, trust: Trust, tee: Tee, store: LocalStore, serve: Serve, connect: Connect
) -> None:
    server = serve(GOOD)
    source = source_of(connect(), server)
    with tee.reader_at(DESC, source, trust) as reader:
        assert reader.read_at(chunks(3), 9) == DATA[chunks(3) : chunks(3) + 9]
        tee.fill(DESC, source)
        if what == "eviction":
            store.delete(DESC.digest)
        for at in (chunks(3), chunks(12), SIZE - 9):
            assert reader.read_at(at, 9) == DATA[at : at + 9]
        assert reader.read_at(0, SIZE) == DATA


@every_trust
def test_a_reader_that_is_open_when_the_blob_turns_out_to_be_wrong_gets_no_more_of_it(
    trust: Trust, tee: Tee, serve: Serve, connect: Connect
) -> None:
    bad = bytearray(DATA)
    bad[chunks(15)] ^= 1
    host = Turning()
    host.script = blob_script(bytes(bad))
    server = serve(host)
    source = source_of(connect(), server)
    with tee.reader_at(DESC, source, Trust.RAW) as raw, tee.reader_at(DESC, source, trust) as reader:
        assert raw.read_at(chunks(3), 9) == DATA[chunks(3) : chunks(3) + 9]
        with pytest.raises(DigestMismatch):
            tee.fill(DESC, source)
        with pytest.raises(DigestMismatch):
            raw.read_at(chunks(3), 9)
        host.script = GOOD
        with suppress(DigestMismatch):  # it may have been told
            assert reader.read_at(chunks(15), 9) == DATA[chunks(15) : chunks(15) + 9]
    with tee.reader_at(DESC, source, trust) as anew:
        assert anew.read_at(chunks(15), 9) == DATA[chunks(15) : chunks(15) + 9]


# ---- Trust ----------------------------------------------------------------------------------------------------------


def test_raw_bytes_are_for_nobody_who_asked_for_more(tee: Tee, serve: Serve, connect: Connect) -> None:
    host = Turning()
    host.script = blob_script(bytes(SIZE))
    server = serve(host)
    source = source_of(connect(), server)
    with tee.reader_at(DESC, source, Trust.RAW) as raw, tee.reader_at(DESC, source, Trust.BLOB) as strict:
        assert raw.read_at(chunks(3), 9) == bytes(9)
        host.script = GOOD
        assert strict.read_at(chunks(3), 9) == DATA[chunks(3) : chunks(3) + 9]


@pytest.mark.parametrize("trust", [Trust.STREAMED, Trust.BLOB])
@pytest.mark.parametrize(
    "bad",
    [blob_script(bytes(SIZE)), whole, lambda asked, wire: wire.answer(404), lambda asked, wire: wire.drop()],
    ids=["wrong bytes", "no ranges", "not there", "breaks off"],
)
def test_a_bad_mirror_then_a_good_one(
    bad: Script, trust: Trust, tee: Tee, tmp_path: Path, serve: Serve, connect: Connect
) -> None:
    mirror, server = serve(bad), serve(GOOD)
    folder = tmp_path / "hosts" / "r.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'server = "{server.url}"\n[host."{mirror.url}"]\n')
    registry = connect(hosts=Hosts([tmp_path / "hosts"]))
    source = registry.repository("r.example/a/b").source(DESC)
    with tee.reader_at(DESC, lambda: source, trust) as reader:
        assert reader.read_at(0, SIZE) == DATA
    assert mirror.requests


@every_trust
def test_a_host_that_is_gone_is_a_cache_miss(trust: Trust, tee: Tee, serve: Serve, connect: Connect) -> None:
    server = serve(lambda asked, wire: wire.answer(404))
    with tee.reader_at(DESC, source_of(connect(), server), trust) as reader:
        with pytest.raises(LazyUnavailable):
            reader.read_at(chunks(3), 9)
