"""`Ingester`, `Writer` and `IngestManager`, on every store (content specification, section 2, Write)."""

from __future__ import annotations

import array
import hashlib
import time

import pytest

from blobtee.content import Store
from blobtee.errors import (
    AlreadyExists,
    Closed,
    DigestMismatch,
    InvalidArgument,
    InvalidDigest,
    NotFound,
    OutOfRange,
    RefLocked,
    SizeMismatch,
    TooLarge,
)
from blobtee.oci import Digest
from tests.conformance.blobs import digest_of, get, put

TICKS = 0.03
"""Seconds after which a file system's clock says another time."""

ODD_REFS = [
    "a/b/c",
    "..",
    "../../escape",
    ".",
    "/",
    "nul\0inside",
    "\n",
    " ",
    "ü" * 100,
    "x" * 5000,
    "raw\udcff\udc80bytes",
    "CON",
    "layer-sha256:" + "0" * 64,
]


def test_written_pieces_are_one_blob(store: Store) -> None:
    hashed = hashlib.sha256()
    with store.writer("ref") as writer:
        assert writer.digest == Digest("sha256:" + hashed.hexdigest())
        for piece in (b"one", b"", b"two" * 1000, b"\0"):
            assert writer.write(piece) == len(piece)
            hashed.update(piece)
            assert writer.digest == Digest("sha256:" + hashed.hexdigest())
        info = writer.commit()
    data = b"one" + b"two" * 1000 + b"\0"
    assert (info.digest, info.size, dict(info.labels)) == (digest_of(data), len(data), {})
    assert get(store, data) == data
    assert store.info(info.digest) == info


def test_any_buffer_can_be_written(store: Store) -> None:
    numbers = array.array("I", range(1000))
    with store.writer("ref") as writer:
        assert writer.write(numbers) == 4000
        assert writer.write(bytearray(b"ab")) == 2
        assert writer.write(memoryview(b"a-b-c-")[::2]) == 3
        with pytest.raises(InvalidArgument):
            writer.write("text")  # type: ignore[arg-type]
        writer.commit()
    assert get(store, numbers.tobytes() + b"ababc") == numbers.tobytes() + b"ababc"


def test_status_tells_offset_total_and_times(store: Store) -> None:
    before = time.time_ns()
    with store.writer("ref", total=10) as writer:
        time.sleep(TICKS)
        writer.write(b"1234")
        status = store.status("ref")
        assert status == writer.status
        assert (status.ref, status.offset, status.total, status.expected) == ("ref", 4, 10, None)
        assert before <= status.started_at <= status.updated_at <= time.time_ns()


def test_status_tells_what_the_opener_expects(store: Store) -> None:
    expected = digest_of(b"data")
    with store.writer("ref", expected=expected) as writer:
        assert writer.status.expected == expected
    assert store.status("ref").expected is None


def test_opening_again_resumes_with_the_bytes_the_digest_and_the_times(store: Store) -> None:
    with store.writer("ref", total=8) as writer:
        time.sleep(TICKS)
        writer.write(b"half")
        first = writer.status
    assert store.status("ref") == first
    with store.writer("ref", total=8) as writer:
        assert writer.status == first
        assert writer.digest == digest_of(b"half")
        writer.write(b"done")
        writer.commit(8, digest_of(b"halfdone"))
    assert get(store, b"halfdone") == b"halfdone"
    with pytest.raises(NotFound):
        store.status("ref")


def test_a_total_that_is_not_said_again_stays(store: Store) -> None:
    store.writer("ref", total=8).close()
    with store.writer("ref") as writer:
        assert writer.status.total == 8
    store.writer("late").close()
    with store.writer("late", total=5) as writer:
        assert writer.status.total == 5
    assert store.status("late").total == 5


def test_another_total_starts_over(store: Store) -> None:
    with store.writer("ref", total=8) as writer:
        writer.write(b"half")
    with store.writer("ref", total=9) as writer:
        assert (writer.status.offset, writer.status.total) == (0, 9)
        assert writer.digest == digest_of(b"")


def test_resuming_under_another_algorithm_hashes_what_is_there(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"half")
    with store.writer("ref", expected=digest_of(b"halfdone", "sha512")) as writer:
        assert writer.digest == digest_of(b"half", "sha512")
        writer.write(b"done")
        writer.commit()
    assert store.info(digest_of(b"halfdone", "sha512")).size == 8


