from __future__ import annotations

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.errors import InvalidDigest
from blobtee.oci import Digest, chain_id, chain_ids


@given(st.binary(max_size=50))
def test_a_digest_is_text_with_parts(data: bytes) -> None:
    digest = Digest.of(data)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (digest.algorithm, digest.hex) == ("sha256", hashlib.sha256(data).hexdigest())
    assert digest.hex.startswith(digest.short)
    assert Digest(str(digest)) == digest
    assert pickle.loads(pickle.dumps(digest)) == digest


def test_longer_algorithms_are_known() -> None:
    for algorithm, length in (("sha384", 96), ("sha512", 128)):
        assert Digest(f"{algorithm}:{'a' * length}").algorithm == algorithm
        with pytest.raises(InvalidDigest):
            Digest(f"{algorithm}:{'a' * 64}")


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", ":" + "a" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64,
     "sha256:" + "g" * 64, "md5:" + "a" * 32, "sha256:" + "a" * 64 + "\n", "sha256:" + "a" * 63 + "\n",
     "../../" + "a" * 64, "sha256:" + "../" * 21 + "a"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest(text)


def test_chain_ids_are_those_of_the_specification() -> None:
    a, b, c = (Digest.of(text) for text in (b"a", b"b", b"c"))
    ab = "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    abc = "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest()
    assert chain_ids([]) == []
    assert chain_ids([a, b, c]) == [a, ab, abc]
    assert chain_id(None, a) == a
    assert chain_id(a, b) == ab
