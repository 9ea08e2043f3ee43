"""Credentials where docker and podman keep them.

Read anew for each sign-in: helpers hand out secrets that change, and `docker login` may run at any time.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blobtee.errors import InvalidDocument, Unauthenticated, from_os_error
from blobtee.oci.reference import DOCKER_HUB
from blobtee.registry.auth import helpers

_log = logging.getLogger("blobtee.registry.auth")
_MAX_FILE = 4 << 20
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"
"""The user name by which a helper says that its secret is an identity token."""


@dataclass(frozen=True)
class Credential:
    """Who we are to a registry: user name and password, or an identity token. `repr` shows neither secret."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    source: str = ""
    """Where it was found, for messages."""


class Credentials(Protocol):
    def get(self, host: str, repository: str) -> Credential | None:
        """What to sign in with for `repository` on `host` (with its port; Docker Hub is `docker.io`); None: nothing.

        `Unauthenticated` when there should be something and it cannot be had.
        """
        ...


class NoCredentials:
    """Nobody: all requests are anonymous."""

    def get(self, host: str, repository: str) -> Credential | None:
        return None


class FileCredentials:
    """The files that docker and podman write, the first that knows the host wins:

    `$REGISTRY_AUTH_FILE`; `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`;
    `$XDG_RUNTIME_DIR/containers/auth.json`; `~/.config/containers/auth.json`.

    In a file, a helper named for the host (`credHelpers`) comes before `auths`, whose keys may name a path below
    the host (the longest that fits is taken), and `credsStore` comes last but before an empty entry of `auths`.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, helper_timeout: float = 30.0) -> None:
        self._environ = os.environ if environ is None else environ
        self._timeout = helper_timeout

    def files(self) -> Iterator[Path]:
        """The files that are looked at, in order, whether they exist or not."""
        environ = self._environ
        home = Path(environ.get("HOME") or os.path.expanduser("~"))
        if environ.get("REGISTRY_AUTH_FILE"):
            yield Path(environ["REGISTRY_AUTH_FILE"])
        yield Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
        if environ.get("XDG_RUNTIME_DIR"):
            yield Path(environ["XDG_RUNTIME_DIR"], "containers", "auth.json")
        yield home / ".config" / "containers" / "auth.json"

    def get(self, host: str, repository: str) -> Credential | None:
        """See `Credentials`. `InvalidDocument` names a file that is not one of these.

        A file that may not be read, or a helper that fails, is `Unauthenticated` if no other file has an answer.
        """
        failure: Unauthenticated | None = None
        for path in self.files():
            try:
                document = _read(path)
                if document is None:
                    continue
                found = self._search(path, document, host, repository)
            except Unauthenticated as error:
                _log.debug("%s: %s", path, error)
                failure = failure or error
                continue
            if found is not None:
                return found
        if failure is not None:
            raise failure
        return None

    def _search(self, path: Path, document: Mapping[str, object], host: str, repository: str) -> Credential | None:
        keys = _keys(host, repository)
        chosen = _table(path, document, "credHelpers")
        for key in keys:
            if isinstance(chosen.get(key), str):
                return self._ask(str(chosen[key]), key, path)
        auths = {_normal(key): value for key, value in _table(path, document, "auths").items()}
        for key in keys:
            entry = auths.get(_normal(key))
            found = None if entry is None else _entry(path, key, entry)
            if found is not None:
                return found
        store = document.get("credsStore")
        if not isinstance(store, str) or not store:
            return None
        return self._ask(store, _HUB_KEYS[0] if host == DOCKER_HUB else host, path)

    def _ask(self, helper: str, server: str, path: Path) -> Credential | None:
        answer = helpers.ask(helper, server, self._environ, self._timeout)
        if answer is None:
            return None
        source = f"docker-credential-{helper}, named in {path}"
        if answer[0] == _TOKEN_USER:
            return Credential(identity_token=answer[1], source=source)
        return Credential(answer[0], answer[1], source=source)


def _keys(host: str, repository: str) -> list[str]:
    """What `auths` may call this repository, most precise first: `host/a/b`, `host/a`, `host`."""
    parts = repository.split("/") if repository else []
    paths = [f"{host}/{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]
    return [*paths, *(_HUB_KEYS if host == DOCKER_HUB else (host,))]


def _normal(key: str) -> str:
    """A key of `auths` without what older tools wrote around the host: a scheme, `/v1/`, `/v2/`."""
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    return bare.removesuffix("/v1").removesuffix("/v2")


def _entry(path: Path, key: str, entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        raise InvalidDocument(f"{path}: the entry for {key} must be a table")
    for name in ("auth", "username", "password", "identitytoken"):
        if not isinstance(entry.get(name, ""), str):
            raise InvalidDocument(f"{path}: `{name}` of {key} must be a string")
    user, password = entry.get("username", ""), entry.get("password", "")
    if entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            raise InvalidDocument(f"{path}: `auth` of {key} is not base64 of user:password") from None
        if not colon:
            raise InvalidDocument(f"{path}: `auth` of {key} is not base64 of user:password")
        password = password.rstrip("\0")
    token = entry.get("identitytoken", "")
    if not (user or password or token):
        return None
    return Credential(user, password, token, str(path))


def _table(path: Path, document: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidDocument(f"{path}: `{name}` must be a table")
    return value


def _read(path: Path) -> Mapping[str, object] | None:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # Somebody else's file, as when HOME is root's: public images must not need it.
        raise Unauthenticated(str(from_os_error(error, f"read {path}"))) from error
    if len(raw) > _MAX_FILE:
        raise InvalidDocument(f"{path}: larger than {_MAX_FILE} bytes")
    document: object = None
    if not raw.strip():
        return None
    with suppress(ValueError, RecursionError):
        document = json.loads(raw)
    if not isinstance(document, dict):
        # Not the parser's own words: they would come with a piece of the file.
        raise InvalidDocument(f"{path}: not a JSON object")
    return document
