"""Answers that are given without a handler: only right ones, at each moment, whoever changes what they rest on."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from blobtee.core import Answers, H2Call, H2Server, Watch
from blobtee.core.answers import FILE, MESSAGE
from blobtee.errors import Cancelled, InvalidArgument
from tests.unit.core.support import MASKED
from tests.unit.plugin.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Raw,
    frame,
    message,
    raw,
    request,
)

INFO, READ = "/test.Test/Info", "/test.Test/Read"
PIECE = 1000
DIGEST = "sha256:" + "ab" * 32
MINUTE = 60 * 10**9
BOUNDS = (0.001, 1.0, 10.0)
ELSEWHERE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("UPDATE t SET value = value + 1")
connection.commit()
connection.close()
"""


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def change(database: sqlite3.Connection, value: int) -> None:
    database.execute("UPDATE t SET value = ?", (value,))


def asked(digest: str = DIGEST, offset: int = 0, size: int = 0) -> bytes:
    """A request for a part of a blob; numbers below 128."""
    numbers = b"".join(bytes([field << 3, n]) for field, n in ((2, offset), (3, size)) if n)
    return b"\x0a" + bytes([len(digest)]) + digest.encode() + numbers


class Bench:
    """A server with one place, and what its answers rest on."""

    def __init__(self, root: Path) -> None:
        self.path, self.blob = root / "t.db", root / "blob"
        self.database = connect(self.path)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("CREATE TABLE t (value)")
        self.database.execute("INSERT INTO t VALUES (0)")
        self.blob.write_bytes(random.Random(1).randbytes(10_000))
        self.watch = Watch(self.path)
        self.answers = Answers(self.watch, messages_nbytes=4000, files=4, fresh_ns=MINUTE, bounds=BOUNDS)
        self.handled = 0

    def keep_message(self, text: bytes, digest: str = DIGEST, place: int = 0) -> bool:
        look = self.answers.look(str(self.blob))
        return look is not None and self.answers.keep_message(place, digest, str(self.blob), look, text)

    def keep_file(self, digest: str = DIGEST, place: int = 0) -> bool:
        look = self.answers.look(str(self.blob))
        with open(self.blob, "rb") as file:
            return look is not None and self.answers.keep_file(place, digest, str(self.blob), look, file.fileno())

    def handle(self, call: H2Call) -> None:
        self.handled += 1
        with suppress(Cancelled):
            call.take()
            call.send(b"handled", last=True)

    @contextmanager
    def serving(self, handle: Callable[[H2Call], None] | None = None) -> Iterator[Path]:
        path = self.blob.with_name("socket")
        server = H2Server(message_nbytes=1 << 20, buffered_nbytes=1 << 24, connections=16)
        info, read = server.method(INFO), server.method(READ)
        server.answer(self.answers, info, read, PIECE)
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
            listener.listen(16)
            server.listen(listener, 0, 1000)
            run = [
                threading.Thread(
                    target=server.serve,
                    args=(handle or self.handle, lambda: True),
                    kwargs={"idle_seconds": 1, "keep": 4},
                )
                for _ in range(4)
            ]
            for thread in run:
                thread.start()
            try:
                yield path
            finally:
                server.stop()
                for thread in run:
                    thread.join(20)
                server.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.watch.end()
    made.answers.clear()
    made.database.close()


def ask(connection: Raw, stream: int, path: str, data: bytes) -> bytes | None:
    """The messages of the answer, put together with their prefixes; None: it was cut off."""
    connection.send(request(stream, path), frame(DATA, stream, message(data), END_STREAM))
    return answer(connection, stream)


def answer(connection: Raw, stream: int) -> bytes | None:
    found = b""
    for kind, flags, at, payload in connection.frames():
        if kind == DATA and payload:
            more = len(payload).to_bytes(4, "big")
            connection.send(*(frame(WINDOW_UPDATE, each, more) for each in {0, stream if at == stream else 0}))
        if at != stream:
            continue
        if kind == RST_STREAM:
            return None
        if kind == DATA:
            found += payload
        if flags & END_STREAM and kind in (DATA, HEADERS):
            return found
    return None


def pieces(data: bytes) -> bytes:
    """A read of `data`, as messages."""
    found, at = b"", 0
    while at < len(data):
        part = data[at : at + PIECE]
        assert len(data) < 1 << 14
        numbers = [varint(n) for n in (at, len(part))]
        found += message((b"\x08" + numbers[0] if at else b"") + b"\x12" + numbers[1] + part)
        at += len(part)
    return found


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])


