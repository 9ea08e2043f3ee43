"""Hash objects for the algorithms that digests may name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from blobtee import core
from blobtee.errors import InvalidDigest
from blobtee.oci import Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class Hash(Protocol):
    """What blobs are hashed with; one object is for one thread at a time."""

    def update(self, data: Buffer, /) -> None: ...

    def hexdigest(self) -> str:
        """Hex digits for all bytes so far; more may follow."""
        ...


_MAKERS: dict[str, Callable[[], Hash]] = {
    "sha256": core.Sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}


def digester(algorithm: str = "sha256") -> Hash:
    """A new hash object for `sha256`, `sha384` or `sha512`; `InvalidDigest` for any other name."""
    try:
        return _MAKERS[algorithm]()
    except KeyError:
        raise InvalidDigest(f"unknown digest algorithm {algorithm[:40]!r}") from None


def appended(algorithm: str, hashed: Hash, data: Buffer) -> Digest:
    """The digest of what `hashed` has seen, `data` included, which it sees now."""
    if isinstance(hashed, core.Sha256):
        return Digest(f"{algorithm}:{hashed.append(data).hex()}")
    hashed.update(data)
    return digest_of(algorithm, hashed)


def digest_of(algorithm: str, hashed: Hash) -> Digest:
    """The digest of what `hashed` has seen."""
    return Digest(f"{algorithm}:{hashed.hexdigest()}")


EMPTY = {algorithm: digest_of(algorithm, digester(algorithm)) for algorithm in _MAKERS}
"""The digests of nothing."""
