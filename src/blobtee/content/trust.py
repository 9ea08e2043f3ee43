"""How far bytes are proven (`spec/tee.md` section 3)."""

from __future__ import annotations

import enum

from blobtee.errors import InvalidArgument


class Trust(enum.StrEnum):
    """What a reader may rely on, and what a caller asks for at least. Ordered: each is worth more than those before.

    A reader never gives bytes of less than it was opened for, and nothing derived from `RAW` bytes is kept.
    """

    RAW = "raw"
    """What the source sent, its length and place checked, nothing else: for looking at a type, or for a table that is
    then checked by itself."""

    STREAMED = "streamed"
    """In order as they arrive; the last 64 KiB are withheld until the whole digest is right. For a reader that throws
    its result away when the end fails."""

    ATTESTED = "attested"
    """Covered by a digest that leads to the manifest the caller asked for: the author of a layer's table of contents
    said so. The table and the layer's tar may still tell two stories."""

    BLOB = "blob"
    """The whole blob's digest was checked, or that of a part by digests that were made here of a checked blob."""

    @property
    def rank(self) -> int:
        return _RANKS[self]

    def satisfies(self, wanted: Trust) -> bool:
        """Whether bytes of this trust may be given to somebody who asked for `wanted`."""
        return self.rank >= wanted.rank

    @classmethod
    def parse(cls, text: str) -> Trust:
        """`InvalidArgument` for a word that is none of them."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidArgument(f"no trust {text!r:.40}: one of {', '.join(cls)}") from None


_RANKS = {trust: rank for rank, trust in enumerate(Trust)}
