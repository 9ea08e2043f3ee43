"""Every error that blobtee raises, in one tree.

    BlobteeError                      UNKNOWN
    ├── InvalidArgument (ValueError)  INVALID_ARGUMENT     what the caller gave makes no sense
    │   ├── InvalidDigest                                  not `algorithm:hex` of a known algorithm
    │   ├── InvalidReference                               not an image name
    │   ├── InvalidDocument                                manifest, index, config or TOML not to be read
    │   └── UnsupportedMediaType                           a type that nothing here can handle
    ├── NotFound (LookupError)        NOT_FOUND            no such blob, image, reference, path
    │   ├── NeedsRemoteProvider                            lazy blobs without anybody to bring them
    │   └── NoBlobs                                        a ref without a blob, where none may be created
    ├── AlreadyExists                 ALREADY_EXISTS       for writers this is often success
    ├── PermissionDenied (PermissionError)  PERMISSION_DENIED
    ├── Unauthenticated               UNAUTHENTICATED      no credentials, or they were refused
    ├── ResourceExhausted             RESOURCE_EXHAUSTED   a limit of ours was reached
    │   ├── TooLarge                                       input beyond a documented bound
    │   ├── TooManyRequests                                the registry said 429 until we gave up
    │   └── StorageFull                                    the disk or quota is full
    ├── FailedPrecondition            FAILED_PRECONDITION
    │   ├── DigestMismatch                                 bytes that are not what their name says
    │   ├── SizeMismatch                                   more or fewer bytes than announced
    │   └── Closed                                         the object was closed before the call
    ├── OutOfRange                    OUT_OF_RANGE         an offset past the end
    ├── Unimplemented (NotImplementedError)  UNIMPLEMENTED
    ├── Internal                      INTERNAL             a defect of ours
    ├── StorageError (OSError)        INTERNAL             the file system refused
    ├── RefLocked                     UNAVAILABLE          another writer holds this ingest
    ├── DataLoss                      DATA_LOSS            what was kept is damaged
    │   └── CorruptData                                    a stream that does not decode
    ├── Cancelled                     CANCELLED            somebody gave up on purpose
    ├── DeadlineExceeded (TimeoutError)  DEADLINE_EXCEEDED
    └── RemoteError                   UNKNOWN              a registry, token server or mirror failed
        ├── ConnectionFailed (ConnectionError)             no answer, or it broke off
        ├── ProtocolViolation                              an answer that breaks the rules
        └── LazyUnavailable           FAILED_PRECONDITION  no source can bring a lazy blob now

`code` is the gRPC status name that containerd's services expect. `UNAVAILABLE` means
"locked, try again at once" to containerd, so only `RefLocked` carries it
(containerd `core/content`, where writers are opened in a loop on that code).
"""

from __future__ import annotations

import copy
import errno
from typing import ClassVar, TypeVar

_E = TypeVar("_E", bound=Exception)


class BlobteeError(Exception):
    """Root of the tree. `str()` is one sentence for a person: what happened and, where known, what next."""

    code: ClassVar[str] = "UNKNOWN"


class InvalidArgument(BlobteeError, ValueError):
    code = "INVALID_ARGUMENT"


class InvalidDigest(InvalidArgument):
    pass


class InvalidReference(InvalidArgument):
    pass


class InvalidDocument(InvalidArgument):
    pass


class UnsupportedMediaType(InvalidArgument):
    pass


class NotFound(BlobteeError, LookupError):
    code = "NOT_FOUND"


class NeedsRemoteProvider(NotFound):
    """Lazy blobs that no handler can bring. `digests` names them, base to top."""

    def __init__(self, digests: tuple[str, ...]) -> None:
        super().__init__(f"no local content and no remote provider for {', '.join(digests)}")
        self.digests = digests


class NoBlobs(NotFound):
    pass


class AlreadyExists(BlobteeError):
    code = "ALREADY_EXISTS"


class PermissionDenied(BlobteeError, PermissionError):
    code = "PERMISSION_DENIED"


class Unauthenticated(BlobteeError):
    code = "UNAUTHENTICATED"


class ResourceExhausted(BlobteeError):
    code = "RESOURCE_EXHAUSTED"


class TooLarge(ResourceExhausted):
    pass


class TooManyRequests(ResourceExhausted):
    pass


class StorageFull(ResourceExhausted):
    pass


class FailedPrecondition(BlobteeError):
    code = "FAILED_PRECONDITION"


class DigestMismatch(FailedPrecondition):
    """Bytes that hash to `actual` where `expected` was promised."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what}: digest is {actual}, expected {expected}")
        self.expected = expected
        self.actual = actual


class SizeMismatch(FailedPrecondition):
    """`actual` bytes where `expected` were promised."""

    def __init__(self, what: str, expected: int, actual: int) -> None:
        super().__init__(f"{what}: {actual} bytes, expected {expected}")
        self.expected = expected
        self.actual = actual


class Closed(FailedPrecondition):
    pass


class OutOfRange(BlobteeError):
    code = "OUT_OF_RANGE"


class Unimplemented(BlobteeError, NotImplementedError):
    code = "UNIMPLEMENTED"


class Internal(BlobteeError):
    code = "INTERNAL"


class StorageError(BlobteeError, OSError):
    code = "INTERNAL"


class RefLocked(BlobteeError):
    code = "UNAVAILABLE"


class DataLoss(BlobteeError):
    code = "DATA_LOSS"


class CorruptData(DataLoss):
    pass


class Cancelled(BlobteeError):
    code = "CANCELLED"


class DeadlineExceeded(BlobteeError, TimeoutError):
    code = "DEADLINE_EXCEEDED"


class RemoteError(BlobteeError):
    pass


class ConnectionFailed(RemoteError, ConnectionError):
    pass


class ProtocolViolation(RemoteError):
    pass


class LazyUnavailable(RemoteError):
    """No source can bring a lazy blob. A builder may treat it as a cache miss instead of a failed build."""

    code = "FAILED_PRECONDITION"


def one_more(error: _E) -> _E:
    """Another error like this one, which caused it: threads that raise the same object add to each other's traceback.
    For errors made of their text alone, and those of the system."""
    other = copy.copy(error)
    other.__cause__ = error
    return other


def from_os_error(error: OSError, doing: str) -> BlobteeError:
    """The error of ours for a file system's `error`; `doing` completes the sentence "cannot …".

    The caller raises it `from error`, so that the original stays visible.
    """
    reason = f"cannot {doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{reason}; free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(reason)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(reason)
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return ResourceExhausted(reason)
    return StorageError(reason)
