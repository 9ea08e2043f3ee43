"""Errors of ours and gRPC's status codes, in both directions (`spec/content.md` section 2, status codes)."""

from __future__ import annotations

from blobtee import errors
from blobtee.errors import BlobteeError

_CLASSES: dict[str, type[BlobteeError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.PermissionDenied,
        errors.Unauthenticated,
        errors.ResourceExhausted,
        errors.FailedPrecondition,
        errors.OutOfRange,
        errors.Unimplemented,
        errors.Internal,
        errors.RefLocked,
        errors.DataLoss,
        errors.Cancelled,
        errors.DeadlineExceeded,
    )
}


_NAMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
NUMBERS = {name: number for number, name in enumerate(_NAMES)}
"""gRPC's status codes by their names (grpc/doc/statuscodes.md)."""


def code_of(error: BaseException) -> str:
    """The name of the code of one of our errors; `INTERNAL` for any other exception, which is a defect of ours."""
    return error.code if isinstance(error, BlobteeError) else errors.Internal.code


def error_of(code: str, message: str) -> BlobteeError:
    """The error of ours for the answer of a server; `RemoteError` for a code that no store is known to give."""
    return _CLASSES.get(code, errors.RemoteError)(message)
