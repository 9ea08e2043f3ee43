"""Who brings a lazy blob: one handler for each digest, and the session it works for."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from blobtee.content.api import Provider
from blobtee.oci import Descriptor


@dataclass(frozen=True)
class Handler:
    """The means to fetch one blob (`spec/remote.md` section 2).

    `provider(session)` gives the source of the bytes; `session` is whatever the caller of the fetch works under, or
    None. When the session is what is wrong, it raises `Unauthenticated`, `PermissionDenied`, `Closed` or
    `LazyUnavailable`: somebody else who waits for the same blob then tries with a session of his own.

    `progress(desc)` is entered around the fetch and left with its real outcome, an exception or none.

    `ref` is the origin: the image reference the blob is known from, as a person writes it; "" when there is none.
    """

    provider: Callable[[object], Provider]
    progress: Callable[[Descriptor], AbstractContextManager[object]] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    snapshot_labels: Mapping[str, str] = field(default_factory=dict)
    ref: str = ""


Handlers = Mapping[str, Handler]
"""Handlers by digest."""


@dataclass(frozen=True)
class Means:
    """What a caller has to bring lazy blobs: handlers by digest, and the session that it works under."""

    handlers: Handlers
    session: object = None


_session: contextvars.ContextVar[object] = contextvars.ContextVar("blobtee_session", default=None)


def current_session() -> object:
    """The session of the running work; None outside any."""
    return _session.get()


@contextmanager
def using_session(session: object) -> Iterator[None]:
    """Do the block's work under `session`. Remotes made in it keep it."""
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)
