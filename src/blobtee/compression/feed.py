"""What decoders read from: a source with a little room to look ahead."""

from __future__ import annotations

from typing import Protocol

from blobtee.errors import BlobteeError, CorruptData

READ_NBYTES = 1 << 18
"""How many bytes are asked for at a time."""


class Source(Protocol):
    """What is read: any binary file that blocks. Short reads are fine; nothing means the end."""

    def read(self, n: int, /) -> bytes | None: ...

    def close(self) -> None: ...


class Feed:
    """A source that takes bytes back, and whose foreign errors become ours. After an error, bytes may be lost."""

    def __init__(self, raw: Source) -> None:
        self._raw = raw
        self._head = memoryview(b"")

    def peek(self, n: int) -> bytes:
        """The next `n` bytes, which stay there; fewer only at the end."""
        while len(self._head) < n and (more := self._fetch(READ_NBYTES)):
            self._head = memoryview(bytes(self._head) + more if self._head else more)
        return bytes(self._head[:n])

    def read(self, n: int, /) -> bytes | memoryview:
        """Between 1 and `n` bytes; none only at the end."""
        if self._head:
            head, self._head = self._head[:n], self._head[n:]
            return head
        return self._fetch(n)

    def _fetch(self, n: int) -> bytes:
        try:
            data = self._raw.read(n)
        except BlobteeError:
            raise
        except (OSError, EOFError, ValueError) as error:
            raise CorruptData(f"the packed stream cannot be read on: {error}") from error
        if data is None:
            raise CorruptData("a packed stream from a source that does not block")
        return data

    def take(self, n: int) -> bytes:
        """The next `n` bytes; fewer only at the end."""
        parts: list[bytes | memoryview] = []
        while n > 0 and (part := self.read(min(n, READ_NBYTES))):
            parts.append(part)
            n -= len(part)
        if len(parts) == 1 and isinstance(parts[0], bytes):
            return parts[0]
        return b"".join(parts)

    def unread(self, data: bytes) -> None:
        """Put `data` back in front."""
        self._head = memoryview(data + bytes(self._head) if self._head else data)

    def close(self) -> None:
        self._raw.close()
