"""Manifests, indexes, tags and referrers of one repository on one host (distribution specification 1.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from blobtee import tasks
from blobtee.errors import (
    DigestMismatch,
    InvalidDigest,
    InvalidDocument,
    NotFound,
    ProtocolViolation,
    SizeMismatch,
    UnsupportedMediaType,
)
from blobtee.oci import Descriptor, Digest, Index, Manifest, mediatypes, parse_document
from blobtee.oci.documents import MAX_DOCUMENT
from blobtee.registry.headers import next_link
from blobtee.registry.session import Reply, Scope, Session, follow, identifier_in_url
from blobtee.registry.transport import Url

_ACCEPT = ", ".join(mediatypes.ACCEPTED)
_REFUSED_HEAD = frozenset({400, 403, 405, 406, 415, 501})
_KNOWN = mediatypes.INDEXES | mediatypes.MANIFESTS
_MAX_PAGES = 10_000
_MAX_TAG = 256


def digest_of(raw: bytes, like: str) -> Digest:
    """The digest of a document, by the algorithm that the digest `like` uses."""
    algorithm = Digest(like).algorithm
    return Digest(f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}")


class Documents:
    """The documents of `repository` as `session`'s host has them. `hasty`: no second try, another host is next."""

    def __init__(self, session: Session, repository: str, *, hasty: bool = False) -> None:
        self._session = session
        self._repository = repository
        self._hasty = hasty
        self._scope = Scope(repository)

    def resolve(self, identifier: str) -> Descriptor:
        """What tag or digest `identifier` names: HEAD, or GET where HEAD is refused or says too little.

        `NotFound`, `DigestMismatch` (a digest asked for, another one announced), `UnsupportedMediaType`.
        """
        return self._head(identifier) or self.get(identifier).descriptor

    def get(self, identifier: str, size: int | None = None, media_type: str = "") -> Manifest | Index:
        """The document itself, checked against `identifier` (when a digest), `size`, and the digest announced.

        `DigestMismatch`, `SizeMismatch`, `TooLarge`, `InvalidDocument`, `NotFound`.
        """
        what = self._what("fetch", identifier)
        reply, raw = self._session.fetch(
            self._url(identifier), self._scope, what, limit=MAX_DOCUMENT, headers={"Accept": _ACCEPT}, hasty=self._hasty
        )
        named = f"{self._repository}@{identifier}" if ":" in identifier else f"{self._repository}:{identifier}"
        if size is not None and len(raw) != size:
            raise SizeMismatch(f"{named} from {self._session.name}", size, len(raw))
        announced = self._announced(reply)
        for expected in ([Digest(identifier)] if ":" in identifier else []) + ([announced] if announced else []):
            actual = digest_of(raw, expected)
            if actual != expected:
                raise DigestMismatch(f"{named} from {self._session.name}", expected, actual)
        stated = _media_type(reply)
        try:
            return parse_document(raw, media_type or (stated if stated in _KNOWN else ""))
        except (InvalidDocument, UnsupportedMediaType) as error:
            raise type(error)(f"{named} from {self._session.name}: {error}") from error

    def tags(self) -> Iterator[str]:
        """All tags, page by page, each once at most in a row. `NotFound` when there is no such repository."""
        url = self._session.host.url(f"/{self._repository}/tags/list", n="1000")
        for page in self._pages(url, f"list the tags of {self._repository} on {self._session.name}"):
            tags = page.get("tags")
            if tags is None:
                continue
            if not isinstance(tags, list) or not all(isinstance(tag, str) and len(tag) <= _MAX_TAG for tag in tags):
                raise ProtocolViolation(f"{self._session.name} sent a tag list that is none")
            yield from tags

    def referrers(self, digest: Digest, artifact_type: str | None) -> list[Descriptor]:
        """Manifests that refer to `digest`, of one type or all, each once; by the API, else by tag schema."""
        query = {"artifactType": artifact_type} if artifact_type else {}
        url = self._session.host.url(f"/{self._repository}/referrers/{digest}", **query)
        what = f"list the referrers of {self._repository}@{digest} on {self._session.name}"
        found: dict[Digest, Descriptor] = {}
        try:
            for page in self._pages(url, what):
                for descriptor in _manifests(page, self._session.name):
                    found.setdefault(descriptor.digest, descriptor)
                if len(found) > 100_000:
                    raise ProtocolViolation(f"{self._session.name} lists more referrers than can be")
        except NotFound:
            found = {descriptor.digest: descriptor for descriptor in self._by_tag(digest)}
        return [d for d in found.values() if artifact_type is None or d.artifact_type == artifact_type]

    def _by_tag(self, digest: Digest) -> tuple[Descriptor, ...]:
        try:
            index = self.get(referrers_tag(digest))
        except NotFound:
            return ()
        return index.manifests if isinstance(index, Index) else ()

    def _head(self, identifier: str) -> Descriptor | None:
        """What HEAD says, None when it does not say all that is needed."""
        what = self._what("resolve", identifier)
        expect = {200, *_REFUSED_HEAD}
        with self._session.ask(
            "HEAD",
            self._url(identifier),
            self._scope,
            what,
            expect=expect,
            headers={"Accept": _ACCEPT},
            hasty=self._hasty,
        ) as reply:
            announced = self._announced(reply)
            media_type = _media_type(reply)
            if reply.status != 200 or reply.length is None or media_type not in _KNOWN:
                return None
            if ":" in identifier:
                wanted = Digest(identifier)
                if announced is not None and announced != wanted and announced.algorithm == wanted.algorithm:
                    raise DigestMismatch(f"{self._repository} on {self._session.name}", wanted, announced)
                announced = wanted
            return None if announced is None else Descriptor(media_type, announced, reply.length)

    def _pages(self, url: Url, what: str) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while url.text not in seen:
            if len(seen) >= _MAX_PAGES:
                raise ProtocolViolation(f"cannot {what}: more than {_MAX_PAGES} pages")
            seen.add(url.text)
            tasks.check()
            reply, raw = self._session.fetch(url, self._scope, what, limit=MAX_DOCUMENT, hasty=self._hasty)
            try:
                page = json.loads(raw)
            except (ValueError, RecursionError):
                page = None
            if not isinstance(page, dict):
                raise ProtocolViolation(f"cannot {what}: the answer is not a JSON object")
            yield page
            link = next_link(reply.headers("link"))
            if link is None:
                return
            following = follow(url, link)
            if following.origin != url.origin:
                raise ProtocolViolation(f"cannot {what}: the next page is on another host, {following.netloc}")
            url = following
        raise ProtocolViolation(f"cannot {what}: its pages go round in circles")

    def _announced(self, reply: Reply) -> Digest | None:
        value = reply.header("docker-content-digest")
        try:
            return Digest(value) if value else None
        except InvalidDigest as error:
            raise ProtocolViolation(f"{self._session.name} announced a digest that is none: {error}") from None

    def _url(self, identifier: str) -> Url:
        return self._session.host.url(f"/{self._repository}/manifests/{identifier_in_url(identifier)}")

    def _what(self, verb: str, identifier: str) -> str:
        joint = "@" if ":" in identifier else ":"
        return f"{verb} {self._repository}{joint}{identifier} from {self._session.name}"


