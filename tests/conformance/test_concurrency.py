"""Many threads on one store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from blobtee.content import Store
from blobtee.errors import AlreadyExists, BlobteeError, NotFound, RefLocked
from blobtee.oci import Descriptor
from tests.conformance.blobs import describe, digest_of, get, put

DATA = b"the same bytes" * 5000


def at_once(count: int, work: Callable[[int], str]) -> Counter[str]:
    """Run `work` in `count` threads that start together; count what they return."""
    started = threading.Barrier(count)
    outcomes: list[str] = []

    def body(number: int) -> None:
        started.wait()
        try:
            outcomes.append(work(number))
        except BlobteeError as error:
            outcomes.append(type(error).__name__)
        except BaseException as error:
            outcomes.append(repr(error))

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == count
    return Counter(outcomes)


def test_many_writers_of_one_digest_make_one_blob(store: Store) -> None:
    def write(number: int) -> str:
        with store.writer(f"ref {number}") as writer:
            writer.write(DATA)
            writer.commit(len(DATA), digest_of(DATA), {"by": str(number)})
        return f"committed by {number}"

    outcomes = at_once(12, write)
    assert outcomes.pop("AlreadyExists") == 11
    (winner,) = outcomes
    assert winner == f"committed by {store.info(digest_of(DATA)).labels['by']}"
    assert store.statuses() == []
    assert get(store, DATA) == DATA


def test_many_threads_on_one_ref_are_let_in_one_at_a_time(store: Store) -> None:
    inside = threading.Semaphore(1)

    def write(number: int) -> str:
        while True:
            try:
                writer = store.writer("shared")
            except RefLocked:
                continue
            with writer:
                assert inside.acquire(blocking=False), "two writers of one ref"
                writer.write(b"%02d" % number)
                # Before the writer lets go, so that nobody else can be in yet.
                inside.release()
            return "wrote"

    assert at_once(16, write) == {"wrote": 16}
    with store.writer("shared") as writer:
        assert writer.status.offset == 32
        info = writer.commit()
    with store.reader_at(Descriptor("", info.digest, info.size)) as reader:
        data = reader.read_at(0, 32)
    assert sorted(data[at : at + 2] for at in range(0, 32, 2)) == [b"%02d" % n for n in range(16)]


def test_sixteen_threads_that_open_one_ref_at_once_get_one_writer(store: Store) -> None:
    writers = []

    def write(number: int) -> str:
        writers.append(store.writer("shared"))
        return "opened"

    assert at_once(16, write) == {"opened": 1, "RefLocked": 15}
    writers[0].close()


def test_three_hundred_writers_may_be_open(store: Store) -> None:
    writers = [store.writer(f"ref {n}", total=2 << 20) for n in range(300)]
    for number, writer in enumerate(writers):
        writer.write(b"%d" % number)
    assert len(store.statuses()) == 300
    for number, writer in enumerate(writers):
        writer.commit(0, digest_of(b"%d" % number))
    assert len(list(store.walk())) == 300
    assert store.statuses() == []


def test_readers_during_delete_and_rewrite_see_the_whole_blob_or_none(store: Store) -> None:
    put(store, DATA)
    done = threading.Event()

    def work(number: int) -> str:
        if number == 0:
            try:
                for _ in range(30):
                    store.delete(digest_of(DATA))
                    put(store, DATA)
            finally:
                done.set()
            return "fine"
        while not done.is_set():
            try:
                with store.reader_at(describe(DATA)) as reader:
                    assert reader.read_at(0, len(DATA)) == DATA
            except NotFound:
                continue
        return "fine"

    assert at_once(6, work) == {"fine": 6}


def test_labels_changed_by_many_threads_are_all_there(store: Store) -> None:
    digest = put(store, DATA).digest

    def update(number: int) -> str:
        for n in range(5):
            store.update(digest, {f"{number}.{n}": "set"})
        return "fine"

    assert at_once(8, update) == {"fine": 8}
    assert len(store.info(digest).labels) == 40


def test_a_blob_has_its_labels_in_the_first_moment_anybody_sees_it(store: Store) -> None:
    stop = threading.Event()
    bare: list[str] = []

    def work(number: int) -> str:
        if number == 0:
            try:
                for n in range(60):
                    put(store, b"%d" % n, {"label": "there"})
            finally:
                stop.set()
            return "fine"
        while not stop.is_set():
            bare.extend(info.digest for info in store.walk() if not info.labels)
            for n in range(60):
                try:
                    if not store.info(digest_of(b"%d" % n)).labels:
                        bare.append(str(n))
                except NotFound:
                    continue
        return "fine"

    assert at_once(3, work) == {"fine": 3}
    assert bare == []


def test_the_same_commit_from_outside_and_inside_agree(store: Store) -> None:
    with store.writer("one") as one, store.writer("two") as two:
        one.write(DATA)
        two.write(DATA)
        one.commit()
        with pytest.raises(AlreadyExists):
            two.commit()
    with pytest.raises(NotFound):
        store.status("two")
