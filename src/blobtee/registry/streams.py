"""Ranges of a blob as streams that mend themselves: what the tee asks a registry for (`tee.Source`)."""

from __future__ import annotations

from collections.abc import Sequence

from blobtee import tasks
from blobtee.errors import BlobteeError, Cancelled, Closed
from blobtee.oci import Descriptor
from blobtee.registry.bodies import Body, Source
from blobtee.registry.retry import Retry, Transient
from blobtee.registry.settings import Settings

_SCRAP = 1 << 20


class BlobSource:
    """One blob at the hosts of its registry, asked in their order. Thread-safe.

    Errors of its streams: `NotFound`, `Unauthenticated`, `PermissionDenied`, `TooManyRequests`, `SizeMismatch`,
    `ProtocolViolation`, `RemoteError`, and `ConnectionFailed` when nothing came for `Settings.patience` seconds.
    """

    def __init__(self, hosts: Sequence[Source], desc: Descriptor, settings: Settings) -> None:
        self.desc = desc
        self.settings = settings
        self._hosts = list(hosts)
        self._asked: set[Source] = set()
        self._rejected: set[Source] = set()

    def joined(self, others: Sequence[BlobSource]) -> BlobSource:
        """The same blob at the hosts of this one, and then at those of `others`."""
        return BlobSource([host for each in (self, *others) for host in each._hosts], self.desc, self.settings)

    def stream(self, start: int, end: int) -> BlobStream:
        """The bytes [start, end); the whole blob where no host knows ranges. One request, for what is not none of
        it."""
        retry = Retry(self.settings, patient=True)
        while True:
            try:
                return BlobStream(self, self.begin(start, end), end, retry)
            except Transient as failure:
                retry.wait(failure)

    def reject(self) -> bool:
        """Ask no more those hosts that anything came from so far; False when there is no other."""
        self._rejected |= self._asked
        return len(self._rejected) < len(self._hosts)

    def begin(self, start: int, end: int) -> Body:
        """A body from the first host that gives one; hosts that broke a rule come last. `Transient` is worth another
        try."""
        transient: Transient | None = None
        final: BlobteeError | None = None
        for host in self._hosts:
            if host in self._rejected:
                continue
            if (known := host.failure) is not None:
                final = known
                continue
            try:
                body = host.body(start, end)
            except Transient as failure:
                transient = failure
            except (Cancelled, Closed):
                raise
            except BlobteeError as error:
                final = host.failure = error
            else:
                self._asked.add(host)
                return body
        if transient is not None:
            raise transient
        for host in self._hosts:
            host.failure = None  # A later call may find better days, or a sign-in done meanwhile.
        if final is None:
            # Everybody has sent something wrong: whoever asks all the same gets to see it.
            self._rejected.clear()
            return self.begin(start, end)
        raise final


class BlobStream:
    """See `tee.Stream`. A break is resumed at the byte it came to."""

    def __init__(self, source: BlobSource, body: Body, end: int, retry: Retry) -> None:
        self.position = body.position
        # A host that does not know ranges sends everything.
        self.end = end if body.position or not end < source.desc.size else body.end
        self._source = source
        self._body: Body | None = body
        self._retry = retry

    def readinto(self, view: memoryview) -> int:
        while self.position < self.end:
            try:
                n = self._resumed().readinto(view[: self.end - self.position])
            except Transient as failure:
                self.close()
                self._retry.wait(failure)
                continue
            self._retry.progress(n)
            self.position += n
            return n
        return 0

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def _resumed(self) -> Body:
        """The body, at the place that is next; a new one where the last broke off."""
        if self._body is None:
            self._body = self._source.begin(self.position, self.end)
        body = self._body
        while body.position < self.position:
            # It came from the start again, from a host that knows no ranges.
            tasks.check()
            scrap = memoryview(bytearray(min(_SCRAP, self.position - body.position)))
            self._retry.progress(body.readinto(scrap))
        return body