def test_a_commit_may_ask_for_another_algorithm_than_the_opening(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"data")
        assert writer.commit(4, digest_of(b"data", "sha512")).digest == digest_of(b"data", "sha512")


def test_a_second_writer_of_a_ref_is_locked_out_until_the_first_is_through(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"x")
        with pytest.raises(RefLocked):
            store.writer("ref")
        assert store.status("ref").offset == 1
        with store.writer("other"):
            pass
    with store.writer("ref") as writer:
        assert writer.status.offset == 1


def test_opening_checks_the_lock_then_the_digest_then_the_store(store: Store) -> None:
    put(store, b"data")
    with store.writer("ref"):
        with pytest.raises(RefLocked):
            store.writer("ref", expected="nonsense")
        with pytest.raises(RefLocked):
            store.writer("ref", expected=digest_of(b"data"))
    with pytest.raises(InvalidDigest):
        store.writer("ref", expected="nonsense")
    with pytest.raises(AlreadyExists):
        store.writer("ref", expected=digest_of(b"data"))
    # None of these left the ref locked.
    store.writer("ref").close()


def test_a_refused_opening_leaves_no_ingest(store: Store) -> None:
    put(store, b"data")
    with pytest.raises(AlreadyExists):
        store.writer("exists", expected=digest_of(b"data"))
    with pytest.raises(InvalidDigest):
        store.writer("nonsense", expected="nonsense")
    with pytest.raises(InvalidArgument):
        store.writer("negative", total=-1)
    assert store.statuses() == []


def test_refs_that_cannot_be_are_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument):
        store.writer("")
    with pytest.raises(TooLarge):
        store.writer("x" * 100_000)
    with pytest.raises(InvalidArgument):
        store.writer("high surrogate \ud800")
    with pytest.raises(NotFound):
        store.status("")
    store.abort("")


@pytest.mark.parametrize("ref", ODD_REFS, ids=lambda ref: ascii(ref)[:24])
def test_any_text_is_a_ref(store: Store, ref: str) -> None:
    with store.writer(ref) as writer:
        writer.write(b"part")
    assert store.status(ref).ref == ref
    assert [status.ref for status in store.statuses()] == [ref]
    with store.writer(ref) as writer:
        assert writer.status.offset == 4
        writer.commit()
    assert store.statuses() == []


def test_a_wrong_size_keeps_the_data_and_unlocks(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"data")
        with pytest.raises(SizeMismatch) as caught:
            writer.commit(5)
        assert (caught.value.expected, caught.value.actual) == (5, 4)
    with store.writer("ref") as writer:
        assert writer.status.offset == 4
        assert writer.commit(4).digest == digest_of(b"data")


def test_a_wrong_digest_keeps_the_data_and_unlocks(store: Store) -> None:
    writer = store.writer("ref", expected=digest_of(b"other"))
    writer.write(b"data")
    with pytest.raises(DigestMismatch) as caught:
        writer.commit()
    assert (caught.value.expected, caught.value.actual) == (digest_of(b"other"), digest_of(b"data"))
    assert list(store.walk()) == []
    with store.writer("ref") as again:
        assert again.status.offset == 4
        with pytest.raises(DigestMismatch):
            again.commit(4, digest_of(b"else", "sha512"))
    with store.writer("ref") as again:
        again.commit(expected=digest_of(b"data"))


def test_the_digest_at_commit_outranks_the_one_at_opening(store: Store) -> None:
    with store.writer("ref", expected=digest_of(b"other")) as writer:
        writer.write(b"data")
        assert writer.commit(expected=digest_of(b"data")).digest == digest_of(b"data")


def test_a_commit_with_nonsense_keeps_the_data_and_unlocks(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"data")
        with pytest.raises(InvalidDigest):
            writer.commit(expected="nonsense")
    with store.writer("ref") as writer:
        with pytest.raises(InvalidArgument):
            writer.commit(-1)
    with store.writer("ref") as writer:
        with pytest.raises(InvalidArgument):
            writer.commit(labels={"a": 1})  # type: ignore[dict-item]
    assert store.status("ref").offset == 4
    assert list(store.walk()) == []


def test_committing_what_is_there_removes_the_ingest_and_leaves_the_labels(store: Store) -> None:
    put(store, b"data", {"first": "1"})
    with store.writer("ref") as writer:
        writer.write(b"data")
        with pytest.raises(AlreadyExists):
            writer.commit(4, digest_of(b"data"), {"second": "2"})
    assert store.statuses() == []
    assert dict(store.info(digest_of(b"data")).labels) == {"first": "1"}
    store.writer("ref").close()


