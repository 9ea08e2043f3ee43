"""Where the bytes of a blob come from: what the tee asks of a registry, without knowing one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from blobtee.content.api import Provider, ReaderAt
from blobtee.errors import ConnectionFailed
from blobtee.oci import Descriptor


class Stream(Protocol):
    """Bytes [position, end) of a blob as they arrive; for one thread, but for `close`, which ends a read under way."""

    position: int
    end: int

    def readinto(self, view: memoryview) -> int:
        """Put what is there into `view` and return how many bytes that was, `position` moved on; 0 only at `end`.

        A break of the connection is mended within. What cannot be mended raises.
        """
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """One blob at whatever hosts have it, for one user: with his session and his credentials. Thread-safe."""

    def stream(self, start: int, end: int) -> Stream:
        """Ask for [start, end), which is not empty. Where nobody can give a part, the stream is the whole blob from 0.

        Errors are those of the room that the source is from; `Cancelled` by `tasks`.
        """
        ...

    def reject(self) -> bool:
        """What came was wrong: do not ask the hosts again that it came from. False when no other is left."""
        ...


@runtime_checkable
class SourceProvider(Protocol):
    """A provider that can also give a blob as a source."""

    def source(self, desc: Descriptor) -> Source: ...


def source_of(provider: Provider, desc: Descriptor) -> Source:
    """The blob at `provider` as a source, whatever it is."""
    return provider.source(desc) if isinstance(provider, SourceProvider) else ReaderSource(provider, desc)


class ReaderSource:
    """The blob at a provider that has readers and nothing else: a store, say."""

    def __init__(self, provider: Provider, desc: Descriptor) -> None:
        self._provider = provider
        self._desc = desc

    def stream(self, start: int, end: int) -> Stream:
        return ReaderStream(self._provider.reader_at(self._desc), start, end)

    def reject(self) -> bool:
        return False


class ReaderStream:
    """A range of a reader, which it owns."""

    def __init__(self, reader: ReaderAt, start: int, end: int) -> None:
        self._reader = reader
        self.position = start
        self.end = end

    def readinto(self, view: memoryview) -> int:
        with view[: self.end - self.position] as part:
            n = self._reader.readinto_at(self.position, part) if part.nbytes else 0
        if not n and self.position < self.end:
            raise ConnectionFailed(f"a source ended at byte {self.position}, before {self.end}")
        self.position += n
        return n

    def close(self) -> None:
        self._reader.close()
