"""What a caller can ask for: one of four types, a level, and whether layers that differ are converted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from blobtee.errors import InvalidArgument
from blobtee.oci import Compressed, layer_compression, mediatypes


class Type(StrEnum):
    """How layers are packed (`spec/remote.md` section 5)."""

    UNCOMPRESSED = "uncompressed"
    GZIP = "gzip"
    ESTARGZ = "estargz"
    ZSTD = "zstd"

    @property
    def media_type(self) -> str:
        """The OCI media type of a layer packed so."""
        return _MEDIA_TYPES[self]


_MEDIA_TYPES = {
    Type.UNCOMPRESSED: mediatypes.OCI_LAYER,
    Type.GZIP: mediatypes.OCI_LAYER + "+gzip",
    Type.ESTARGZ: mediatypes.OCI_LAYER + "+gzip",
    Type.ZSTD: mediatypes.OCI_LAYER + "+zstd",
}
_LEVELS = {Type.GZIP: range(13), Type.ESTARGZ: range(13), Type.ZSTD: range(1, 23)}
# Go's strconv.ParseBool
_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_DEFAULT_LEVELS = {Type.GZIP: 6, Type.ESTARGZ: 6, Type.ZSTD: 3}


@dataclass(frozen=True, init=False)
class Compression:
    """A wish: `type`; `force` converts layers that are packed otherwise; `level` None is the type's own default.

    `type` may be given by name. A level of -1 means the default, as elsewhere in the ecosystem.
    `InvalidArgument` for an unknown type, or a level that the type does not have.
    """

    type: Type
    force: bool
    level: int | None

    def __init__(self, type: Type | str = Type.GZIP, *, force: bool = False, level: int | None = None) -> None:
        try:
            kind = Type(type)
        except ValueError:
            names = ", ".join(known.value for known in Type)
            raise InvalidArgument(f"unknown compression {str(type)[:100]!r} (there is: {names})") from None
        if level == -1:
            level = None
        if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
            raise InvalidArgument(f"a compression level is a whole number, not {level!r:.40}")
        levels = _LEVELS.get(kind)
        if level is not None and levels is None:
            raise InvalidArgument(f"{kind.value} has no levels")
        if level is not None and levels is not None and level not in levels:
            raise InvalidArgument(f"{kind.value} has the levels {levels[0]} to {levels[-1]}, not {level}")
        object.__setattr__(self, "type", kind)
        object.__setattr__(self, "force", bool(force))
        object.__setattr__(self, "level", level)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> Compression:
        """The wish that a user of BuildKit's exporters writes as attributes (`spec/remote.md` section 5).

        `compression`: a type's name, gzip when absent. `force-compression`: true when empty; 1, t, true, 0, f, false,
        in lower case, capitals, or with one capital. `compression-level`: a decimal number, -1 for the default. Other
        attributes are somebody else's. `InvalidArgument` names the attribute that makes no sense.
        """
        force = attributes.get("force-compression", "false") or "true"
        if force not in _TRUE | _FALSE:
            raise InvalidArgument(f"force-compression is true or false, not {force[:40]!r}")
        level = attributes.get("compression-level", "-1")
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", level):
            raise InvalidArgument(f"compression-level is a whole number, not {level[:40]!r}")
        try:
            return cls(attributes.get("compression", Type.GZIP.value), force=force in _TRUE, level=int(level))
        except InvalidArgument as error:
            raise InvalidArgument(f"attributes of compression: {error}") from None

    @property
    def effective_level(self) -> int | None:
        """The level that is used: `level`, else the type's default; None where there are no levels."""
        return self.level if self.level is not None else _DEFAULT_LEVELS.get(self.type)


_TYPES = {Compressed.NONE: Type.UNCOMPRESSED, Compressed.GZIP: Type.GZIP, Compressed.ZSTD: Type.ZSTD}


def from_media_type(media_type: str) -> Type:
    """The type that a layer's media type says; gzip types are gzip, never eStargz.

    `UnsupportedMediaType` names a type that is not a layer's.
    """
    return _TYPES[layer_compression(media_type)]
