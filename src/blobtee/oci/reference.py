"""Image names as people write them.

The grammar is that of `distribution/reference`: `[host[:port]/]path[:tag][@digest]`, where a first part without
a dot, a port or the word `localhost` is not a host but a path on Docker Hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from blobtee.errors import InvalidDigest, InvalidReference
from blobtee.oci.digest import Digest

DOCKER_HUB = "docker.io"
_HUB_ALIASES = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?\Z")
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_BARE_HEX = re.compile(r"[0-9a-f]{64}\Z")
_MAX_NAME = 255


@dataclass(frozen=True)
class Reference:
    """`host` keeps its port; `repository` is the full path on that host (`library/python`)."""

    host: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str, *, default_tag: str = "latest") -> Reference:
        """Read a name. Neither tag nor digest means `default_tag`. `InvalidReference` says what is malformed."""
        shown = text if len(text) <= 120 else text[:120] + "…"
        name, at, digest_text = text.partition("@")
        if not name:
            raise InvalidReference(f"{shown!r}: no name of an image")
        try:
            digest = Digest(digest_text) if at else None
        except InvalidDigest as error:
            raise InvalidReference(f"{shown!r}: {error}") from None
        head, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        if colon and not _TAG.match(tag):
            raise InvalidReference(
                f"{shown!r}: {tag[:140]!r} is not a tag (letters, digits, '_', '.', '-'; at most 128)"
            )
        host, repository = _split(head + slash + last, shown)
        if not colon and digest is None:
            tag = default_tag
        return cls(host, repository, tag, digest)

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    @property
    def identifier(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return str(self.digest or self.tag)

    def with_tag(self, tag: str) -> Reference:
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: str) -> Reference:
        return replace(self, tag="", digest=Digest(digest))

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def _split(name: str, shown: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or any(c in first for c in ".:[") or first != first.lower()):
        host, repository = first, rest
    else:
        host, repository = DOCKER_HUB, name
    if not _HOST.match(host):
        raise InvalidReference(f"{shown!r}: {host[:140]!r} is not a host")
    if host in _HUB_ALIASES:
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in repository:
        if _BARE_HEX.match(repository):
            raise InvalidReference(f"{shown!r}: 64 hex digits are an image id, not a name")
        repository = f"library/{repository}"
    if repository != repository.lower():
        raise InvalidReference(f"{shown!r}: repository names are lower case")
    if not all(_PATH_PART.match(part) for part in repository.split("/")):
        raise InvalidReference(f"{shown!r}: {repository[:140]!r} is not a repository name")
    if len(host) + 1 + len(repository) > _MAX_NAME:
        raise InvalidReference(f"{shown!r}: longer than {_MAX_NAME} characters")
    return host, repository
