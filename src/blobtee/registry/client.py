"""`Registry` and `Repository`: what the rest of the house sees of registries."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from blobtee.content.api import Provider, ReaderAt
from blobtee.errors import (
    BlobteeError,
    Cancelled,
    Closed,
    InvalidArgument,
    NotFound,
    ProtocolViolation,
    StorageError,
)
from blobtee.oci import Descriptor, Digest, Index, Manifest, Reference, mediatypes, parse_document
from blobtee.registry.auth import Credentials, FileCredentials
from blobtee.registry.bodies import Source
from blobtee.registry.documents import DocumentPusher, Documents
from blobtee.registry.fetcher import BlobReader, DocumentReader
from blobtee.registry.hosts import Host, Hosts
from blobtee.registry.proxies import Proxies
from blobtee.registry.pusher import BlobPush, Pushed, stat
from blobtee.registry.retry import Transient
from blobtee.registry.session import Scope, Session
from blobtee.registry.settings import Settings
from blobtee.registry.streams import BlobSource
from blobtee.registry.transport import Transport

T = TypeVar("T")
_log = logging.getLogger("blobtee.registry")


class Registry:
    """The client for all registries: connections, sign-ins and limits, shared by its repositories. Thread-safe.

    `hosts` default to containerd's own folder, `credentials` to the files of docker and podman. HTTP(S)_PROXY,
    NO_PROXY and SSL_CERT_FILE are read from the environment when the registry is made.
    """

    def __init__(
        self,
        *,
        hosts: Hosts | None = None,
        credentials: Credentials | None = None,
        settings: Settings | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        variables = dict(os.environ if environ is None else environ)
        self.settings = settings or Settings()
        self._environ = variables
        self._hosts = hosts or Hosts()
        self._credentials: Credentials = credentials or FileCredentials(variables)
        self._transport = Transport(self.settings, Proxies.from_environment(variables), variables)
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, Host], Session] = {}
        self._closed = False

    def with_settings(self, settings: Settings) -> Registry:
        """A client of its own, with the same hosts and credentials: what one waits for does not hold up the other."""
        return Registry(hosts=self._hosts, credentials=self._credentials, settings=settings, environ=self._environ)

    def repository(self, reference: Reference | str) -> Repository:
        """The repository that `reference` names; `InvalidReference`. Nothing is asked of the registry yet."""
        parsed = Reference.parse(reference) if isinstance(reference, str) else reference
        return Repository(self, parsed)

    def close(self) -> None:
        """Close all connections. Readers that are still open fail with `Closed`."""
        with self._lock:
            self._closed = True
            self._sessions.clear()
        self._transport.close()

    def sessions(self, registry: str, capability: str) -> list[Session]:
        """The hosts of `registry` that offer `capability`, in the order to try them; never empty."""
        hosts = self._hosts.find(registry, capability)
        with self._lock:
            if self._closed:
                raise Closed("the registry client is closed")
            return [self._session(registry, host) for host in hosts]

    def _session(self, registry: str, host: Host) -> Session:
        session = self._sessions.get((registry, host))
        if session is None:
            session = Session(registry, host, self._credentials, self._transport, self.settings)
            self._sessions[registry, host] = session
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Repository:
    """One repository of one registry: a `Provider` of its blobs, and the place to push to. Thread-safe.

    Mirrors of `hosts.toml` are asked first, in order; whatever goes wrong there, the next host is tried, and the last
    one's error is raised. Every method may raise `ConnectionFailed`, `Unauthenticated`, `PermissionDenied`,
    `TooManyRequests`, `ProtocolViolation`, `RemoteError` and `Cancelled` beside what it documents.
    """

    def __init__(self, registry: Registry, reference: Reference) -> None:
        self._registry = registry
        self.reference = reference

    def __repr__(self) -> str:
        return f"Repository({str(self.reference)!r})"

    def resolve(self, identifier: str | None = None) -> Descriptor:
        """The descriptor (type, digest, size) of a tag or digest, by default the reference's own. `NotFound`."""
        wanted = _identifier(identifier, self.reference)
        return self._try("resolve", lambda session, hasty: self._documents(session, hasty).resolve(wanted))

    def resolved(self, identifier: str | None = None) -> Manifest | Index:
        """`resolve` and `document` in one request: for who has nothing of it yet. Asks the hosts that `resolve` asks,
        and raises what the two raise."""
        wanted = _identifier(identifier, self.reference)
        return self._try("resolve", lambda session, hasty: self._documents(session, hasty).get(wanted))

    def document(self, wanted: Descriptor | str | None = None) -> Manifest | Index:
        """A manifest or index, its bytes checked against the digest (and a descriptor's size). `NotFound`.

        `DigestMismatch`, `SizeMismatch`, `TooLarge` (beyond 8 MiB), `InvalidDocument`, `UnsupportedMediaType`.
        """
        if isinstance(wanted, Descriptor):
            digest, size, media_type = str(wanted.digest), wanted.size, _known(wanted.media_type)
        else:
            digest, size, media_type = _identifier(wanted, self.reference), None, ""
        return self._try("pull", lambda session, hasty: self._documents(session, hasty).get(digest, size, media_type))

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        """Open a blob, or a manifest or index when the media type says that it is one (that is fetched at once).

        For a blob nothing is asked of the registry before the first read; see `BlobReader`.
        """
        if _known(desc.media_type):
            return DocumentReader(self.document(desc).raw)
        return BlobReader(self.source(desc))

    def source(self, desc: Descriptor) -> BlobSource:
        """The blob as streams of ranges, for who keeps and checks what comes. Nothing is asked of the registry yet."""
        sessions = self._registry.sessions(self.reference.host, "pull")
        hosts = [Source(session, self.reference.repository, desc) for session in sessions]
        return BlobSource(hosts, desc, self._registry.settings)

    def stat(self, digest: str) -> int | None:
        """Size in bytes of a blob, asked by HEAD; None when the registry does not have it. `DigestMismatch`."""
        checked = Digest(digest)

        def look(session: Session, hasty: bool) -> int:
            size = stat(session, self.reference.repository, checked, Scope(self.reference.repository), hasty=hasty)
            if size is None:
                raise NotFound(f"{session.name} does not have {self.reference.name}@{checked}")
            if size < 0:
                raise ProtocolViolation(f"{session.name} has {self.reference.name}@{checked} but does not say its size")
            return size

        try:
            return self._try("pull", look)
        except NotFound:  # of the last host: what a mirror does not have, the next one may
            return None

    def tags(self) -> Iterator[str]:
        """All tags, in the registry's order, fetched page by page as they are consumed. `NotFound`."""
        session = self._registry.sessions(self.reference.host, "resolve")[-1]
        return self._documents(session, False).tags()

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Manifests whose subject is `digest`, of `artifact_type` only if given; empty when there are none."""
        checked = Digest(digest)
        return self._try(
            "resolve", lambda session, hasty: self._documents(session, hasty).referrers(checked, artifact_type)
        )

    def push(self, desc: Descriptor, provider: Provider, *, mount_from: Sequence[str] = ()) -> Pushed:
        """Have the blob in this repository: found there, mounted from one of `mount_from` (repositories of the same
        registry), or uploaded from `provider`, which is asked for bytes in this last case only.

        `SizeMismatch` and what the provider raises; `InvalidArgument` when no host may be pushed to.
        """
        session = self._registry.sessions(self.reference.host, "push")[0]
        try:
            return BlobPush(session, self.reference.repository, desc, provider).run(mount_from)
        except Transient as failure:
            raise failure.error from failure

    def push_document(
        self, document: Manifest | Index | bytes, tag: str | None = None, *, media_type: str = ""
    ) -> Descriptor:
        """Store a manifest or index, its bytes as they are, under its digest and, if given, `tag`; its descriptor.

        `media_type` is needed for raw bytes that do not state their own. All that it refers to must be there already.
        """
        if isinstance(document, bytes):
            document = parse_document(document, media_type)
        session = self._registry.sessions(self.reference.host, "push")[0]
        return DocumentPusher(session, self.reference.repository).push(document.raw, document.media_type, tag)

    def _documents(self, session: Session, hasty: bool) -> Documents:
        return Documents(session, self.reference.repository, hasty=hasty)

    def _try(self, capability: str, work: Callable[[Session, bool], T]) -> T:
        """Do `work` with one host after the other until one succeeds."""
        sessions = self._registry.sessions(self.reference.host, capability)
        for session in sessions[:-1]:
            try:
                return work(session, True)
            except (Cancelled, Closed, StorageError):
                raise
            except BlobteeError as error:
                _log.debug("%s: %s; trying the next host", session.name, error)
        return work(sessions[-1], False)


def _identifier(identifier: str | None, reference: Reference) -> str:
    text = reference.identifier if identifier is None else identifier
    if not text:
        raise InvalidArgument(f"{reference} has neither tag nor digest")
    return str(Digest(text)) if ":" in text else text


def _known(media_type: str) -> str:
    return media_type if media_type in mediatypes.INDEXES | mediatypes.MANIFESTS else ""
