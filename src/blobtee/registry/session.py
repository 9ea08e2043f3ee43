"""Requests to one host of one registry: signed, redirected, limited, and tried again.

Secrets (Authorization, the headers of hosts.toml) go to the host itself and to no other, whoever redirects there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from blobtee.errors import ConnectionFailed, InvalidArgument, ProtocolViolation
from blobtee.oci.reference import DOCKER_HUB
from blobtee.registry.auth import Credentials, Signer
from blobtee.registry.auth.signer import Scopes
from blobtee.registry.hosts import HUB_SERVER, Host
from blobtee.registry.limits import Kind, Limits, Place
from blobtee.registry.problems import problem
from blobtee.registry.redirects import Redirects
from blobtee.registry.retry import Retry, Transient
from blobtee.registry.settings import Settings
from blobtee.registry.transport import Answer, Tls, Transport, Url

_log = logging.getLogger("blobtee.registry")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Pieces = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Scope:
    """What a request does: `actions` on `repository`, and reading of other repositories (for a mount)."""

    repository: str
    actions: str = "pull"
    also_pull: tuple[str, ...] = ()

    @property
    def wanted(self) -> Scopes:
        own = f"repository:{self.repository}:{self.actions}"
        return tuple(sorted({own, *(f"repository:{name}:pull" for name in self.also_pull)}))


class Reply:
    """An answer that holds its place among the host's requests until it is closed."""

    def __init__(self, answer: Answer, place: Place, redirected: bool) -> None:
        self._answer = answer
        self._place = place
        self.status = answer.status
        self.url = answer.url
        self.length = answer.length
        self.redirected = redirected
        self.header = answer.header
        self.headers = answer.headers

    def readinto(self, view: memoryview) -> int:
        """See `Answer.readinto`."""
        self._place.touch()
        try:
            return self._answer.readinto(view)
        finally:
            self._place.rest()

    def read(self, limit: int) -> bytes:
        """See `Answer.read`."""
        self._place.touch()
        try:
            return self._answer.read(limit)
        finally:
            self._place.rest()

    def close(self) -> None:
        self._answer.close()
        self._place.release()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """One host, as many requests as one likes. Thread-safe."""

    def __init__(
        self, registry: str, host: Host, credentials: Credentials, transport: Transport, settings: Settings
    ) -> None:
        self.registry = registry
        self.host = host
        self.name = host.name
        self.settings = settings
        self.redirects = Redirects()
        self._transport = transport
        self._limits = Limits(settings)
        self._answered = False
        known_as = DOCKER_HUB if host.name == HUB_SERVER else registry if not host.namespace else host.name
        self._signer = Signer(known_as, host.base, credentials, self._exchange_for_token, settings)

    def ask(
        self,
        method: str,
        url: Url,
        scope: Scope,
        what: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        hasty: bool = False,
    ) -> Reply:
        """A small request, tried again when that may help. The caller closes the reply, whose status is in `expect`.

        Any other status is an error that says "cannot `what`". `hasty` means one try: there is another host to ask.
        """
        retry = Retry(self.settings)
        while True:
            try:
                return self.once(method, url, scope, what, expect=expect, headers=headers, body=body)
            except Transient as failure:
                if hasty:
                    raise failure.error from failure
                retry.wait(failure)

    def fetch(
        self,
        url: Url,
        scope: Scope,
        what: str,
        *,
        limit: int,
        headers: Mapping[str, str] | None = None,
        hasty: bool = False,
    ) -> tuple[Reply, bytes]:
        """GET a document of at most `limit` bytes: the closed reply, for its headers, and the body."""
        retry = Retry(self.settings)
        while True:
            try:
                with self.once("GET", url, scope, what, expect=(200,), headers=headers) as reply:
                    refuse_encoding(reply)
                    try:
                        body = reply.read(limit)
                    except ConnectionFailed as error:
                        raise Transient(error) from error
                    if reply.length is not None and reply.length != len(body):
                        raise Transient(ConnectionFailed(f"{reply.url.netloc} broke off"))
                    return reply, body
            except Transient as failure:
                if hasty:
                    raise failure.error from failure
                retry.wait(failure)

    def once(
        self,
        method: str,
        url: Url,
        scope: Scope,
        what: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """One try of `ask`; raises `Transient` where another may help."""
        reply = self.open(method, url, scope, Kind.DOCUMENT, headers=headers, body=body)
        if reply.status in expect:
            return reply
        raise problem(reply, what, self.settings)

    def open(
        self,
        method: str,
        url: Url,
        scope: Scope,
        kind: Kind,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Pieces | None = None,
        answer: float | None = None,
    ) -> Reply:
        """Send one request, signed when it goes to this host, again after a 401 and never else; any status comes back.

        `Transient` for a host that cannot be reached or breaks off. A `body` of pieces needs a Content-Length in
        `headers`, and is asked for its pieces anew when it has to be sent twice.
        """
        place = self._limits.acquire(kind)
        try:
            reply = self._signed(method, url, scope, headers or {}, body, answer, place)
        except ConnectionFailed as error:
            place.release()
            raise Transient(error, first_contact=not self._answered) from error
        except BaseException:
            place.release()
            raise
        if reply.status in (429, 503):
            self._limits.overloaded()
        place.rest()
        return reply

    def _signed(
        self,
        method: str,
        url: Url,
        scope: Scope,
        headers: Mapping[str, str],
        body: bytes | Pieces | None,
        answer_time: float | None,
        place: Place,
    ) -> Reply:
        ours = url.origin == self.host.base.origin
        for last in (False, True):
            secret = dict(self.host.headers) if ours else {}
            authorization = self._signer.header(scope.wanted, scope.repository) if ours else None
            if authorization is not None:
                secret["Authorization"] = authorization
            answer = self._exchange(method, url, headers, secret, body, answer_time)
            self._answered = True
            if answer.status != 401 or not ours or answer.url.origin != url.origin:
                break
            if last and not (authorization or "").startswith("Basic "):
                break
            answer.close()
            self._signer.refused(answer.headers("www-authenticate"), authorization, scope.wanted)
        return Reply(answer, place, answer.url != url)

    def _exchange_for_token(
        self, method: str, url: Url, headers: Mapping[str, str], secret: Mapping[str, str], body: bytes | None
    ) -> Answer:
        try:
            return self._exchange(method, url, headers, secret, body, None)
        except ConnectionFailed as error:
            raise Transient(ConnectionFailed(f"signing in to {self.registry}: {error}")) from error

    def _exchange(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        secret: Mapping[str, str],
        body: bytes | Pieces | None,
        answer_time: float | None,
    ) -> Answer:
        first = url
        for _ in range(self.settings.redirects + 1):
            same = url.origin == first.origin
            tls = self.host.tls if url.origin == self.host.base.origin else self.host.tls.for_other_host()
            answer = self._send(method, url, {**headers, **(secret if same else {})}, body, tls, answer_time)
            location = answer.header("location") if answer.status in _REDIRECTS else None
            if location is None:
                return answer
            answer.close()
            target = follow(url, location)
            if method not in ("GET", "HEAD") and (callable(body) or target.origin != first.origin):
                raise ProtocolViolation(f"{url.netloc} redirects a {method}, which is not followed")
            url = target
        raise ProtocolViolation(f"{first.netloc} redirected more than {self.settings.redirects} times")

    def _send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: bytes | Pieces | None,
        tls: Tls,
        answer_time: float | None,
    ) -> Answer:
        started = time.monotonic()
        content = body() if callable(body) else body
        try:
            answer = self._transport.send(method, url, headers, content, tls=tls, answer=answer_time)
        except Exception as error:
            _log.debug("%s %s failed: %s", method, url, error)
            raise
        _log.debug("%s %s -> %d in %.0f ms", method, url, answer.status, (time.monotonic() - started) * 1000)
        return answer


def follow(base: Url, location: str) -> Url:
    """Where a Location header leads; from https to http is nowhere."""
    try:
        target = Url.parse(location, base)
    except ProtocolViolation as error:
        raise ProtocolViolation(f"{base.netloc} points to {error}") from None
    if base.scheme == "https" and target.scheme != "https":
        raise ProtocolViolation(f"{base.netloc} points to {target.netloc} without TLS, which is not followed")
    return target


def refuse_encoding(reply: Reply) -> None:
    """Bytes that were encoded on the way are not the bytes that a digest names."""
    encoding = reply.header("content-encoding")
    if encoding and encoding.lower() != "identity":
        raise ProtocolViolation(f"{reply.url.netloc} sent a body with Content-Encoding {encoding[:40]!r}")


def identifier_in_url(identifier: str) -> str:
    """`identifier` (tag or digest) as a part of a path; `InvalidArgument` when it could be more than that."""
    plain = all(c.isascii() and (c.isalnum() or c in "._-:") for c in identifier)
    if not identifier or not plain or not identifier.strip("."):
        raise InvalidArgument(f"neither a tag nor a digest: {identifier[:140]!r}")
    return identifier
