"""`Provider`, `ReaderAt` and `ReaderFile`, on every store."""

from __future__ import annotations

import io
import tarfile
import threading

import pytest

from blobtee.content import InfoProvider, Provider, Store
from blobtee.errors import Closed, InvalidArgument, InvalidDigest, NotFound, OutOfRange, SizeMismatch
from blobtee.oci import Descriptor, Digest
from tests.conformance.blobs import describe, digest_of, get, put

DATA = bytes(range(256)) * 40


def test_every_store_is_all_of_the_protocols(store: Store) -> None:
    assert isinstance(store, Store)
    assert isinstance(store, Provider)
    assert isinstance(store, InfoProvider)


@pytest.mark.parametrize(
    ("offset", "n", "wanted"),
    [
        (0, 10, DATA[:10]),
        (300, 1000, DATA[300:1300]),
        (0, len(DATA), DATA),
        (len(DATA) - 3, 100, DATA[-3:]),
        (len(DATA), 1, b""),
        (5, 0, b""),
    ],
)
def test_ranges_are_half_open_and_end_with_the_blob(store: Store, offset: int, n: int, wanted: bytes) -> None:
    put(store, DATA)
    with store.reader_at(describe(DATA)) as reader:
        assert reader.size == len(DATA)
        assert reader.read_at(offset, n) == wanted
        buffer = bytearray(b"\xff" * n)
        assert reader.readinto_at(offset, buffer) == len(wanted)
        assert buffer[: len(wanted)] == wanted
        assert buffer[len(wanted) :] == b"\xff" * (n - len(wanted))


def test_offsets_that_make_no_sense_are_refused(store: Store) -> None:
    put(store, DATA)
    with store.reader_at(describe(DATA)) as reader:
        with pytest.raises(OutOfRange):
            reader.read_at(len(DATA) + 1, 1)
        with pytest.raises(InvalidArgument):
            reader.read_at(-1, 1)
        with pytest.raises(InvalidArgument):
            reader.read_at(0, -1)
        with pytest.raises(OutOfRange):
            reader.readinto_at(len(DATA) + 1, bytearray(0))


def test_a_closed_reader_says_so_and_closes_twice(store: Store) -> None:
    put(store, DATA)
    reader = store.reader_at(describe(DATA))
    reader.close()
    reader.close()
    with pytest.raises(Closed):
        reader.read_at(0, 1)


def test_an_absent_blob_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.reader_at(describe(DATA))
    with pytest.raises(NotFound):
        store.info(digest_of(DATA))


def test_only_the_digest_names_a_blob_but_a_wrong_size_is_told(store: Store) -> None:
    put(store, DATA)
    for size in (0, 1, len(DATA) - 1, len(DATA) + 1, 2**62):
        with pytest.raises(SizeMismatch):
            store.reader_at(Descriptor("any/type", digest_of(DATA), size))
    with store.reader_at(Descriptor("", digest_of(DATA), -1)) as reader:
        assert reader.size == len(DATA)


def test_a_digest_that_is_none_is_refused(store: Store) -> None:
    for text in ("", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 32, "../../etc/passwd"):
        with pytest.raises(InvalidDigest):
            store.info(text)
        with pytest.raises(InvalidDigest):
            store.delete(text)
        with pytest.raises(InvalidDigest):
            store.update(text, {})


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    assert put(store, b"").size == 0
    assert get(store, b"") == b""
    with store.reader_at(describe(b"")) as reader, reader.open() as file:
        assert file.read() == b""


def test_a_reader_as_a_file_reads_seeks_and_serves_tarfile(store: Store) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("a/file")
        member.size = len(DATA)
        tar.addfile(member, io.BytesIO(DATA))
    data = archive.getvalue()
    put(store, data)
    with store.reader_at(describe(data)) as reader:
        with reader.open(512) as file:
            assert file.tell() == 512
            assert file.read(100) == data[512:612]
            assert file.seek(-10, io.SEEK_END) == len(data) - 10
            assert file.read() == data[-10:]
            assert file.seek(10**9) == 10**9
            assert file.read(1) == b""
            with pytest.raises(InvalidArgument):
                file.seek(-1)
        with pytest.raises((Closed, ValueError)):
            file.read(1)
        with reader.open() as file, tarfile.open(fileobj=io.BufferedReader(file)) as tar:
            extracted = tar.extractfile("a/file")
            assert extracted is not None
            assert extracted.read() == DATA


def test_readers_read_on_when_their_blob_is_deleted(store: Store) -> None:
    put(store, DATA)
    with store.reader_at(describe(DATA)) as reader:
        assert reader.read_at(0, 10) == DATA[:10]
        store.delete(digest_of(DATA))
        assert reader.read_at(0, len(DATA)) == DATA
    with pytest.raises(NotFound):
        store.reader_at(describe(DATA))


def test_one_reader_serves_many_threads_and_is_closed_under_them(store: Store) -> None:
    put(store, DATA)
    reader = store.reader_at(describe(DATA))
    started = threading.Barrier(9)
    wrong: list[object] = []

    def read(seed: int) -> None:
        started.wait()
        at = seed
        while True:
            at = (at * 31 + 7) % len(DATA)
            try:
                if reader.read_at(at, 64) != DATA[at : at + 64]:
                    wrong.append(at)
            except Closed:
                return
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    for _ in range(200):
        assert reader.read_at(0, 16) == DATA[:16]
    reader.close()
    # Descriptors that are opened right after the close must not be what a late read looks at.
    others = [store.reader_at(describe(DATA)) for _ in range(4)]
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert wrong == []


def test_sha384_and_sha512_name_blobs_too(store: Store) -> None:
    for algorithm in ("sha384", "sha512"):
        expected = digest_of(DATA, algorithm)
        with store.writer(algorithm, expected=expected) as writer:
            writer.write(DATA)
            assert writer.digest == expected
            assert writer.commit().digest == expected
        assert store.info(expected).size == len(DATA)
        with store.reader_at(describe(DATA, algorithm)) as reader:
            assert reader.read_at(0, len(DATA)) == DATA
    assert {Digest(info.digest).algorithm for info in store.walk()} == {"sha384", "sha512"}
