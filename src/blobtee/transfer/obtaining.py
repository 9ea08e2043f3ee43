"""Whether registries still have what is to go: asked by HEAD, just before it goes; where that is refused, by reading
the first byte, as some sign their links for reading alone.

A registry that is away, or asks for fewer requests, is left alone for a while that doubles each time; so is one that
failed some times in a row. Blobs that it failed at are asked for ever more seldom: those that a registry chokes on must
not keep the others, though they are the longest unused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    ConnectionFailed,
    DigestMismatch,
    InvalidReference,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    TooManyRequests,
    Unauthenticated,
)
from blobtee.oci import Descriptor, Digest, Reference
from blobtee.registry import Registry
from blobtee.registry.settings import Settings

HASTY = Settings(connect=5.0, answer=10.0, stall=10.0, document=10.0, patience=0.0, attempts=1)
"""For a client that asks only this: a registry that does not answer must not hold up making room."""

PRESENT_SECONDS = 60.0
"""How long it is believed that a blob is there."""

REFUSED_SECONDS = 600.0
"""How long it is believed that it is not, or not to be had; at first, where the registry failed."""

LONGEST_REFUSED_SECONDS = 24 * 3600.0

PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0
LONGEST_PAUSE_OF_FAILING_SECONDS = 300.0
_PATIENCE = 3
"""Failures of a registry in a row after which it is left alone; of its being away, one."""
_MOST_ANSWERS = 10_000
_FINAL = (
    Cancelled,
    Closed,
    ConnectionFailed,
    DigestMismatch,
    ProtocolViolation,
    TooManyRequests,
    Unauthenticated,
)
"""What another way to ask would not mend."""

_Question = tuple[str, str, int]
"""Repository, digest and size; without these two it is about all of the repository."""

Told = Callable[[str, str], None]
"""Gets the registry that was asked, and what came of it: `present`, `missing`, `refused` or `failed`."""


@dataclass(frozen=True)
class _Answer:
    """Empty when the blob is there, else why it counts as not. `failed`: for how long that is believed of a failure."""

    refusal: str
    until: float
    failed: float = 0.0


class _Host:
    """What a registry did of late."""

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.pause = 0.0
        self.until = 0.0
        self.reason = ""


class Obtaining:
    """Asks each repository for a blob, and keeps the answers for a while. For one thread."""

    def __init__(
        self, registry: Registry, *, told: Told = lambda host, answer: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`registry` stays the caller's; its settings bound how long an answer may take."""
        self._registry = registry
        self._told = told
        self._clock = clock
        self._answers: dict[_Question, _Answer] = {}
        self._hosts: dict[str, _Host] = {}

    @property
    def failing(self) -> Mapping[str, str]:
        """The registries that gave no answer of use when they were asked last, and why."""
        return {name: host.reason for name, host in self._hosts.items() if host.reason}

    def refusal(self, digest: Digest, size: int, wanted: Collection[frozenset[str]]) -> str:
        """Why the blob is not to be had, in a sentence; empty when one repository of each of the sets has it, of this
        size. `Cancelled`, `Closed`."""
        for names in sorted(wanted, key=sorted):
            refusals = []
            for name in sorted(names):
                refusal = self._ask(digest, size, name)
                if not refusal:
                    break
                refusals.append(refusal)
            else:
                return f"blob {digest} stays: {'; '.join(refusals) or 'no registry is known to have it'}"
        return ""

    def _ask(self, digest: Digest, size: int, name: str) -> str:
        now = self._clock()
        for question in ((name, digest, size), (name, "", 0)):
            known = self._answers.get(question)
            if known is not None and now < known.until:
                return known.refusal
        try:
            repository = Reference.parse(name)
        except InvalidReference as error:
            return str(error)
        host = self._hosts.setdefault(repository.host, _Host())
        if now < host.until:
            return host.reason
        return self._look(digest, size, repository, host)

    def _look(self, digest: Digest, size: int, repository: Reference, host: _Host) -> str:
        question = (repository.name, digest, size)
        try:
            found = self._found(digest, size, repository)
        except (Cancelled, Closed):
            raise
        except (Unauthenticated, PermissionDenied) as error:
            self._answered(host)
            self._told(repository.host, "refused")
            return self._keep((repository.name, "", 0), str(error), REFUSED_SECONDS)
        except BlobteeError as error:
            away = isinstance(error, (ConnectionFailed, TooManyRequests))
            self._failed(host, str(error), away)
            self._told(repository.host, "failed")
            if away:
                return self._keep(question, str(error), max(REFUSED_SECONDS, 2 * host.pause))
            before = self._answers.get(question)
            seconds = 2 * before.failed if before is not None and before.failed else REFUSED_SECONDS
            return self._keep(question, str(error), min(seconds, LONGEST_REFUSED_SECONDS), failed=True)
        self._answered(host)
        self._told(repository.host, "missing" if found is None else "present")
        if found is None:
            return self._keep(question, f"{repository.name} does not have it any more", REFUSED_SECONDS)
        if found != size:
            refusal = f"{repository.name} has {found} bytes of that name, not {size}"
            return self._keep(question, refusal, REFUSED_SECONDS)
        return self._keep(question, "", PRESENT_SECONDS)

    def _found(self, digest: Digest, size: int, repository: Reference) -> int | None:
        asked = self._registry.repository(repository)
        try:
            return asked.stat(digest)
        except _FINAL:
            raise
        except BlobteeError as refused:
            try:
                asked.source(Descriptor("", digest, size)).stream(0, 1).close()
            except (Cancelled, Closed):
                raise
            except NotFound:
                return None
            except BlobteeError:
                raise refused from None
            return size

    def _keep(self, question: _Question, refusal: str, seconds: float, *, failed: bool = False) -> str:
        self._answers.pop(question, None)
        self._answers[question] = _Answer(refusal, self._clock() + seconds, seconds if failed else 0.0)
        if len(self._answers) > _MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return refusal

    @staticmethod
    def _answered(host: _Host) -> None:
        host.failures, host.pause, host.reason = 0, 0.0, ""

    def _failed(self, host: _Host, reason: str, away: bool) -> None:
        host.failures += 1
        host.reason = reason
        if away or host.failures >= _PATIENCE:
            longest = LONGEST_PAUSE_SECONDS if away else LONGEST_PAUSE_OF_FAILING_SECONDS
            host.pause = min(longest, 2 * host.pause or PAUSE_SECONDS)
            host.until = self._clock() + host.pause
            host.failures = 0
