"""Small helpers of the suite."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from blobtee.content import Info, Store
from blobtee.oci import Descriptor, Digest


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


def describe(data: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor("application/octet-stream", digest_of(data, algorithm), len(data))


def put(store: Store, data: bytes, labels: Mapping[str, str] | None = None, *, ref: str = "put") -> Info:
    with store.writer(ref) as writer:
        writer.write(data)
        return writer.commit(len(data), digest_of(data), labels)


def get(store: Store, data: bytes) -> bytes:
    """What the store holds under the digest of `data`."""
    with store.reader_at(describe(data)) as reader:
        return reader.read_at(0, reader.size + 1)
