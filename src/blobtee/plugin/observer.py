"""What the services tell of their work, for whoever counts it."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Called from the threads of the RPCs; must be quick and must not fail."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """An RPC has ended, with gRPC's status name. One that the client cancelled is `CANCELLED`."""

    def sent(self, nbytes: int) -> None:
        """Bytes of a blob have been handed to a reader."""

    def received(self, nbytes: int) -> None:
        """Bytes of a blob have been written."""

    def opened(self, *, was_here: bool) -> None:
        """A blob has been opened for reading: it was in the store, or is a lazy one that had to be brought first."""


class _Silent:
    def rpc(self, method: str, code: str, seconds: float) -> None: ...

    def sent(self, nbytes: int) -> None: ...

    def received(self, nbytes: int) -> None: ...

    def opened(self, *, was_here: bool) -> None: ...


SILENT: Observer = _Silent()
