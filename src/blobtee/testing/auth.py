"""How the test registry asks who is there: basic, or bearer tokens from an endpoint of its own."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import threading
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

from blobtee.testing.bodies import Bytes
from blobtee.testing.http import Headers, Request, Response

_SERVICE = "test-registry"


class Guard:
    """Lets requests through that carry the right credentials."""

    def __init__(self, users: Mapping[str, str], scheme: str, anonymous_pull: bool, lifetime: float) -> None:
        if scheme not in ("basic", "bearer"):
            raise ValueError(f"auth is basic or bearer, not {scheme!r}")
        self._users = dict(users)
        self._scheme = scheme
        self._anonymous_pull = anonymous_pull
        self._lifetime = lifetime
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[float, frozenset[str]]] = {}

    def expire(self) -> None:
        with self._lock:
            self._tokens.clear()

    def check(self, request: Request, url: str) -> Response | None:
        """None when the request may pass, else the refusal with its challenge."""
        if request.kind == "token":
            return None
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if self._scheme == "basic":
            if scheme.lower() == "basic" and self._user(credential):
                return None
            return _refusal(f'Basic realm="{_SERVICE}"')
        needed = _needed(request)
        if scheme.lower() == "bearer" and self._grants(credential, needed):
            return None
        challenge = f'Bearer realm="{url}/token",service="{_SERVICE}"'
        if request.repository:
            challenge += (
                f',scope="repository:{request.repository}:{"pull" if needed.endswith("pull") else "pull,push"}"'
            )
        return _refusal(challenge)

    def token(self, request: Request) -> Response:
        """The token endpoint: GET with basic credentials, or POST in the OAuth2 form with a password."""
        scopes: list[str]
        if request.method == "POST":
            form = parse_qsl(request.body.read(1 << 20).decode())
            fields = dict(form)
            scopes = [scope for key, text in form if key == "scope" for scope in text.split()]
            known = self._users.get(fields.get("username", "")) == fields.get("password")
            named = True
        else:
            scopes = [text for key, text in request.query_pairs if key == "scope"]
            credential = request.headers.get("authorization", "").partition(" ")[2]
            named = bool(credential)
            known = self._user(credential)
        if named and not known:
            return _refusal(f'Basic realm="{_SERVICE}"')
        granted = set()
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            for action in actions.split(","):
                if kind == "repository" and (known or (self._anonymous_pull and action == "pull")):
                    granted.add(f"{name}:{action}")
        if not known and not self._anonymous_pull:
            return _refusal(f'Basic realm="{_SERVICE}"')
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._tokens[token] = (time.monotonic() + self._lifetime, frozenset(granted))
        body = {"token": token, "access_token": token, "expires_in": max(1, int(self._lifetime))}
        return Response(200, Headers({"Content-Type": "application/json"}), Bytes(json.dumps(body).encode()))

    def _user(self, credential: str) -> bool:
        try:
            name, _, password = base64.b64decode(credential, validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            return False
        return self._users.get(name) == password

    def _grants(self, token: str, needed: str) -> bool:
        with self._lock:
            ends, granted = self._tokens.get(token, (0.0, frozenset()))
        return time.monotonic() < ends and (not needed or needed in granted)


def _needed(request: Request) -> str:
    if not request.repository:
        return ""
    return f"{request.repository}:{'pull' if request.method in ('GET', 'HEAD') else 'push'}"


def _refusal(challenge: str) -> Response:
    body = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
    headers = Headers({"WWW-Authenticate": challenge, "Content-Type": "application/json"})
    return Response(401, headers, Bytes(json.dumps(body).encode()))
