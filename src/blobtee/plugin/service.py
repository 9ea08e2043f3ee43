"""`containerd.services.content.v1.Content` over any store (`spec/content.md` section 2)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from typing import Any

from blobtee.content.api import ReaderAt, Store
from blobtee.content.files import FileReader
from blobtee.content.proxy.messages import info_message, status_message
from blobtee.core import H2Call
from blobtee.errors import InvalidArgument, NotFound, OutOfRange
from blobtee.oci import Descriptor, Digest
from blobtee.plugin import calls
from blobtee.plugin.observer import SILENT, Observer
from blobtee.plugin.remembered import NOTHING, Remembering
from blobtee.plugin.writing import Writing
from blobtee.wire.content import MAX_DATA, SERVICE, messages
from blobtee.wire.table import common

LIST_PAGE = 100
LIST_NBYTES = 2 << 20
"""Infos in one message of an answer to `List`, and bytes, if there is more than one: containerd takes 16 MiB, and other
clients 4."""

FIRST_DATA = 64 << 10
"""Bytes in the first message of an answer to `Read` of a blob that is not a file."""

_FRAME_NBYTES = 6  # of a message in another: its field and its length
_LABELS = "labels."
_EMPTY: bytes = common.Empty().SerializeToString()


class ContentService(calls.Service):
    """Serves `store`, which stays the caller's. Give it to `Serving.add`.

    The server needs a thread for each open stream: containerd opens writers inside its database transaction, and waits
    for ever when one of them is not answered. Of `store` only reading and listing may start threads: those of
    a light handler would stay on its processor for ever.
    """

    def __init__(
        self,
        store: Store,
        observer: Observer = SILENT,
        is_here: Callable[[str], bool] | None = None,
        remembering: Remembering = NOTHING,
    ) -> None:
        """`is_here` says whether the bytes of a blob are in `store`, where its `info` knows of others too;
        `remembering` keeps what may be answered again."""
        self._store = store
        self._remembering = remembering
        self._observer = observer
        self._writing = Writing(store, observer, is_here)
        one = functools.partial(self._handler, calls.unary)
        many = functools.partial(self._handler, calls.stream)
        super().__init__(
            SERVICE,
            {
                "Info": one("Info", messages.InfoRequest, self._info),
                "Update": one("Update", messages.UpdateRequest, self._update),
                "List": many("List", messages.ListContentRequest, self._list),
                "Delete": one("Delete", messages.DeleteContentRequest, self._delete),
                "Read": many("Read", messages.ReadContentRequest, self._read),
                "Status": one("Status", messages.StatusRequest, self._status),
                "ListStatuses": one("ListStatuses", messages.ListStatusesRequest, self._list_statuses),
                "Write": calls.duplex("Write", observer, messages.WriteContentRequest, self._write),
                "Abort": one("Abort", messages.AbortRequest, self._abort),
            },
            # What reads or lists works for long by itself.
            light=("Info", "Update", "Delete", "Status", "Write", "Abort"),
        )

    def _handler(self, form: Any, method: str, request: Any, work: Any) -> calls.Handler:
        handler: calls.Handler = form(method, self._observer, request, work)
        return handler

    def _info(self, request: Any, call: H2Call) -> bytes:
        digest = Digest(request.digest)
        sight = self._remembering.look(call.place, digest)
        answer: bytes = messages.InfoResponse(info=info_message(self._store.info(digest))).SerializeToString()
        sight.keep_info(answer)
        return answer

    def _update(self, request: Any, _: H2Call) -> Any:
        if not request.HasField("info"):
            raise InvalidArgument("an update needs the info of a blob")
        given = dict(request.info.labels)
        changes: dict[str, str | None] = {}
        paths = list(request.update_mask.paths)
        replace = not paths
        for path in paths:
            if path == "labels":
                replace = True
            elif path.startswith(_LABELS) and path != _LABELS:
                changes[path.removeprefix(_LABELS)] = given.get(path.removeprefix(_LABELS))
            else:
                raise InvalidArgument(f"cannot update {path[:200]!r} of a blob, only its labels")
        info = self._store.update(Digest(request.info.digest), given if replace else changes, replace=replace)
        return messages.UpdateResponse(info=info_message(info))

    def _list(self, request: Any, _: H2Call) -> Generator[Any, None, None]:
        page: list[Any] = []
        nbytes = 0
        for info in self._store.walk(*request.filters):
            message = info_message(info)
            more = message.ByteSize() + _FRAME_NBYTES
            if page and (len(page) == LIST_PAGE or nbytes + more > LIST_NBYTES):
                yield messages.ListContentResponse(info=page)
                page, nbytes = [], 0
            page.append(message)
            nbytes += more
        if page:
            yield messages.ListContentResponse(info=page)

    def _delete(self, request: Any, call: H2Call) -> bytes:
        digest = Digest(request.digest)
        with suppress(NotFound):  # what containerd wants is that it is not there
            self._store.delete(digest)
        self._remembering.forget(call.place, digest)
        return _EMPTY

    def _open(self, digest: Digest, call: H2Call) -> ReaderAt:
        with calls.ending_with(call):  # a lazy blob may take its time
            return self._store.reader_at(Descriptor("", digest, -1))

    def _read(self, request: Any, call: H2Call) -> Generator[Any, None, None]:
        digest = Digest(request.digest)
        sight = self._remembering.look(call.place, digest)
        with self._open(digest, call) as reader:
            sight.keep_reader(reader)
            begin = max(request.offset, 0)
            if begin > reader.size:
                raise OutOfRange(f"offset {begin} is past the end of blob {digest} of {reader.size} bytes")
            end = min(begin + request.size, reader.size) if request.size > 0 else reader.size
            at = begin
            # What may have to be fetched is given up with its client; closing the reader is not.
            with nullcontext() if isinstance(reader, FileReader) else calls.ending_with(call):
                for most in _message_nbytes(reader):
                    if at == end:
                        break
                    nbytes = min(most, end - at)
                    self._observer.sent(nbytes)
                    yield calls.Part(_read_head(at - begin, nbytes), reader, at, nbytes, at + nbytes == end)
                    at += nbytes

    def _status(self, request: Any, _: H2Call) -> Any:
        return messages.StatusResponse(status=status_message(self._store.status(request.ref)))

    def _list_statuses(self, request: Any, _: H2Call) -> Any:
        statuses = self._store.statuses(*request.filters)
        return messages.ListStatusesResponse(statuses=[status_message(status) for status in statuses])

    def _write(self, requests: Iterator[Any], call: H2Call) -> Generator[Any, None, None]:
        return self._writing.write(requests, call)

    def _abort(self, request: Any, _: H2Call) -> bytes:
        self._writing.abort(request.ref)
        return _EMPTY


def _message_nbytes(reader: ReaderAt) -> Iterator[int]:
    """Bytes of one message after another. What may have to be fetched begins with little: a client may ask for a blob
    to hold it, and then take no more than flow control gives him."""
    nbytes = MAX_DATA if isinstance(reader, FileReader) else FIRST_DATA
    while True:
        yield nbytes
        nbytes = min(2 * nbytes, MAX_DATA)


def _read_head(offset: int, nbytes: int) -> bytes:
    """What comes before `nbytes` of data in a `ReadContentResponse`. By hand, since a message class would copy the data
    through Python."""
    head = bytearray()
    if offset:
        head.append(0x08)  # field 1, a number
        _append_varint(head, offset)
    head.append(0x12)  # field 2, bytes
    _append_varint(head, nbytes)
    return bytes(head)


def _append_varint(to: bytearray, number: int) -> None:
    while number > 0x7F:
        to.append(number & 0x7F | 0x80)
        number >>= 7
    to.append(number)
