"""How far bytes are proven."""

from __future__ import annotations

import pytest

from blobtee.content import MemoryStore, Trust
from blobtee.errors import InvalidArgument
from blobtee.oci import Descriptor, Digest


def test_each_trust_satisfies_itself_and_what_is_worth_less() -> None:
    order = [Trust.RAW, Trust.STREAMED, Trust.ATTESTED, Trust.BLOB]
    for place, trust in enumerate(order):
        assert [trust.satisfies(wanted) for wanted in order] == [other <= place for other in range(4)]


def test_words_are_parsed_and_nonsense_is_refused() -> None:
    assert [Trust.parse(str(trust)) for trust in Trust] == list(Trust)
    with pytest.raises(InvalidArgument, match="raw, streamed, attested, blob"):
        Trust.parse("full")


def test_a_stores_reader_is_proven_whole() -> None:
    store = MemoryStore()
    with store.writer("x") as writer:
        writer.write(b"data")
        writer.commit()
    with store.reader_at(Descriptor("", Digest.of(b"data"), 4)) as reader:
        assert reader.trust is Trust.BLOB