class DocumentPusher:
    """Writes manifests and indexes to one repository on one host."""

    def __init__(self, session: Session, repository: str) -> None:
        self._session = session
        self._repository = repository
        self._scope = Scope(repository, "pull,push")

    def push(self, raw: bytes, media_type: str, tag: str | None) -> Descriptor:
        """Store a document under its digest, or under `tag` too; its descriptor.

        When it has a subject and the registry keeps no referrers of its own, the list that stands in for them is
        updated (distribution specification, "referrers tag schema").
        """
        digest = Digest.of(raw)
        parsed = parse_document(raw, media_type)
        subject = parsed.subject
        reply = self._put(raw, media_type, tag or digest, digest)
        descriptor = Descriptor(media_type, digest, len(raw))
        if subject is not None and reply.header("oci-subject") is None:
            self._refer(subject.digest, parsed)
        return descriptor

    def _put(self, raw: bytes, media_type: str, identifier: str, digest: Digest) -> Reply:
        url = self._session.host.url(f"/{self._repository}/manifests/{identifier_in_url(identifier)}")
        joint = "@" if ":" in identifier else ":"
        what = f"push {self._repository}{joint}{identifier} to {self._session.name}"
        with self._session.ask(
            "PUT", url, self._scope, what, expect=(200, 201, 202), headers={"Content-Type": media_type}, body=raw
        ) as reply:
            check_digest(reply, digest, f"{self._repository} on {self._session.name}")
            return reply

    def _refer(self, subject: Digest, document: Manifest | Index) -> None:
        tag = referrers_tag(subject)
        known: list[dict[str, Any]] = []
        try:
            index = Documents(self._session, self._repository).get(tag)
            known = [entry.to_json() for entry in index.manifests] if isinstance(index, Index) else []
        except NotFound:
            pass
        if any(entry["digest"] == document.digest for entry in known):
            return
        artifact_type = document.json.get("artifactType")
        if not artifact_type and isinstance(document, Manifest):
            artifact_type = document.artifact_type
        entry = document.descriptor.annotated(document.annotations).to_json()
        known.append({**entry, **({"artifactType": artifact_type} if artifact_type else {})})
        body = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": known}
        raw = json.dumps(body, separators=(",", ":")).encode()
        self._put(raw, mediatypes.OCI_INDEX, tag, Digest.of(raw))


def referrers_tag(digest: Digest) -> str:
    """The tag that stands in for a registry's referrers API."""
    return f"{digest.algorithm}-{digest.hex}"[:128]


def check_digest(reply: Reply, expected: Digest, what: str) -> None:
    """Refuse an answer that says that something else was stored. An algorithm of its own is the registry's choice."""
    stored = reply.header("docker-content-digest")
    if stored and stored != expected and stored.partition(":")[0] == expected.algorithm:
        raise DigestMismatch(f"what was stored in {what}", expected, stored[:200])


def _media_type(reply: Reply) -> str:
    return (reply.header("content-type") or "").partition(";")[0].strip()


def _manifests(page: dict[str, Any], name: str) -> Iterator[Descriptor]:
    manifests = page.get("manifests") or []
    if not isinstance(manifests, list):
        raise ProtocolViolation(f"{name} sent a list of referrers that is none")
    for manifest in manifests:
        yield Descriptor.from_json(manifest)
