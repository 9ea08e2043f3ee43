"""A tar cut into gzip members as eStargz wants them: each file's data, and each chunk of it, begins one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from blobtee.core import Sha256
from blobtee.errors import Internal
from blobtee.layers import Entry

_BATCH = 1 << 20
"""Bytes of small members that go to a thread together."""
_MAX_OTHER = 1 << 20
"""Bytes of headers and padding in one member."""
_READ_AHEAD = 1 << 20
"""How far the reader of the tar may be ahead of the entry that it gave."""


class Piece(NamedTuple):
    """A chunk of a file: [position, position + nbytes) of it. It begins member number `member` of its batch."""

    entry: Entry
    member: int
    position: int
    nbytes: int
    whole: Sha256 | None
    """With the last of several chunks: the digest of the whole file."""

    @property
    def last(self) -> bool:
        return self.position + self.nbytes == self.entry.size


@dataclass(slots=True)
class Batch:
    """Members one after the other in `data`; of each, where it starts, and how many bytes of a file it begins with."""

    data: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    payloads: list[int] = field(default_factory=list)
    events: list[Entry | Piece] = field(default_factory=list)
    """What the table of contents has to say, in the tar's order."""


class Cutter:
    """`feed` takes all bytes of the tar in order, `entry` what a reader of the same bytes found, at any time after.

    A member holds one chunk, the padding behind it, and the headers up to the next one's data. `submit` gets the
    batches in order. Holds one batch, and what the reader has read beyond its last entry.
    """

    def __init__(self, chunk_nbytes: int, submit: Callable[[Batch], object]) -> None:
        self._chunk_nbytes = chunk_nbytes
        self._submit = submit
        self._pending: deque[memoryview] = deque()
        self._fed = 0
        self._cut = 0
        self._data_end = 0
        self._chunk_end = 0
        self._whole: Sha256 | None = None
        self._entry: Entry | None = None
        self._batch = Batch()
        self._other = 0

    def feed(self, data: bytes) -> None:
        """The tar goes on with `data`."""
        self._pending.append(memoryview(data))
        self._fed += len(data)
        self._cut_data()
        if self._fed - self._cut > 2 * _READ_AHEAD:
            self._take_other(self._fed - self._cut - _READ_AHEAD)

    def entry(self, entry: Entry, nbytes: int) -> None:
        """The tar has `entry`, whose data lies in `nbytes` bytes from its offset on; 0 when it has none to be cut."""
        if not self._cut <= entry.offset <= self._fed:
            raise Internal(f"the tar's entry at byte {entry.offset} came too late: {self._cut} of {self._fed} are cut")
        self._take_other(entry.offset - self._cut)
        if not nbytes:
            self._batch.events.append(entry)
            return
        self._entry = entry
        self._data_end = entry.offset + nbytes
        self._whole = Sha256() if nbytes > self._chunk_nbytes else None
        self._begin_chunk()
        self._cut_data()

    def finish(self) -> None:
        """All bytes and entries were given. Nothing at all is a member of nothing: no bytes would be no gzip."""
        self._take_other(self._fed - self._cut)
        if not self._fed:
            self._begin_member(0)
        if self._batch.starts or self._batch.events:
            self._send()

    def _cut_data(self) -> None:
        while self._cut < self._data_end and self._pending:
            if self._cut == self._chunk_end:
                self._begin_chunk()
            self._take(min(self._chunk_end, self._fed) - self._cut, self._whole)

    def _begin_chunk(self) -> None:
        assert self._entry is not None
        nbytes = min(self._chunk_nbytes, self._data_end - self._cut)
        self._begin_member(nbytes)
        self._chunk_end = self._cut + nbytes
        batch = self._batch
        whole = self._whole if self._chunk_end == self._data_end else None
        batch.events.append(Piece(self._entry, len(batch.starts) - 1, self._cut - self._entry.offset, nbytes, whole))

    def _begin_member(self, payload: int) -> None:
        if len(self._batch.data) >= _BATCH:
            self._send()
        self._batch.starts.append(len(self._batch.data))
        self._batch.payloads.append(payload)
        self._other = 0

    def _take_other(self, nbytes: int) -> None:
        """Headers, padding, and what is behind the archive's end: into members of any length, as it comes."""
        while nbytes > 0:
            if not self._batch.starts or self._other >= _MAX_OTHER:
                self._begin_member(0)
            n = min(nbytes, _MAX_OTHER - self._other)
            self._take(n, None)
            self._other += n
            nbytes -= n

    def _take(self, nbytes: int, whole: Sha256 | None) -> None:
        self._cut += nbytes
        while nbytes:
            view = self._pending[0]
            if len(view) > nbytes:
                self._pending[0] = view[nbytes:]
                view = view[:nbytes]
            else:
                self._pending.popleft()
            self._batch.data += view
            if whole is not None:
                whole.update(view)
            nbytes -= len(view)

    def _send(self) -> None:
        batch, self._batch = self._batch, Batch()
        self._submit(batch)