def test_labels_of_a_commit_are_there_at_once_and_empty_ones_are_none(store: Store) -> None:
    info = put(store, b"data", {"containerd.io/uncompressed": "sha256:x", "empty": ""})
    assert dict(info.labels) == {"containerd.io/uncompressed": "sha256:x"}
    assert store.info(info.digest) == info
    assert list(store.walk()) == [info]


def test_truncating_drops_what_was_written(store: Store) -> None:
    with store.writer("ref", total=4) as writer:
        writer.write(b"wrong bytes")
        writer.truncate(0)
        assert writer.status.offset == 0
        assert writer.digest == digest_of(b"")
        writer.write(b"good")
        writer.commit(4, digest_of(b"good"))
    assert get(store, b"good") == b"good"


def test_truncating_to_what_is_not_there_is_refused(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"1234")
        with pytest.raises(InvalidArgument):
            writer.truncate(-1)
        with pytest.raises(OutOfRange):
            writer.truncate(5)
        writer.truncate(4)
        assert writer.digest == digest_of(b"1234")


def test_a_closed_writer_says_so_and_closes_twice(store: Store) -> None:
    writer = store.writer("ref")
    writer.write(b"x")
    writer.close()
    writer.close()
    with pytest.raises(Closed):
        writer.write(b"x")
    with pytest.raises(Closed):
        writer.truncate(0)
    with pytest.raises(Closed):
        writer.commit()
    assert writer.status.offset == 1
    assert writer.digest == digest_of(b"x")


def test_a_committed_writer_is_closed(store: Store) -> None:
    writer = store.writer("ref")
    writer.commit()
    with pytest.raises(Closed):
        writer.write(b"x")
    writer.close()
    assert store.statuses() == []


def test_an_error_in_the_block_keeps_the_data(store: Store) -> None:
    writer = store.writer("ref")
    writer.write(b"kept")
    with pytest.raises(ZeroDivisionError), writer:
        1 // 0  # noqa: B018
    assert store.status("ref").offset == 4


def test_statuses_are_filtered_by_ref(store: Store) -> None:
    for ref in ("layer-1", "layer-2", "config"):
        store.writer(ref).close()
    assert {status.ref for status in store.statuses()} == {"layer-1", "layer-2", "config"}
    assert {status.ref for status in store.statuses("ref~=^layer-")} == {"layer-1", "layer-2"}
    assert {status.ref for status in store.statuses("ref==config", "ref==layer-1")} == {"config", "layer-1"}
    assert store.statuses("digest") == []
    with pytest.raises(InvalidArgument):
        store.statuses("ref=")


def test_aborting_removes_the_data(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"data")
    store.abort("ref")
    store.abort("ref")
    with pytest.raises(NotFound):
        store.status("ref")
    with store.writer("ref") as writer:
        assert writer.status.offset == 0


def test_an_open_ingest_is_not_aborted(store: Store) -> None:
    with store.writer("ref") as writer:
        writer.write(b"data")
        with pytest.raises(RefLocked):
            store.abort("ref")
        assert writer.commit().size == 4


def test_more_than_the_total_may_be_written_and_is_refused_at_commit(store: Store) -> None:
    with store.writer("ref", total=4) as writer:
        writer.write(b"12345")
        with pytest.raises(SizeMismatch):
            writer.commit(4)


def test_large_totals_that_are_not_reached_leave_only_what_was_written(store: Store) -> None:
    with store.writer("ref", total=4 << 20) as writer:
        writer.write(b"x" * 1000)
        assert store.status("ref").offset == 1000
    assert store.status("ref").offset == 1000
    with store.writer("ref", total=4 << 20) as writer:
        assert writer.digest == digest_of(b"x" * 1000)
        writer.write(b"y")
        assert writer.commit().size == 1001
    assert get(store, b"x" * 1000 + b"y")[-2:] == b"xy"


def test_a_closed_store_says_so(store: Store) -> None:
    put(store, b"data")
    writer = store.writer("ref")
    store.close()
    store.close()
    for call in (
        lambda: store.writer("other"),
        lambda: store.info(digest_of(b"data")),
        lambda: store.status("ref"),
        lambda: store.statuses(),
        lambda: list(store.walk()),
        lambda: store.abort("ref"),
        lambda: store.delete(digest_of(b"data")),
        lambda: writer.write(b"x"),
    ):
        with pytest.raises(Closed):
            call()
    writer.close()