# ---- the watch ------------------------------------------------------------------------------------------------------


def test_a_watch_sees_each_commit_and_nothing_else(bench: Bench) -> None:
    state = bench.watch.state()
    assert state is not None
    assert bench.watch.state() == state
    bench.database.execute("SELECT * FROM t").fetchall()
    bench.database.execute("BEGIN IMMEDIATE")
    change(bench.database, 1)
    assert bench.watch.state() == state
    bench.database.execute("COMMIT")
    changed = bench.watch.state()
    assert changed not in (None, state)
    bench.database.execute("BEGIN IMMEDIATE")
    change(bench.database, 2)
    bench.database.execute("ROLLBACK")
    assert bench.watch.state() == changed
    bench.watch.end()
    assert bench.watch.state() is None


def test_a_watch_sees_what_another_process_commits(bench: Bench) -> None:
    seen = {bench.watch.state()}
    for _ in range(2):
        # The file's changes come over to the database at its end, so that the log begins anew.
        subprocess.run([sys.executable, "-c", ELSEWHERE, bench.path], check=True, timeout=30)
        bench.database.execute("PRAGMA wal_checkpoint(RESTART)")
        seen.add(bench.watch.state())
    assert len(seen) == 3
    assert None not in seen


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be watched"):
        Watch(tmp_path / "none.db")
    with closing(sqlite3.connect(tmp_path / "plain.db")) as plain:
        plain.execute("CREATE TABLE t (value)")
        with pytest.raises(InvalidArgument, match="cannot be watched"):
            Watch(tmp_path / "plain.db")


def test_a_watch_takes_no_lock_away_from_the_database(bench: Bench) -> None:
    """As closing a descriptor of the index would: then another process takes the index for nobody's."""
    del bench.watch, bench.answers
    again = Watch(bench.path)
    before = again.state()
    subprocess.run([sys.executable, "-c", ELSEWHERE, bench.path], check=True, timeout=30)
    assert Path(f"{bench.path}-shm").exists()
    assert again.state() != before
    assert bench.database.execute("SELECT value FROM t").fetchall() == [(1,)]
    bench.watch, bench.answers = again, Answers(again, messages_nbytes=0, files=0, fresh_ns=0, bounds=())


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_what_is_known_is_answered_without_a_handler(bench: Bench) -> None:
    data = bench.blob.read_bytes()
    assert bench.keep_message(b"what it is")
    assert bench.keep_file()
    with bench.serving() as path, raw(path) as connection:
        assert ask(connection, 1, INFO, asked()) == message(b"what it is")
        assert ask(connection, 3, READ, asked()) == pieces(data)
        assert ask(connection, 5, READ, asked(offset=100, size=50)) == pieces(data[100:150])
        assert ask(connection, 7, INFO, asked(DIGEST[:-1] + "c")) == message(b"handled")
        assert ask(connection, 9, INFO, b"") == message(b"handled")
        assert bench.handled == 2
    info, read = bench.answers.counts(MESSAGE, 0), bench.answers.counts(FILE, 0)
    assert info.ok == sum(info.within) == 1
    assert read.ok == sum(read.within) == 2
    assert (read.opened, read.sent, read.cancelled) == (2, len(data) + 50, 0)
    assert bench.answers.counts(FILE, 1).ok == 0


def test_another_place_knows_nothing_of_it(bench: Bench) -> None:
    assert bench.keep_message(b"another's", place=1)
    with bench.serving() as path, raw(path) as connection:
        assert ask(connection, 1, INFO, asked()) == message(b"handled")


@pytest.mark.parametrize("how", ["commit", "forget", "end", "remove", "replace", "grow", "rights", "clear"])
def test_what_has_changed_is_the_handlers(bench: Bench, how: str) -> None:
    assert bench.keep_message(b"what it was")
    assert bench.keep_file()
    with bench.serving() as path, raw(path) as connection:
        assert ask(connection, 1, INFO, asked()) == message(b"what it was")
        if how == "commit":
            change(bench.database, 1)
        elif how == "forget":
            bench.answers.forget(0, DIGEST)
        elif how == "end":
            bench.watch.end()
        elif how == "clear":
            bench.answers.clear()
        elif how == "remove":
            bench.blob.unlink()
        elif how == "replace":
            bench.blob.with_name("new").write_bytes(bench.blob.read_bytes())
            os.replace(bench.blob.with_name("new"), bench.blob)
        elif how == "grow":
            with open(bench.blob, "ab") as file:
                file.write(b"more")
        else:
            time.sleep(0.02)  # the clock of changes is no finer than that of the kernel
            bench.blob.chmod(0o400)
        assert ask(connection, 3, INFO, asked()) == message(b"handled")
        assert ask(connection, 5, READ, asked()) == message(b"handled")


