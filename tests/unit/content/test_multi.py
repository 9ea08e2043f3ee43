"""Several providers as one."""

from __future__ import annotations

import pytest

from blobtee.content import InfoProvider, MemoryStore, MultiProvider, Provider, ReaderAt
from blobtee.errors import ConnectionFailed, InvalidDigest, NotFound
from blobtee.oci import Descriptor
from tests.conformance.blobs import describe, digest_of, put


class Broken:
    def reader_at(self, desc: Descriptor) -> ReaderAt:
        raise ConnectionFailed("no route")


def read(provider: MultiProvider, data: bytes) -> bytes:
    with provider.reader_at(describe(data)) as reader:
        return reader.read_at(0, 100)


def test_the_first_that_has_a_blob_brings_it() -> None:
    with MemoryStore() as one, MemoryStore() as two:
        put(one, b"a", {"from": "one"})
        put(two, b"a", {"from": "two"})
        put(two, b"b")
        multi = MultiProvider(one, two)
        assert isinstance(multi, Provider)
        assert isinstance(multi, InfoProvider)
        assert read(multi, b"b") == b"b"
        assert multi.info(digest_of(b"a")).labels["from"] == "one"
        with pytest.raises(NotFound):
            multi.reader_at(describe(b"c"))
        with pytest.raises(NotFound):
            multi.info(digest_of(b"c"))


def test_a_digests_own_provider_goes_first_the_latest_before_the_others() -> None:
    with MemoryStore() as one, MemoryStore() as two, MemoryStore() as common:
        for name, store in (("one", one), ("two", two), ("common", common)):
            put(store, b"a", {"from": name})
        multi = MultiProvider(common)
        multi.add(digest_of(b"a"), one)
        assert multi.info(digest_of(b"a")).labels["from"] == "one"
        multi.add(digest_of(b"a"), two)
        assert multi.info(digest_of(b"a")).labels["from"] == "two"
        two.delete(digest_of(b"a"))
        assert read(multi, b"a") == b"a"
        with pytest.raises(InvalidDigest):
            multi.add("nonsense", one)


def test_an_error_other_than_not_found_is_the_answer() -> None:
    with MemoryStore() as store:
        put(store, b"a")
        with pytest.raises(ConnectionFailed):
            MultiProvider(Broken(), store).reader_at(describe(b"a"))
        assert MultiProvider(Broken(), store).info(digest_of(b"a")).size == 1
