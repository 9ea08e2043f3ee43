"""What is needed: everything that images, leases and labels lead to (`spec/remote.md` section 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from blobtee.cache.labels import GC_LINK
from blobtee.content import LocalStore
from blobtee.content.api import Store
from blobtee.content.digester import digest_of, digester
from blobtee.errors import DataLoss, InvalidArgument, InvalidDocument, NotFound, TooLarge, UnsupportedMediaType
from blobtee.oci import Descriptor, Digest, Index, Manifest, mediatypes, parse_document
from blobtee.oci.documents import MAX_DOCUMENT
from blobtee.tasks import check

_ROOT = "containerd.io/gc.root"
_DOCUMENTS = mediatypes.INDEXES | mediatypes.MANIFESTS


@dataclass(frozen=True)
class Known:
    """What matters here of a blob in the store. `since` is nanoseconds since the epoch."""

    size: int
    since: int
    links: tuple[Digest, ...]
    is_root: bool


class Marking:
    """Follows links between the blobs of a store, as they were when this was made.

    `problems` says in a sentence each what could not be followed; `blind` is set when some of what an image needs is
    therefore not known at all.
    """

    def __init__(self, store: Store) -> None:
        self.blobs: dict[Digest, Known] = {}
        self.problems: list[str] = []
        self.blind = False
        self._store = store
        for info in store.walk():
            check()
            self.blobs[info.digest] = Known(info.size, info.created_at, _links(info.labels), _ROOT in info.labels)
        # The labels of a blob that was set aside as damaged, or is lazy again, still tell what belongs to it.
        away = [*store.quarantined(), *store.evicted()] if isinstance(store, LocalStore) else []
        self._away = {info.digest: _links(info.labels) for info in away}

    def labelled_roots(self) -> Iterator[Digest]:
        return (digest for digest, known in self.blobs.items() if known.is_root)

    def images(self, roots: Iterable[Descriptor]) -> set[Digest]:
        """What the documents of `roots` name, and what is linked to that, whether it is here or not."""
        marked: set[Digest] = set()
        seen: set[Digest] = set()
        stack = [(root, True) for root in roots]
        while stack:
            check()
            desc, is_root = stack.pop()
            marked.add(desc.digest)
            if desc.digest in seen or not (is_root or desc.media_type in _DOCUMENTS):
                continue
            seen.add(desc.digest)
            document = self._document(desc, is_root)
            if isinstance(document, Index):
                stack += [(member, True) for member in document.manifests if member.digest in self.blobs]
                marked.update(member.digest for member in document.manifests)
            elif document is not None:
                stack += [(blob, False) for blob in document.blobs]
            subject = document.subject if document is not None else None
            if subject is not None and subject.digest in self.blobs:
                stack.append((subject, True))
        return self.linked(marked)

    def linked(self, start: Iterable[str]) -> set[Digest]:
        """`start`, and what labels link to that, directly or not. What is no digest is left out."""
        marked: set[Digest] = set()
        stack = [digest for digest in map(_digest, start) if digest is not None]
        while stack:
            digest = stack.pop()
            if digest not in marked:
                marked.add(digest)
                known = self.blobs.get(digest)
                stack += known.links if known is not None else self._away.get(digest, ())
        return marked

    def leading(self, digest: Digest) -> set[Digest]:
        """`digest`, and the blobs whose labels link to it, directly or not."""
        marked: set[Digest] = set()
        stack = [digest]
        while stack:
            current = stack.pop()
            if current not in marked:
                marked.add(current)
                stack += self._backward.get(current, ())
        return marked

    @cached_property
    def _backward(self) -> Mapping[Digest, Sequence[Digest]]:
        found: defaultdict[Digest, list[Digest]] = defaultdict(list)
        for digest, links in (*((digest, known.links) for digest, known in self.blobs.items()), *self._away.items()):
            for link in links:
                found[link].append(digest)
        return found

    def _document(self, desc: Descriptor, is_root: bool) -> Manifest | Index | None:
        """None when there is nothing more to follow than labels."""
        known = self.blobs.get(desc.digest)
        links = known.links if known is not None else self._away.get(desc.digest, ())
        try:
            if known is None:
                raise NotFound("it is not in the store")
            if known.size > MAX_DOCUMENT:
                raise TooLarge(f"it has {known.size} bytes, documents may have {MAX_DOCUMENT}")
            document = parse_document(self._read(Descriptor(desc.media_type, desc.digest, known.size)), desc.media_type)
            _ = document.subject  # it is read when asked for, and may be nonsense
            return document
        except (NotFound, TooLarge, DataLoss, InvalidDocument, InvalidArgument, UnsupportedMediaType) as error:
            if not is_root and known is None:
                return None
            if desc.media_type and desc.media_type not in _DOCUMENTS and known is not None:
                return None  # something else that is listed as a member
            self.problems.append(f"document {desc.digest} of an image cannot be read: {error}")
            self.blind = self.blind or not links
            return None

    def _read(self, desc: Descriptor) -> bytes:
        with self._store.reader_at(desc) as reader:
            raw = reader.read_at(0, desc.size)
        hasher = digester(desc.digest.algorithm)
        hasher.update(raw)
        if digest_of(desc.digest.algorithm, hasher) != desc.digest:
            raise DataLoss("it is damaged; `blobtee verify --repair` can bring it again")
        return raw


def _links(labels: Mapping[str, str]) -> tuple[Digest, ...]:
    found = (_digest(value) for key, value in labels.items() if key == GC_LINK or key.startswith(f"{GC_LINK}."))
    return tuple(digest for digest in found if digest is not None)


def _digest(text: str) -> Digest | None:
    try:
        return Digest(text)
    except InvalidArgument:
        return None
