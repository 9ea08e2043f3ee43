"""Readers that stay open a while for who opens the same thing again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from blobtee.content.api import ReaderAt
from blobtee.errors import Cancelled, Closed, LazyUnavailable, StorageError
from blobtee.oci import Digest
from blobtee.plugin.lingering import Lingering

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


class Reader(ReaderAt):
    size = 4

    def __init__(self) -> None:
        self.closed = 0
        self.error: Exception | None = None

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        if self.error is not None:
            raise self.error
        with memoryview(buffer) as view:
            view[:] = b"data"[offset : offset + view.nbytes]
            return view.nbytes

    def close(self) -> None:
        self.closed += 1
        if isinstance(self.error, (StorageError, ZeroDivisionError)):
            raise self.error


class Maker:
    def __init__(self) -> None:
        self.made: list[Reader] = []

    def __call__(self) -> Reader:
        self.made.append(Reader())
        return self.made[-1]


def wait_until_closed(reader: Reader) -> None:
    deadline = time.monotonic() + 20
    while not reader.closed and time.monotonic() < deadline:
        time.sleep(0.005)
    assert reader.closed == 1


def test_users_share_one_that_outlives_them_a_while() -> None:
    make = Maker()
    lingering = Lingering(0.2)
    with lingering.reader(ONE, make) as first, lingering.reader(ONE, make) as second:
        assert (first.read_at(1, 2), second.read_at(0, 4), first.size) == (b"at", b"data", 4)
        first.close()
        first.close()
        with pytest.raises(Closed):
            first.read_at(0, 1)
    lingering.reader(ONE, make).close()
    lingering.reader(TWO, make).close()
    assert [reader.closed for reader in make.made] == [0, 0]
    for reader in make.made:
        wait_until_closed(reader)
    lingering.reader(ONE, make).close()
    assert len(make.made) == 3
    lingering.close()
    lingering.close()
    assert make.made[-1].closed == 1


def test_one_that_failed_is_nobodys_any_more() -> None:
    make = Maker()
    lingering = Lingering(60)
    one, other = lingering.reader(ONE, make), lingering.reader(ONE, make)
    make.made[0].error = LazyUnavailable("gone")
    with pytest.raises(LazyUnavailable):
        one.read_at(0, 1)
    with lingering.reader(ONE, make) as new:
        assert new.read_at(0, 4) == b"data"
    one.close()
    assert make.made[0].closed == 0
    other.close()
    assert (make.made[0].closed, len(make.made)) == (1, 2)
    lingering.close()


def test_a_user_who_gives_up_takes_it_from_nobody() -> None:
    """containerd leaves a read when it has enough; what is asked for ahead goes on for who reads next."""
    make = Maker()
    lingering = Lingering(60)
    with lingering.reader(ONE, make) as one:
        make.made[0].error = Cancelled("the client has gone")
        with pytest.raises(Cancelled):
            one.read_at(0, 1)
    make.made[0].error = None
    with lingering.reader(ONE, make) as other:
        assert other.read_at(0, 4) == b"data"
    assert len(make.made) == 1
    lingering.close()


def test_what_is_in_use_at_the_end_closes_with_its_user() -> None:
    make = Maker()
    lingering = Lingering(60)
    used = lingering.reader(ONE, make)
    lingering.reader(TWO, make).close()
    lingering.close()
    assert [reader.closed for reader in make.made] == [0, 1]
    assert used.read_at(0, 4) == b"data"
    used.close()
    assert make.made[0].closed == 1
    lingering.reader(ONE, make).close()
    assert make.made[2].closed == 1


def test_without_a_time_each_has_his_own() -> None:
    make = Maker()
    lingering = Lingering(0)
    with lingering.reader(ONE, make), lingering.reader(ONE, make):
        assert len(make.made) == 2
    assert [reader.closed for reader in make.made] == [1, 1]
    lingering.close()


@pytest.mark.parametrize("error", [StorageError("the disk"), ZeroDivisionError("a defect")])
def test_what_fails_at_closing_is_only_logged_and_keeps_no_other(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    make = Maker()
    lingering = Lingering(0.01)
    lingering.reader(ONE, make).close()
    make.made[0].error = error
    wait_until_closed(make.made[0])
    lingering.reader(TWO, make).close()
    wait_until_closed(make.made[1])
    lingering.close()
    assert str(error) in caplog.text


def test_many_at_once_open_and_close_each_once() -> None:
    make = Maker()
    lingering = Lingering(0.002)

    def work() -> None:
        for _ in range(300):
            with lingering.reader(ONE, make) as reader:
                assert reader.read_at(0, 4) == b"data"

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lingering.close()
    assert {reader.closed for reader in make.made} == {1}


def test_without_a_thread_to_close_it_later_it_closes_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    make = Maker()
    lingering = Lingering(60)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        lingering.reader(ONE, make).close()
        assert make.made[0].closed == 1
        lingering.close()
