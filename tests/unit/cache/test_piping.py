"""From a writer to a reader: all bytes, and everybody's errors."""

from __future__ import annotations

import threading
from typing import BinaryIO

import pytest

from blobtee.cache.piping import Write, pipe
from blobtee.errors import Cancelled, DataLoss, NotFound
from blobtee.tasks import Cancellation, scope

DATA = bytes(range(256)) * 20_000


def in_pieces(write: Write, size: int = 1000) -> None:
    for start in range(0, len(DATA), size):
        write(memoryview(DATA)[start : start + size])


@pytest.mark.parametrize("size", [511, 1 << 18, len(DATA)])
@pytest.mark.parametrize("step", [7919, 1 << 20])
def test_what_is_written_is_read(size: int, step: int) -> None:
    got = bytearray()

    def consume(tar: BinaryIO) -> None:
        while piece := tar.read(step):
            got.extend(piece)

    pipe(lambda write: in_pieces(write, size), consume)
    assert got == DATA


def test_nothing_at_all_is_an_empty_file() -> None:
    seen: list[bytes] = []
    pipe(lambda write: None, lambda tar: seen.append(tar.read(10)))
    assert seen == [b""]


def test_the_writers_error_comes_behind_what_it_wrote() -> None:
    got = bytearray()

    def produce(write: Write) -> None:
        in_pieces(write)
        raise DataLoss("broke off")

    def consume(tar: BinaryIO) -> None:
        try:
            while piece := tar.read(1 << 16):
                got.extend(piece)
        except DataLoss as error:
            raise NotFound("and so nothing came of it") from error

    with pytest.raises(NotFound):
        pipe(produce, consume)
    assert got.startswith(DATA[: 1 << 18])


@pytest.mark.parametrize("closes", [False, True])
def test_an_error_behind_what_the_reader_wanted_is_not_lost(closes: bool) -> None:
    def produce(write: Write) -> None:
        in_pieces(write)
        raise DataLoss("broke off")

    def consume(tar: BinaryIO) -> None:
        tar.read(10)
        if closes:
            tar.close()

    with pytest.raises(DataLoss, match="broke off"):
        pipe(produce, consume)


def test_the_readers_error_ends_the_writer() -> None:
    ended: list[BaseException] = []

    def produce(write: Write) -> None:
        try:
            while True:
                in_pieces(write)
        except BaseException as error:
            ended.append(error)
            raise

    def consume(tar: BinaryIO) -> None:
        tar.read(10)
        raise NotFound("the reader's own")

    before = set(threading.enumerate())
    with pytest.raises(NotFound, match="own"):
        pipe(produce, consume)
    assert isinstance(ended[0], Cancelled)
    assert set(threading.enumerate()) <= before


def test_both_end_when_the_work_is_cancelled() -> None:
    switch = Cancellation()

    def produce(write: Write) -> None:
        switch.cancel("enough")
        while True:
            in_pieces(write)

    def consume(tar: BinaryIO) -> None:
        while tar.read(1 << 16):
            pass

    with pytest.raises(Cancelled, match="enough"), scope(switch):
        pipe(produce, consume)
