"""PAX extended headers: `length key=value` records (POSIX.1-2017, pax; GNU tar's and star's additions)."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context, Decimal, InvalidOperation

from blobtee.errors import CorruptData, Unimplemented

_NUMBER_DIGITS = 20
_TIME_DIGITS = 64
_EXACT = Context(prec=2 * _TIME_DIGITS)


def records(block: bytes) -> list[tuple[str, bytes]]:
    """The records of one extended header, in order: keys may repeat. `CorruptData` when they do not add up."""
    result: list[tuple[str, bytes]] = []
    position, end = 0, len(block)
    while position < end:
        blank = block.find(b" ", position, position + _NUMBER_DIGITS)
        digits = block[position:blank] if blank > 0 else b""
        if not digits.isdigit():
            if not block[position:].strip(b"\0"):
                break  # some writers pad with NULs within the announced length
            raise CorruptData("an extended header whose record has no length")
        stop = position + int(digits)
        if stop > end or stop <= blank + 1 or block[stop - 1 : stop] != b"\n":
            raise CorruptData("an extended header whose record has a wrong length")
        key, equals, value = block[blank + 1 : stop - 1].partition(b"=")
        if not key or not equals:
            raise CorruptData("an extended header whose record has no key")
        result.append((text(key), value))
        position = stop
    return result


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def number(raw: bytes, key: str) -> int:
    """A whole number as it may be written in a record; a fraction is cut off, as GNU tar does."""
    whole = raw.partition(b".")[0]
    sign = whole[:1] == b"-"
    digits = whole[1:] if sign else whole
    if not digits.isdigit() or len(digits) > _NUMBER_DIGITS:
        raise CorruptData(f"an extended header whose {key} is no number: {raw[:40]!r}")
    return -int(digits) if sign else int(digits)


def nanoseconds(raw: bytes, key: str) -> int:
    """Decimal seconds as nanoseconds; digits past the ninth are dropped, towards the past.

    Python's tarfile writes very small times with an exponent; that is read too.
    """
    try:
        value = Decimal(raw[:_TIME_DIGITS].decode("ascii"))
        if value.is_finite() and value.adjusted() < _NUMBER_DIGITS:
            return int(_EXACT.scaleb(value, 9).to_integral_value(ROUND_FLOOR))
    except (UnicodeDecodeError, InvalidOperation):
        pass
    raise CorruptData(f"an extended header whose {key} is no time: {raw[:40]!r}")


def sparse_numbers(pairs: Sequence[tuple[str, bytes]]) -> list[int] | None:
    """The sparse map of the PAX formats 0.0 (repeated keys) and 0.1 (one list), empty in format 1.0, whose map is with
    the data; None when there is none. `Unimplemented` for another format."""
    records = dict(pairs)
    version = records.get("GNU.sparse.major", b""), records.get("GNU.sparse.minor", b"")
    if version == (b"1", b"0"):
        return []
    repeated = [number(value, key) for key, value in pairs if key in ("GNU.sparse.offset", "GNU.sparse.numbytes")]
    listed = records.get("GNU.sparse.map", b"")
    if version in ((b"0", b"0"), (b"0", b"1")) or (version == (b"", b"") and (repeated or listed)):
        return repeated or [number(part, "GNU.sparse.map") for part in listed.split(b",") if listed]
    if any(version):
        raise Unimplemented(f"sparse format {version[0][:9]!r}.{version[1][:9]!r} is not known")
    return None
