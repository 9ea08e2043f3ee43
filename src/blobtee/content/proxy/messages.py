"""`Info` and `Status` as messages of the content service."""

from __future__ import annotations

from typing import Any

from blobtee.content.api import Info, Status
from blobtee.content.ingests import encode_ref
from blobtee.errors import InvalidDigest, ProtocolViolation
from blobtee.oci import Digest
from blobtee.wire.content import messages
from blobtee.wire.table import common

_SECOND = 1_000_000_000
_RAW_REF = "blobtee-raw-ref:"


def timestamp(ns: int) -> Any:
    seconds, nanos = divmod(ns, _SECOND)
    return common.Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(time: Any) -> int:
    """0 for a time that was left out, or is Go's zero time, of the year 1."""
    return max(0, int(time.seconds) * _SECOND + int(time.nanos))


def info_message(info: Info) -> Any:
    return messages.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=dict(info.labels),
    )


def digest_of(text: str) -> Digest:
    """What a server calls a digest; `ProtocolViolation`: it is none."""
    try:
        return Digest(text)
    except InvalidDigest as error:
        raise ProtocolViolation(f"a server answered with what is no digest: {error}") from error


def info_of(message: Any) -> Info:
    """`ProtocolViolation`: the digest is none, or the size."""
    if message.size < 0:
        raise ProtocolViolation(f"a server says that a blob has {message.size} bytes")
    created_at = nanoseconds(message.created_at)
    # containerd 1.6 leaves the second time out of its lists, until it is another.
    updated_at = nanoseconds(message.updated_at) or created_at
    return Info(digest_of(message.digest), message.size, created_at, updated_at, dict(message.labels))


def status_message(status: Status) -> Any:
    return messages.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected or "",
    )


def status_of(message: Any) -> Status:
    """`ProtocolViolation`: the expected digest is none."""
    return Status(
        message.ref,
        message.offset,
        message.total,
        digest_of(message.expected) if message.expected else None,
        nanoseconds(message.started_at),
        nanoseconds(message.updated_at),
    )


def ref_text(ref: str) -> str:
    """`ref` as a message can say it: one that is no Unicode text, in hexadecimal digits behind a prefix."""
    encoded = encode_ref(ref)
    try:
        plain = encoded.decode("utf-8")
    except UnicodeDecodeError:
        return _RAW_REF + encoded.hex()
    return _RAW_REF + encoded.hex() if plain.startswith(_RAW_REF) else plain


def ref_of(text: str) -> str:
    """The ref that `ref_text` made `text` of. What others wrote is left as it is."""
    if not text.startswith(_RAW_REF):
        return text
    try:
        return bytes.fromhex(text.removeprefix(_RAW_REF)).decode("utf-8", "surrogateescape")
    except ValueError:
        return text
