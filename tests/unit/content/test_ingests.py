"""What an ingest on disk can get into: others' files, damage, full disks, a call of the kernel that fails."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blobtee import content, tasks
from blobtee.content import LocalStore, Writer
from blobtee.content.files import format_time, parse_time
from blobtee.core import Sync
from blobtee.errors import (
    Cancelled,
    Closed,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StorageError,
    StorageFull,
)
from tests.conformance.blobs import describe, digest_of, get, put

MIB = 1 << 20


def failing(error: int) -> Callable[..., Any]:
    def fails(what: object, *_: object) -> Any:
        raise OSError(error, os.strerror(error), what)

    return fails


def ingest_of(root: Path, ref: str) -> Path:
    return root / "ingest" / hashlib.sha256(ref.encode()).hexdigest()


def test_a_truncation_that_ends_half_way_leaves_what_the_data_say(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "root") as store:
        with store.writer("ref") as writer:
            writer.write(b"0123456789")
            with tasks.scope() as cancellation:
                cancellation.cancel()
                with pytest.raises(Cancelled):
                    writer.truncate(5)
            with pytest.raises(Closed):
                writer.write(b"56")
        with store.writer("ref") as writer:
            assert (writer.status.offset, writer.digest) == (5, digest_of(b"01234"))
            writer.write(b"abc")
            assert writer.commit().digest == digest_of(b"01234abc")
        assert get(store, b"01234abc") == b"01234abc"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("which", ["data", "offset"])
def test_an_interrupt_behind_a_close_closes_no_file_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    with LocalStore(tmp_path / "root") as store:
        writer = store.writer("ref", total=3 << 20)
        writer.write(b"some")
        closing = {"data": writer._fd, "offset": writer._offset_fd}[which]
        close, other = os.close, os.open(tmp_path, os.O_RDONLY)

        def interrupted(fd: int) -> None:
            close(fd)
            if fd == closing:
                monkeypatch.undo()
                os.dup2(other, closing)  # the next that another thread opens
                raise Killed

        monkeypatch.setattr(os, "close", interrupted)
        with pytest.raises(Killed):
            writer.close()
        writer.close()
        close(closing)
        close(other)
        with store.writer("ref", total=3 << 20) as writer:
            assert writer.status.offset == 4


def test_an_ingest_of_containerds_own_store_is_resumed(tmp_path: Path) -> None:
    directory = ingest_of(tmp_path, "layer-x")
    directory.mkdir(parents=True)
    (directory / "ref").write_text("layer-x")
    (directory / "data").write_bytes(b"half")
    (directory / "total").write_text("8")
    (directory / "startedat").write_text("2024-02-29T23:59:59.123456789+01:00")
    (directory / "updatedat").write_text("2024-03-01T00:00:00Z")
    with LocalStore(tmp_path) as store:
        (status,) = store.statuses()
        assert (status.ref, status.offset, status.total) == ("layer-x", 4, 8)
        assert status.started_at == 1709247599123456789
        assert status.updated_at == 1709251200000000000
        with store.writer("layer-x", total=8) as writer:
            assert writer.status == status
            writer.write(b"done")
            writer.commit(8, digest_of(b"halfdone"))
        assert not directory.exists()


def test_our_ingests_are_in_containerds_form_when_nobody_writes_them(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("ref", total=2 * MIB) as writer:
            writer.write(b"part")
        status = store.status("ref")
        directory = ingest_of(tmp_path, "ref")
        assert {path.name for path in directory.iterdir()} == {"data", "ref", "total", "startedat", "updatedat"}
        assert (directory / "data").read_bytes() == b"part"
        assert (directory / "ref").read_bytes() == b"ref"
        assert (directory / "total").read_bytes() == b"2097152"
        assert parse_time((directory / "updatedat").read_bytes()) == status.updated_at


def test_space_is_allocated_ahead_without_looking_like_data(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store, LocalStore(tmp_path) as other:
        with store.writer("ref", total=3 * MIB) as writer:
            writer.write(b"part")
            assert (ingest_of(tmp_path, "ref") / "data").stat().st_size == 3 * MIB
            assert other.status("ref").offset == 4
            assert other.statuses()[0].offset == 4
            writer.write(b"x" * MIB)
            assert other.status("ref").offset == MIB + 4
        assert (ingest_of(tmp_path, "ref") / "data").stat().st_size == MIB + 4


def test_a_file_system_that_cannot_allocate_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 8192
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    with LocalStore(tmp_path) as store:
        with store.writer("ref", total=len(data)) as writer:
            writer.write(data)
            writer.commit(len(data), digest_of(data))
        assert get(store, data) == data


def test_a_disk_too_small_for_the_blob_says_so_at_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("ref") as writer:
            writer.write(b"before")
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
            with store.writer("ref", total=10 * MIB) as writer:
                for _ in range(2):
                    with pytest.raises(StorageFull, match="free some space"):
                        writer.write(b"more")
                assert writer.status.offset == 6
        with store.writer("ref", total=10 * MIB) as writer:
            assert writer.status.offset == 6
            writer.write(b"more")
            assert writer.digest == digest_of(b"beforemore")


def test_an_absurd_total_is_no_way_to_take_the_disk(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("ref", total=2**62) as writer:
            try:
                writer.write(b"x")
            except StorageFull:
                assert writer.status.offset == 0
            else:
                assert writer.status.offset == 1
        with pytest.raises(InvalidArgument):
            store.writer("other", total=2**63)
        assert (ingest_of(tmp_path, "ref") / "data").stat().st_blocks < 100


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageError)]
)
def test_a_failed_write_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    with LocalStore(tmp_path) as store, store.writer("ref") as writer:
        writer.write(b"before")
        real = os.pwrite

        def torn(fd: int, data: bytes, offset: int) -> int:
            if offset > 6:
                raise OSError(code, os.strerror(code))
            return real(fd, bytes(data)[:2], offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", torn)
            with pytest.raises(error):
                writer.write(b"after")
        assert writer.status.offset == 6
        assert writer.digest == digest_of(b"before")
        writer.write(b"more")
        assert writer.commit().digest == digest_of(b"beforemore")
        assert get(store, b"beforemore") == b"beforemore"


class RefusedSync(Sync):
    """The sync of a file that the disk does not take."""

    def wait(self) -> None:
        super().wait()
        raise OSError(errno.EIO, "Input/output error")


def test_a_failed_sync_starts_the_ingest_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalStore(tmp_path) as store:
        for total in (0, 4):
            with monkeypatch.context() as patch:
                patch.setattr(content.writer, "Sync", RefusedSync)
                writer = store.writer("ref", total=total)
                writer.write(b"data")
                with pytest.raises(StorageError, match="starts over"):
                    writer.commit()
            assert store.status("ref").offset == 0
            assert list(store.walk()) == []
        assert dict(put(store, b"data").labels) == {}


def meet_refusal(writer: Writer, how: str) -> None:
    """Write a whole blob, and then do what meets its sync."""
    meetings: dict[str, Callable[[], object]] = {
        "write": lambda: writer.write(b"more"),
        "truncate": lambda: writer.truncate(2),
        "commit": writer.commit,
    }
    writer.write(b"data")
    if how == "close":
        writer.close()
        return
    with pytest.raises(StorageError, match="starts over"):
        meetings[how]()


@pytest.mark.parametrize("how", ["close", "write", "truncate"])
def test_bytes_whose_sync_failed_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with LocalStore(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(content.writer, "Sync", RefusedSync)
            writer = store.writer("ref", total=4)
            meet_refusal(writer, how)
            if how != "close":
                assert writer.status.offset == 0
        assert store.status("ref").offset == 0
        if how == "close":
            writer = store.writer("ref", total=4)
        writer.write(b"good")
        assert writer.commit().digest == digest_of(b"good")
        assert get(store, b"good") == b"good"


@pytest.mark.parametrize("how", ["close", "write", "commit"])
def test_an_ingest_goes_when_its_sync_failed_and_it_cannot_be_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    released: list[str] = []
    with LocalStore(tmp_path) as store:
        release = store._locks.release  # type: ignore[union-attr]

        def recorded(name: str) -> None:
            released.append(name)
            release(name)

        with monkeypatch.context() as patch:
            patch.setattr(content.writer, "Sync", RefusedSync)
            patch.setattr(os, "ftruncate", failing(errno.EROFS))
            patch.setattr(store._locks, "release", recorded)
            writer = store.writer("ref", total=4)
            meet_refusal(writer, how)
            if how != "close":
                with pytest.raises(Closed):
                    writer.write(b"more")
            writer.close()
        assert [name for name in released if name.startswith("ingest:")] == [store._ingests.of("ref").lock]
        with pytest.raises(NotFound):
            store.status("ref")
        assert dict(put(store, b"data").labels) == {}


@pytest.mark.parametrize("how", ["close", "commit"])
def test_an_interrupt_does_not_lose_that_a_sync_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    waits: list[int] = []

    class Interrupted(RefusedSync):
        def wait(self) -> None:
            waits.append(os.fstat(self._sync.fd).st_size)
            if len(waits) == 1:
                raise KeyboardInterrupt
            super().wait()

    with LocalStore(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(content.writer, "Sync", Interrupted)
            writer = store.writer("ref", total=4)
            writer.write(b"data")
            with pytest.raises(KeyboardInterrupt):
                getattr(writer, how)()
        assert waits == [4, 4]
        assert store.status("ref").offset == 0
        assert list(store.walk()) == []
        writer = store.writer("ref")
        writer.write(b"good")
        assert writer.commit().digest == digest_of(b"good")


def test_a_failed_rename_leaves_the_ingest_and_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalStore(tmp_path) as store:
        writer = store.writer("ref")
        writer.write(b"data")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing(errno.EIO))
            with pytest.raises(StorageError):
                writer.commit(labels={"lost": "1"})
        with pytest.raises(NotFound):
            store.info(digest_of(b"data"))
        with store.writer("ref") as again:
            assert again.status.offset == 4
            assert dict(again.commit().labels) == {}


def test_running_out_of_descriptors_is_told(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with LocalStore(tmp_path) as store:
        put(store, b"data")
        store.has(digest_of(b"data"))
        os.close(first_free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            with pytest.raises(ResourceExhausted):
                store.reader_at(describe(b"data"))
            with pytest.raises(ResourceExhausted):
                store.writer("ref")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        store.writer("ref").close()
        assert get(store, b"data") == b"data"


def test_broken_ingests_are_set_aside_and_never_stop_a_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("good") as writer:
            writer.write(b"data")
    ingests = tmp_path / "ingest"
    (ingests / "a file").write_bytes(b"x")
    (ingests / ("f" * 64)).write_bytes(b"x")
    wrong_ref = ingest_of(tmp_path, "some ref")
    wrong_ref.mkdir()
    (wrong_ref / "ref").write_text("another ref")
    (wrong_ref / "data").write_bytes(b"precious")
    odd_data = ingest_of(tmp_path, "odd")
    (odd_data / "data").mkdir(parents=True)
    (odd_data / "ref").write_text("odd")
    foreign = ingest_of(tmp_path, "foreign")
    foreign.mkdir()
    (foreign / "somebody's file").write_bytes(b"x")
    never_began = ingest_of(tmp_path, "never")
    never_began.mkdir()
    (never_began / "ref").write_text("never")
    with caplog.at_level(logging.WARNING), LocalStore(tmp_path) as store:
        assert len(store.problems) == 5
        assert len(caplog.records) == 5
        assert [status.ref for status in store.statuses()] == ["good"]
        assert {path.name for path in ingests.iterdir()} == {ingest_of(tmp_path, "good").name}
        assert len(list((tmp_path / "broken").iterdir())) == 5
        assert any((path / "data").is_file() for path in (tmp_path / "broken").iterdir())
        with store.writer("some ref") as writer:
            assert writer.status.offset == 0
    with LocalStore(tmp_path) as store:
        assert store.problems == ()


def test_an_ingest_that_breaks_while_the_store_is_open_is_left_out_and_starts_over(tmp_path: Path) -> None:
    with LocalStore(tmp_path) as store:
        for ref in ("good", "bad"):
            with store.writer(ref) as writer:
                writer.write(b"data")
        (ingest_of(tmp_path, "bad") / "ref").write_bytes(b"\xff\xff")
        assert [status.ref for status in store.statuses()] == ["good"]
        with pytest.raises(DataLoss):
            store.status("bad")
        with store.writer("bad") as writer:
            assert writer.status.offset == 0
        store.abort("bad")
        assert [status.ref for status in store.statuses()] == ["good"]


@pytest.mark.parametrize("content", [b"garbage", b"-5", b"\xff", b"9" * 31])
def test_side_files_that_make_no_sense_do_not_matter(tmp_path: Path, content: bytes) -> None:
    with LocalStore(tmp_path) as store:
        with store.writer("ref", total=4) as writer:
            writer.write(b"data")
        for name in ("total", "startedat", "updatedat"):
            (ingest_of(tmp_path, "ref") / name).write_bytes(content)
        assert store.status("ref").offset == 4
        with store.writer("ref") as writer:
            assert writer.commit().digest == digest_of(b"data")


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, 1_709_247_599_123_456_789, 253_402_300_799_999_999_999])
def test_times_survive_their_text(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns


def test_texts_that_are_no_time_are_none() -> None:
    for text in (b"", b"now", b"2024-13-01T00:00:00Z", b"2024-01-01T00:00:00", b"2024-01-01T00:00:00.1234567890Z"):
        assert parse_time(text) is None
