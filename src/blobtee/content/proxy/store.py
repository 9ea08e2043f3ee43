"""`Store` over a socket."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blobtee.content import filters
from blobtee.content.api import Info, ReaderAt, Status, Writer
from blobtee.content.checks import check_total
from blobtee.content.ingests import encode_ref
from blobtee.content.labels import merged
from blobtee.content.proxy.connection import Connection, Methods
from blobtee.content.proxy.messages import info_of, ref_of, ref_text, status_of
from blobtee.content.proxy.reader import ProxyReader
from blobtee.content.proxy.writer import ProxyWriter
from blobtee.errors import BlobteeError, ConnectionFailed, InvalidArgument, NotFound, RefLocked, SizeMismatch
from blobtee.oci import Descriptor, Digest
from blobtee.wire.content import SERVICE, messages
from blobtee.wire.table import common

_METHODS = Methods(
    SERVICE,
    unary={
        "Info": messages.InfoResponse,
        "Update": messages.UpdateResponse,
        "Delete": common.Empty,
        "Status": messages.StatusResponse,
        "ListStatuses": messages.ListStatusesResponse,
        "Abort": common.Empty,
    },
    streamed={"List": messages.ListContentResponse, "Read": messages.ReadContentResponse},
    duplex={"Write": messages.WriteContentResponse},
)


class ProxyStore:
    """A `Store` that a server keeps: `blobtee serve`, or a running containerd. Thread-safe. A context manager.

    Nothing is asked of the server before the first call. One that is not there is `ConnectionFailed`, one that leaves a
    question unanswered for `timeout` seconds `DeadlineExceeded`; the store finds it again when it is back. An error of
    the server's that says no more than its kind comes as that kind (a full disk as `ResourceExhausted`).

    An ingest that a writer of this store holds open is not aborted; one of another client's is, where the server
    allows it. A reader goes on when its blob is deleted, by keeping what is left in a temporary file.

    containerd removes what nothing of its own refers to: name a `lease`, or label the blob as one of its roots.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        namespace: str = "default",
        lease: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        """`address` is the path of the socket, `namespace` and `lease` are containerd's.

        `InvalidArgument`: no path, or a name that cannot be sent.
        """
        path = os.fspath(address).removeprefix("unix://")
        metadata = {"containerd-namespace": namespace} | ({"containerd-lease": lease} if lease else {})
        if not path or "\0" in path or not timeout > 0:
            raise InvalidArgument(f"a content service is at the path of a socket, not at {path!r:.80}")
        for name in metadata.values():
            if not name.isascii() or not name.isprintable():
                raise InvalidArgument(f"no name of a namespace or lease: {name!r:.80}")
        self._connection = Connection(Path(path).absolute(), _METHODS, timeout, metadata)
        self._lock = threading.Lock()
        self._writers: dict[str, ProxyWriter | None] = {}

    # ---- Provider, Manager ------------------------------------------------------------------------------------------

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        info = self.info(desc.digest)
        if desc.size >= 0 and desc.size != info.size:
            raise SizeMismatch(f"blob {info.digest}", desc.size, info.size)
        return ProxyReader(self._connection, info.digest, info.size)

    def info(self, digest: str) -> Info:
        digest = Digest(digest)
        answer = self._connection.ask("Info", messages.InfoRequest(digest=digest), f"find blob {digest}")
        return info_of(answer.info)

    def update(self, digest: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        digest = Digest(digest)
        merged({}, labels)
        if not labels and not replace:
            return self.info(digest)  # an empty mask would replace them all
        paths = ["labels"] if replace else [f"labels.{key}" for key in labels]
        try:
            request = messages.UpdateRequest(
                info=messages.Info(digest=digest, labels={key: value for key, value in labels.items() if value}),
                update_mask=common.FieldMask(paths=paths),
            )
        except ValueError as error:  # surrogates
            raise InvalidArgument(f"cannot label blob {digest}: {error}") from None
        return info_of(self._connection.ask("Update", request, f"label blob {digest}").info)

    def walk(self, *filters_: str) -> Iterator[Info]:
        """See `Manager`; in the order of the server."""
        filters.parse(filters_)
        self._connection.check_open()
        return self._walk(filters_)

    def delete(self, digest: str) -> None:
        info = self.info(digest)  # the service itself does not tell whether it was there
        self._connection.ask("Delete", messages.DeleteContentRequest(digest=info.digest), f"delete {info.digest}")

    # ---- Ingester, IngestManager ------------------------------------------------------------------------------------

    def writer(self, ref: str, *, total: int = 0, expected: str | None = None) -> Writer:
        self._connection.check_open()
        encode_ref(ref)
        check_total(total)
        with self._lock:
            if ref in self._writers:
                raise RefLocked(f"ingest {ref[:200]!r} is being written by this store")
            self._writers[ref] = None
        try:
            writer = ProxyWriter(self._connection, ref, total, expected, lambda: self._forget(ref))
        except BaseException as error:
            self._forget(ref)
            if isinstance(error, ConnectionFailed):
                self._refuse_locked(ref, error)
            if isinstance(error, InvalidArgument) and expected:
                Digest(expected)
            raise
        self._writers[ref] = writer
        return writer

    def status(self, ref: str) -> Status:
        if not ref:
            self._connection.check_open()
            raise NotFound("no ingest without a ref")
        request = messages.StatusRequest(ref=ref_text(ref))
        return _status(self._connection.ask("Status", request, f"find ingest {ref[:200]!r}").status)

    def statuses(self, *filters_: str) -> list[Status]:
        matches = filters.parse(filters_)
        # All of them: the server knows a ref that is no text by another name.
        answer = self._connection.ask("ListStatuses", messages.ListStatusesRequest(), "list ingests")
        found = [_status(status) for status in answer.statuses]
        return [status for status in found if matches(filters.ingest_fields(status.ref))]

    def abort(self, ref: str) -> None:
        """See `IngestManager`."""
        self._connection.check_open()
        if not ref:
            return
        if ref in self._writers:
            raise RefLocked(f"ingest {ref[:200]!r} is being written")
        try:
            self._connection.ask("Abort", messages.AbortRequest(ref=ref_text(ref)), f"abort ingest {ref[:200]!r}")
        except NotFound:
            pass
        except ConnectionFailed as error:
            self._refuse_locked(ref, error)
            raise

    # ---- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Writers that are open are closed, their ingests can be resumed; calls that run are cancelled."""
        for writer in list(self._writers.values()):
            if writer is not None:
                writer.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _walk(self, filters_: tuple[str, ...]) -> Iterator[Info]:
        call = self._connection.stream("List", messages.ListContentRequest(filters=filters_))
        try:
            while (page := self._connection.next(call, "list blobs")) is not None:
                for info in page.info:
                    yield info_of(info)
        finally:
            call.cancel()

    def _refuse_locked(self, ref: str, error: ConnectionFailed) -> None:
        """`RefLocked`, when the server that seemed not to answer does, and knows of the ingest."""
        try:
            self.status(ref)
        except BlobteeError:
            return
        raise RefLocked(f"ingest {ref[:200]!r} is being written by somebody else") from error

    def _forget(self, ref: str) -> None:
        with self._lock:
            self._writers.pop(ref, None)


def _status(message: Any) -> Status:
    status = status_of(message)
    return dataclasses.replace(status, ref=ref_of(status.ref))
