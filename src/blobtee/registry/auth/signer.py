"""The Authorization header for one host: none, basic, or a bearer token bought from a token server.

The flow is that of the distribution project's token specification: the registry's 401 names the token server, which
takes our credentials (GET with basic, or an OAuth 2 refresh grant for an identity token) and gives a short-lived token.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from blobtee.errors import BlobteeError, PermissionDenied, ProtocolViolation, RemoteError, TooLarge, Unauthenticated
from blobtee.registry.auth.credentials import Credential, Credentials
from blobtee.registry.headers import Challenge, challenges, retry_after
from blobtee.registry.retry import Transient
from blobtee.registry.settings import Settings
from blobtee.registry.transport import Answer, Url
from blobtee.tasks import SingleFlight

_MAX_ANSWER = 1 << 20
_MAX_TOKEN = 64 << 10
_MAX_TOKENS = 1000
_CLIENT = "blobtee"

Scopes = tuple[str, ...]
"""What is wanted: `repository:<name>:pull,push`, sorted, each once."""


class Exchange(Protocol):
    """Sends one request and follows its redirects; `secret` headers go to no other host than the first."""

    def __call__(
        self, method: str, url: Url, headers: Mapping[str, str], secret: Mapping[str, str], body: bytes | None
    ) -> Answer: ...


@dataclass(frozen=True)
class _Token:
    value: str = field(repr=False)
    fresh_until: float


class Signer:
    """Signs requests to one host. Thread-safe; one token request at a time for the same scopes."""

    def __init__(self, name: str, base: Url, credentials: Credentials, exchange: Exchange, settings: Settings) -> None:
        self._name = name
        self._base = base
        self._credentials = credentials
        self._exchange = exchange
        self._settings = settings
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._wider: dict[Scopes, Scopes] = {}
        self._basic: dict[str, str] = {}
        self._flights: SingleFlight[Scopes, _Token | BlobteeError] = SingleFlight()

    def header(self, scopes: Scopes, repository: str) -> str | None:
        """The header to send, fetched or refreshed as needed; None as long as the host has not asked for one.

        `Unauthenticated` when nothing that we have is good enough.
        """
        with self._lock:
            challenge = self._challenge
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            return self._basic_header(repository)
        with self._lock:
            token = self._tokens.get(scopes)
        if token is None or time.monotonic() >= token.fresh_until:
            outcome = self._flights.do(scopes, lambda: self._buy(challenge, scopes, repository))
            if isinstance(outcome, BlobteeError):
                raise type(outcome)(*outcome.args)
            token = outcome
        return f"Bearer {token.value}"

    def refused(self, answers: Sequence[str], used: str | None, scopes: Scopes) -> None:
        """Take note of a 401: `answers` are its WWW-Authenticate headers, `used` is what was sent.

        Returns when another try makes sense, else raises `Unauthenticated`.
        """
        offered = challenges(answers)
        bearer = next((c for c in offered if c.scheme == "bearer" and c.parameters.get("realm")), None)
        challenge = bearer or next((c for c in offered if c.scheme == "basic"), None)
        if challenge is None:
            kinds = ", ".join(sorted({c.scheme[:20] for c in offered})) or "none"
            raise Unauthenticated(f"{self._name} wants a way of signing in that is not supported (it offers: {kinds})")
        if used is not None and challenge.scheme == "basic" and used.startswith("Basic "):
            with self._lock:
                self._basic.clear()
            raise Unauthenticated(f"{self._name} refused the credentials; sign in again: `docker login {self._name}`")
        wanted = [scope for scope in challenge.parameters.get("scope", "").split()[:8] if len(scope) <= 512]
        with self._lock:
            self._challenge = challenge
            if wanted:
                self._wider[scopes] = tuple(sorted({*scopes, *wanted}))
            token = self._tokens.get(scopes)
            if token is not None and used == f"Bearer {token.value}":
                del self._tokens[scopes]

    def _basic_header(self, repository: str) -> str:
        with self._lock:
            header = self._basic.get(repository)
        if header is None:
            credential = self._credentials.get(self._name, repository)
            if credential is None or not (credential.username or credential.password):
                raise self._nobody("")
            header = _basic(credential)
            with self._lock:
                self._basic[repository] = header
        return header

    def _buy(self, challenge: Challenge, scopes: Scopes, repository: str) -> _Token | BlobteeError:
        with self._lock:
            token = self._tokens.get(scopes)
        if token is not None and time.monotonic() < token.fresh_until:
            return token  # Bought by a flight that ended between our look and our start.
        # A refusal is an outcome, not an exception: as one, each of the waiters would knock again.
        try:
            token = self._fetch(challenge, self._wider.get(scopes, scopes), repository)
        except (Unauthenticated, PermissionDenied) as error:
            return error
        with self._lock:
            if len(self._tokens) >= _MAX_TOKENS:
                self._tokens.clear()
                self._wider.clear()
            self._tokens[scopes] = token
        return token

    def _fetch(self, challenge: Challenge, scopes: Scopes, repository: str) -> _Token:
        url = self._realm(challenge)
        note = ""
        try:
            credential = self._credentials.get(self._name, repository)
        except Unauthenticated as error:
            # Public images must not need a working helper; should the server insist, the message says why.
            credential, note = None, f" ({error})"
        service = {"service": challenge.parameters["service"]} if challenge.parameters.get("service") else {}
        if credential is not None and credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "client_id": _CLIENT,
                **service,
            }
            body = urlencode([*form.items(), *([("scope", " ".join(scopes))] if scopes else [])]).encode()
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._exchange("POST", url, kind, {}, body)
        else:
            pairs = [*service.items(), *(("scope", scope) for scope in scopes)]
            joint = "&" if "?" in url.text else "?"
            asked = Url.parse(f"{url.text}{joint}{urlencode(pairs)}") if pairs else url
            secret = {"Authorization": _basic(credential)} if credential is not None else {}
            answer = self._exchange("GET", asked, {}, secret, None)
        try:
            return self._token(answer, url, credential, note)
        finally:
            answer.close()

    def _realm(self, challenge: Challenge) -> Url:
        url = Url.parse(challenge.parameters["realm"], self._base)
        if url.scheme == "http" and self._base.scheme == "https":
            raise ProtocolViolation(
                f"{self._name} wants credentials sent to {url.netloc} over plain HTTP; that is not done"
            )
        return url

    def _token(self, answer: Answer, url: Url, credential: Credential | None, note: str) -> _Token:
        if answer.status in (400, 401, 403, 404, 405):
            if credential is None:
                raise self._nobody(note)
            raise Unauthenticated(
                f"the token server {url.netloc} refused the credentials for {self._name} from "
                f"{credential.source or 'the caller'} ({answer.status}); sign in again: `docker login {self._name}`"
            )
        if answer.status != 200:
            after = answer.headers("retry-after")
            raise Transient(
                RemoteError(f"the token server {url.netloc} for {self._name} answered {answer.status}"),
                after=retry_after(after[0] if after else None, self._settings.max_retry_after),
            )
        try:
            document = json.loads(answer.read(_MAX_ANSWER))
        except TooLarge:
            raise
        except (ValueError, RecursionError):
            document = None
        value = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
        usable = isinstance(value, str) and 0 < len(value) <= _MAX_TOKEN and value.isascii() and value.isprintable()
        if not usable or not isinstance(document, dict):
            raise ProtocolViolation(f"the token server {url.netloc} for {self._name} gave no token")
        lifetime = document.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, int | float) and 0 < lifetime < 10**9 else 60.0
        return _Token(str(value), time.monotonic() + max(seconds - 15.0, seconds / 2))

    def _nobody(self, note: str) -> Unauthenticated:
        return Unauthenticated(
            f"{self._name} wants a sign-in and there are no credentials for it{note}; run `docker login {self._name}`"
        )


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
