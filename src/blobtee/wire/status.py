"""Errors of ours and gRPC's status codes, in both directions (`spec/content.md` section 2, status codes)."""

from __future__ import annotations

import grpc

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


def code_of(error: BaseException) -> grpc.StatusCode:
    """The code of one of our errors; `INTERNAL` for any other exception, which is a defect of ours."""
    name = error.code if isinstance(error, BlobteeError) else errors.Internal.code
    return grpc.StatusCode[name]


def error_of(code: grpc.StatusCode, message: str) -> BlobteeError:
    """The error of ours for the answer of a server; `RemoteError` for a code that no store is known to give."""
    return _CLASSES.get(code.name, errors.RemoteError)(message)
