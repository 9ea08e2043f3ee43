"""What every store checks in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blobtee.content.api import Status
from blobtee.errors import DigestMismatch, InvalidArgument, OutOfRange, SizeMismatch
from blobtee.oci import Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

MAX_TOTAL = 2**63 - 1


def flat(data: Buffer) -> memoryview:
    """`data` as a view of single bytes; without copying where it lies in one piece."""
    try:
        view = memoryview(data)
    except TypeError:
        raise InvalidArgument(f"bytes are needed, not {type(data).__name__}") from None
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def check_total(total: int) -> None:
    if not 0 <= total <= MAX_TOTAL:
        raise InvalidArgument(f"a blob cannot have {total} bytes")


def check_truncation(size: int, offset: int) -> None:
    if size < 0:
        raise InvalidArgument(f"cannot truncate to {size} bytes")
    if size > offset:
        raise OutOfRange(f"cannot truncate to {size} bytes: only {offset} are there")


def check_commit(status: Status, size: int, expected: str | None, digest_as: Callable[[str], Digest]) -> Digest:
    """The digest that the ingest is committed under: SHA-256 unless `expected` asks for another.

    `digest_as` gives the digest of the data by algorithm. `SizeMismatch`, `DigestMismatch`, `InvalidDigest`.
    """
    if size < 0:
        raise InvalidArgument(f"a blob cannot have {size} bytes")
    what = f"ingest {status.ref[:200]!r}"
    if size and size != status.offset:
        raise SizeMismatch(what, size, status.offset)
    wanted = Digest(expected) if expected else status.expected
    actual = digest_as(wanted.algorithm if wanted is not None else "sha256")
    if wanted is not None and wanted != actual:
        raise DigestMismatch(what, wanted, actual)
    return actual
