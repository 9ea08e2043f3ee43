"""What containerd knows of its blobs (containerd `core/metadata/buckets.go`, schema v1).

v1/<namespace>/content/blob/<digest>/createdat, updatedat, labels/<key>
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blobtee.errors import DataLoss, InvalidArgument
from blobtee.oci import Digest
from blobtee.plugin.adopting.bolt import Bolt, Bucket

_TIME = struct.Struct(">BqiH")  # version, seconds since the year 1, nanoseconds, minutes east
_YEAR_1 = -62135596800


@dataclass
class Known:
    """A blob as all namespaces together know it: the earliest time, the latest change, the labels of all. Nanoseconds
    since the epoch; 0 when nobody says."""

    created_at: int = 0
    updated_at: int = 0
    labels: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> dict[Digest, Known]:
    """Every blob that a namespace has. Where two of them give a label different values, the first namespace's stays.

    `NotFound`, `PermissionDenied`, `DataLoss`.
    """
    known: dict[Digest, Known] = {}
    with Bolt(path) as file:
        version = file.root.bucket(b"v1")
        if version is None:
            raise DataLoss(f"{path} has no data in the form that containerd writes since 1.0")
        for _, namespace in version.buckets():
            content = namespace.bucket(b"content")
            blobs = content.bucket(b"blob") if content is not None else None
            for name, blob in blobs.buckets() if blobs is not None else ():
                try:
                    digest = Digest(name.decode())
                except (InvalidArgument, UnicodeDecodeError):
                    continue
                _learn(known.setdefault(digest, Known()), blob)
    return known


def in_use(path: Path) -> bool:
    """Whether containerd has the database open: it holds a lock on it as long as it runs."""
    with keeping_out(path) as is_free:
        return not is_free


@contextmanager
def keeping_out(path: Path) -> Iterator[bool]:
    """A block in which no containerd starts on the database: it waits for the lock that it takes at its start. The
    value is False when one runs already. A file that is not there, or not to be opened, keeps nobody out."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield True
        return
    try:
        is_free = True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            pass  # a file system without locks
        yield is_free
    finally:
        os.close(fd)


def _learn(known: Known, blob: Bucket) -> None:
    of_blob = {key: member for key, member in blob.items() if key in (b"createdat", b"updatedat", b"labels")}
    created, updated = _time(of_blob.get(b"createdat")), _time(of_blob.get(b"updatedat"))
    known.created_at = min(filter(None, (known.created_at, created)), default=0)
    known.updated_at = max(known.updated_at, updated, known.created_at)
    labels = of_blob.get(b"labels")
    for key, value in labels.items() if isinstance(labels, Bucket) else ():
        if isinstance(value, bytes) and key and value:
            known.labels.setdefault(key.decode(errors="replace"), value.decode(errors="replace"))


def _time(data: bytes | Bucket | None) -> int:
    """As Go's `time.Time` writes itself; 0 for none, and for one that no nanoseconds since the epoch can say."""
    if not isinstance(data, bytes) or len(data) < _TIME.size:
        return 0
    _, seconds, nanos, _ = _TIME.unpack_from(data)
    time = (int(seconds) + _YEAR_1) * 1_000_000_000 + int(nanos)
    return time if 0 < time < 1 << 63 else 0
