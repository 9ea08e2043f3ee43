"""Digests and the ids made of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from blobtee.errors import InvalidDigest

LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Hex digits of each algorithm that containerd's stores accept (`spec/content.md` section 2)."""

_HEX = re.compile(r"[0-9a-f]+\Z")


class Digest(str):
    """`algorithm:hex` of a known algorithm, lower case. A plain `str` everywhere else.

    `Digest(text)` checks and raises `InvalidDigest`.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if type(text) is cls:
            return text
        algorithm, colon, hex_digits = text.partition(":")
        if not colon or LENGTHS.get(algorithm) != len(hex_digits) or not _HEX.match(hex_digits):
            shown = text if len(text) <= 100 else text[:100] + "…"
            raise InvalidDigest(f"not a digest: {shown!r} (wanted: sha256: and 64 lower-case hex digits)")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        return self[: self.index(":")]

    @property
    def hex(self) -> str:
        return self[self.index(":") + 1 :]

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self.hex[:12]

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The SHA-256 digest of a small document. Blobs go through the C core instead."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())


def chain_id(parent: str | None, digest: str) -> Digest:
    """OCI ChainID of `digest` on top of `parent` (image specification, config.md)."""
    return Digest(digest) if not parent else Digest.of(f"{parent} {digest}".encode())


def chain_ids(diff_ids: Iterable[str]) -> list[Digest]:
    """The ChainID of each prefix of `diff_ids`, base to top; as many as there are diff ids."""
    result: list[Digest] = []
    for diff_id in diff_ids:
        result.append(chain_id(result[-1] if result else None, diff_id))
    return result