def test_a_use_that_has_to_be_written_down_is_the_handlers(bench: Bench) -> None:
    old = time.time_ns() - MINUTE
    for accessed, is_quick in ((old, False), (old + MINUTE // 2, True), (old + 2 * MINUTE, False)):
        os.utime(bench.blob, ns=(accessed, bench.blob.stat().st_mtime_ns))
        bench.keep_message(b"what it is")
        bench.keep_file()
        with bench.serving() as path, raw(path) as connection:
            wanted = pieces(bench.blob.read_bytes()[:9]) if is_quick else message(b"handled")
            assert ask(connection, 1, READ, asked(size=9)) == wanted
            assert ask(connection, 3, INFO, asked()) == message(b"what it is")
        path.unlink()


def test_nothing_is_kept_of_what_has_changed_meanwhile(bench: Bench) -> None:
    look = bench.answers.look(str(bench.blob))
    change(bench.database, 1)
    assert not bench.answers.keep_message(0, DIGEST, str(bench.blob), look, b"late")
    look = bench.answers.look(str(bench.blob))
    other = bench.blob.with_name("other")
    other.write_bytes(b"x")
    with open(other, "rb") as file:
        assert not bench.answers.keep_file(0, DIGEST, str(bench.blob), look, file.fileno())
    assert bench.answers.look(str(bench.blob.with_name("none"))) is None
    assert bench.answers.look(str(bench.blob.parent)) is None


def test_the_oldest_make_place(bench: Bench, count_descriptors: Callable[[], int]) -> None:
    names = [f"sha256:{n:064x}" for n in range(6)]
    before = count_descriptors()
    for name in names:
        assert bench.keep_file(name)
    assert count_descriptors() == before + 4
    with bench.serving() as path, raw(path) as connection:
        for at, name in enumerate(names):
            wanted = message(b"handled") if at < 2 else pieces(bench.blob.read_bytes()[:5])
            assert ask(connection, 1 + 2 * at, READ, asked(name, 0, 5)) == wanted
    assert not bench.keep_message(b"x" * 5000)
    for name in names:
        assert bench.keep_message(b"x" * 900, name)
    bench.answers.clear()
    assert count_descriptors() == before


def test_what_is_out_of_date_is_not_kept_open(bench: Bench, count_descriptors: Callable[[], int]) -> None:
    before = count_descriptors()
    assert bench.keep_file()
    change(bench.database, 1)
    with bench.serving():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if not any(os.readlink(f"/proc/self/fd/{fd}") == str(bench.blob) for fd in _descriptors()):
                break
            time.sleep(0.05)
        else:
            pytest.fail("the file is still open")
    assert count_descriptors() <= before


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            os.readlink(f"/proc/self/fd/{fd}")
            found.append(fd)
    return found


# ---- readers under way ----------------------------------------------------------------------------------------------


def test_who_is_reading_reads_on_when_it_is_forgotten(bench: Bench) -> None:
    data = bench.blob.read_bytes()
    assert bench.keep_file()
    with bench.serving() as path, raw(path) as connection:
        # No room for data: settings, initial window size 0.
        connection.send(frame(SETTINGS, 0, bytes([0, 4, 0, 0, 0, 0])))
        connection.send(request(1, READ), frame(DATA, 1, message(asked()), END_STREAM))
        connection.until(HEADERS, 1)
        bench.answers.forget(0, DIGEST)
        bench.blob.unlink()
        change(bench.database, 1)
        connection.send(frame(WINDOW_UPDATE, 1, (1 << 20).to_bytes(4, "big")))
        assert answer(connection, 1) == pieces(data)
    assert str(bench.blob) not in {os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()}


def test_a_client_that_has_enough_is_counted_as_such(bench: Bench) -> None:
    assert bench.keep_file()
    with bench.serving() as path, raw(path) as connection:
        connection.send(frame(SETTINGS, 0, bytes([0, 4, 0, 0, 0, 100])))
        connection.send(request(1, READ), frame(DATA, 1, message(asked()), END_STREAM))
        connection.until(DATA, 1)
        connection.send(frame(RST_STREAM, 1, (8).to_bytes(4, "big")))
        connection.send(frame(SETTINGS, 0, bytes([0, 4, 0, 0, 255, 255])))
        assert ask(connection, 3, READ, asked()) == pieces(bench.blob.read_bytes())
    counts = bench.answers.counts(FILE, 0)
    assert (counts.ok, counts.cancelled, sum(counts.within)) == (1, 1, 2)


def test_a_deadline_ends_an_answer_that_nobody_takes(bench: Bench) -> None:
    assert bench.keep_file()
    with bench.serving() as path, raw(path) as connection:
        connection.send(frame(SETTINGS, 0, bytes([0, 4, 0, 0, 0, 100])))
        connection.send(request(1, READ, (b"grpc-timeout", b"50m")), frame(DATA, 1, message(asked()), END_STREAM))
        connection.until(RST_STREAM, 1)
    assert bench.answers.counts(FILE, 0).cancelled == 1


def test_a_file_that_has_lost_its_end_is_no_answer(bench: Bench) -> None:
    assert bench.keep_file()
    with bench.serving() as path, raw(path) as connection:
        connection.send(frame(SETTINGS, 0, bytes([0, 4, 0, 0, 0, 100])))
        connection.send(request(1, READ), frame(DATA, 1, message(asked()), END_STREAM))
        connection.until(DATA, 1)
        os.truncate(bench.blob, 2000)
        connection.send(frame(WINDOW_UPDATE, 1, (1 << 20).to_bytes(4, "big")))
        assert answer(connection, 1) is None
        assert ask(connection, 3, READ, asked()) == message(b"handled")
    assert bench.answers.counts(FILE, 0).cancelled == 1


def test_no_reader_is_told_of_the_past(bench: Bench) -> None:
    """One changes, some ask: an answer is never older than what had been committed when it was asked for. Handlers keep
    what they say; others drop it, and files come and go under the readers."""
    committed, done = [0], threading.Event()
    local = threading.local()

    def handle(call: H2Call) -> None:
        if not hasattr(local, "database"):
            local.database = connect(bench.path)
        with suppress(Cancelled):
            call.take()
            look = bench.answers.look(str(bench.blob))
            ((value,),) = local.database.execute("SELECT value FROM t").fetchall()
            told = str(value).encode()
            if look is not None and call.method == 0:
                bench.answers.keep_message(0, DIGEST, str(bench.blob), look, told)
            elif look is not None:
                with suppress(FileNotFoundError), open(bench.blob, "rb") as file:
                    bench.answers.keep_file(0, DIGEST, str(bench.blob), look, file.fileno())
            call.send(told, last=True)

    wrong: list[object] = []

    def read(path: Path, seed: int) -> None:
        chance = random.Random(seed)
        with raw(path) as connection:
            stream = 1
            while not done.is_set():
                floor = committed[0]
                if chance.random() < 0.2:
                    connection.send(request(stream, READ), frame(DATA, stream, message(asked()), END_STREAM))
                    connection.send(frame(RST_STREAM, stream, (8).to_bytes(4, "big")))
                else:
                    found = ask(connection, stream, INFO, asked())
                    if found is None or int(found[5:]) < floor:
                        wrong.append((floor, found))
                stream += 2

    def enough() -> bool:
        return bench.answers.counts(MESSAGE, 0).ok > 20 and bench.answers.counts(FILE, 0).opened > 5

    with bench.serving(handle) as path:
        readers = [threading.Thread(target=read, args=(path, seed)) for seed in range(3)]
        for reader in readers:
            reader.start()
        chance = random.Random(7)
        end, most = time.monotonic() + (1.5 if MASKED else 3), time.monotonic() + 100
        while time.monotonic() < end or (not enough() and time.monotonic() < most):
            change(bench.database, committed[0] + 1)
            committed[0] += 1
            if chance.random() < 0.3:
                bench.answers.forget(0, DIGEST)
            if chance.random() < 0.3:
                bench.blob.with_name("new").write_bytes(b"y" * 9000)
                os.replace(bench.blob.with_name("new"), bench.blob)
            time.sleep(chance.choice((0, 0, 0.001, 0.004)))
        done.set()
        for reader in readers:
            reader.join(20)
    assert not wrong
    assert enough()
