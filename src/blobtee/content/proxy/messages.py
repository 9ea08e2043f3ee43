"""`Info` and `Status` as messages of the content service."""

from __future__ import annotations

from typing import Any

from blobtee.content.api import Info, Status
from blobtee.oci import Digest
from blobtee.wire.content import messages
from blobtee.wire.table import common

_SECOND = 1_000_000_000


def timestamp(ns: int) -> Any:
    seconds, nanos = divmod(ns, _SECOND)
    return common.Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(time: Any) -> int:
    """0 for a time that was left out."""
    return int(time.seconds) * _SECOND + int(time.nanos)


def info_message(info: Info) -> Any:
    return messages.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=dict(info.labels),
    )


def info_of(message: Any) -> Info:
    """`InvalidDigest`: the digest is none."""
    return Info(
        Digest(message.digest),
        message.size,
        nanoseconds(message.created_at),
        nanoseconds(message.updated_at),
        dict(message.labels),
    )


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
    """`InvalidDigest`: the expected digest is none."""
    return Status(
        message.ref,
        message.offset,
        message.total,
        Digest(message.expected) if message.expected else None,
        nanoseconds(message.started_at),
        nanoseconds(message.updated_at),
    )
