"""What can be tuned about talking to registries. The defaults are meant for everybody."""

from __future__ import annotations

from dataclasses import dataclass

from blobtee.errors import InvalidArgument


@dataclass(frozen=True)
class Settings:
    """Times are seconds, sizes bytes.

    `connect` bounds reaching a host, its name look-up and TLS handshake included. `answer` bounds the wait from the
    end of a request to the end of the answer's headers, `commit` the same after the last byte of an upload. `stall`
    is how long a body may stand still, or bring less than 1 KiB a second, before the connection is given up and the
    rest asked for anew. `document`
    bounds the whole body of a manifest, a list or an error.

    `patience` is how long a body, down or up, is tried again without progress; `attempts` is how often anything
    else is tried. Waits between tries are 1, 2, 4, 4 … seconds with jitter, or the server's Retry-After up to
    `max_retry_after`; `backoff` scales them (tests set it low).

    `downloads` and `uploads` bodies and `documents` other requests run at once for each host
    (`spec/remote.md` section 6).
    """

    connect: float = 30.0
    answer: float = 60.0
    commit: float = 300.0
    stall: float = 30.0
    document: float = 120.0
    patience: float = 60.0
    attempts: int = 4
    backoff: float = 1.0
    max_retry_after: float = 60.0
    downloads: int = 4
    uploads: int = 4
    documents: int = 1
    redirects: int = 5
    takeover: int = 8 << 20
    chunk: int = 16 << 20

    def __post_init__(self) -> None:
        times = (self.connect, self.answer, self.commit, self.stall, self.document)
        counts = (self.attempts, self.downloads, self.uploads, self.documents, self.chunk)
        if min(times) <= 0 or min(counts) < 1 or min(self.patience, self.backoff, self.max_retry_after) < 0:
            raise InvalidArgument("registry settings: times and limits must be positive")
        if self.redirects < 0 or self.takeover < 1:
            raise InvalidArgument("registry settings: redirects must not be negative and takeover at least 1")
