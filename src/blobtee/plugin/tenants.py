"""One store for several containerds: each has a view with its own references (`spec/content.md` section 1).

containerd's garbage collection deletes every blob of its content store that this containerd does not know. So a tenant
sees what it holds and nothing else in a list, and deleting takes its reference and nothing else; the bytes go when
nobody needs them (`plugin.sweeping`). What it asks for by digest, it gets when the store has it for anybody: the blob
is the tenant's own from then on, and nothing was moved. So it gets what the store only knows where to find
(`plugin.lazy`); that is brought when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from blobtee.content import LocalStore, filters
from blobtee.content.api import Info, ReaderAt, Status, Writer
from blobtee.content.arrivals import Claim
from blobtee.content.ingests import encode_ref
from blobtee.content.labels import checked
from blobtee.content.writer import LocalWriter
from blobtee.errors import AlreadyExists, BlobteeError, DataLoss, NotFound, RefLocked
from blobtee.oci import Descriptor, Digest
from blobtee.plugin.lazy import LazyBlobs
from blobtee.plugin.observer import SILENT, Observer
from blobtee.plugin.references import Reference, References, Wanted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class Tenant:
    """A `Store`: the view of one tenant. Thread-safe. `on_delete` is called after each reference that goes.

    Ingests are kept apart by a prefix on their refs, which the tenant never sees.
    """

    def __init__(
        self,
        name: str,
        store: LocalStore,
        references: References,
        lazy: LazyBlobs | None = None,
        *,
        observer: Observer = SILENT,
        on_delete: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the tenant, if the store does not know it yet. `InvalidArgument`: no name for one."""
        references.begin(name, store)
        self.name = name
        self._store = store
        self._references = references
        self._lazy = lazy
        self._observer = observer
        self._on_delete = on_delete
        self._prefix = f"tenant/{name}/"

    # ---- Provider, Manager --------------------------------------------------------------------------------------

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        """See `Provider`, and for a lazy blob `LazyBlobs.reader_at`."""
        digest = self._find(Digest(desc.digest)).digest
        try:
            reader = self._store.reader_at(desc)
        except NotFound:
            if self._lazy is None:
                raise
            reader = self._lazy.reader_at(digest)
            self._observer.opened(was_here=False)
        else:
            self._observer.opened(was_here=True)
        return reader

    def info(self, digest: str) -> Info:
        return self._info(self._find(Digest(digest)))

    def update(self, digest: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        found = self._find(Digest(digest))
        self._info(found)
        return self._info(self._references.update(self.name, found.digest, labels, replace=replace))

    def walk(self, *filters_: str) -> Iterator[Info]:
        """See `Manager`; in the order of digests."""
        matches = filters.parse(filters_)
        return self._walk(matches)

    def delete(self, digest: str) -> None:
        """Let go of the blob; `NotFound` when the tenant does not hold it."""
        self._references.let_go(self.name, Digest(digest))
        self._on_delete()

    # ---- Ingester, IngestManager ----------------------------------------------------------------------------------

    def writer(self, ref: str, *, total: int = 0, expected: str | None = None) -> Writer:
        encode_ref(ref)  # with the prefix, what is no ref would be one
        try:
            writer = self._store.writer(self._prefix + ref, total=total, expected=expected)
        except AlreadyExists:
            # Somebody else's, or still there: the tenant holds it from here on. When the sweep was quicker, the second
            # opening finds it gone.
            with self._holding_what_exists(Digest(expected or "")):
                writer = self._store.writer(self._prefix + ref, total=total, expected=expected)
        try:
            is_known = expected is not None and self._holds_lazy(Digest(expected))
        except BaseException:
            writer.close()
            raise
        if is_known:
            writer.close()
            with suppress(RefLocked):
                self.abort(ref)
            raise AlreadyExists(f"blob {expected} is known to the store: read it, and it comes")
        return TenantWriter(self, writer)

    def status(self, ref: str) -> Status:
        if not ref:
            raise NotFound("no ingest without a ref")
        try:
            return self.seen(self._store.status(self._prefix + ref))
        except NotFound:
            raise NotFound(f"no ingest {ref[:200]!r}") from None

    def statuses(self, *filters_: str) -> list[Status]:
        matches = filters.parse(filters_)
        own = (self.seen(status) for status in self._store.statuses() if status.ref.startswith(self._prefix))
        return [status for status in own if matches(filters.ingest_fields(status.ref))]

    def abort(self, ref: str) -> None:
        if ref:
            self._store.abort(self._prefix + ref)

    # ---- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing: the store is its owner's to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_here(self, digest: str) -> bool:
        """Whether the tenant can have the blob without it being brought from anywhere."""
        if not self._store.has(Digest(digest)):
            return False
        try:
            self._store.info(self._find(Digest(digest)).digest)
        except (NotFound, DataLoss):
            return False
        return True

    # ---- for the writer ---------------------------------------------------------------------------------------------

    def hold(self, digest: Digest, labels: Mapping[str, str] | None) -> Reference | None:
        """Hold the blob, whether it is there or comes now. None: the tenant did already, and its labels stay."""
        return self._references.hold(self.name, digest, labels)

    def hold_new(self, wanted: Sequence[Wanted]) -> list[Reference] | None:
        """See `References.hold_new`."""
        return self._references.hold_new(self.name, wanted)

    def let_go_of_nothing(self, digest: Digest) -> bool:
        """Take a reference back whose blob has not come; if it has, by somebody else's hand, that one counts on it:
        whether it has.

        Never fails: a reference alone means nothing, and there is an error already that the client should see.
        """
        is_there = False
        with suppress(BlobteeError), self._store.metadata.transaction():
            is_there = self._is_there(digest)
            if not is_there:
                self._references.let_go(self.name, digest, is_there=False)
        return is_there

    def held(self, digest: Digest, labels: Mapping[str, str] | None) -> Info:
        """The blob that has just been committed, with `labels`."""
        # Another writer of the same blob may have made the reference, with its labels, and even taken it back.
        try:
            found = self._references.get(self.name, digest)
        except NotFound:
            self.hold(digest, labels)
            found = self._references.get(self.name, digest)
        if found.labels != checked(labels):
            found = self._references.update(self.name, digest, dict(labels or {}), replace=True)
        return self._info(found)

    def seen(self, status: Status) -> Status:
        """The status of an ingest of the store as the tenant knows it."""
        ref = status.ref.removeprefix(self._prefix)
        return Status(ref, status.offset, status.total, status.expected, status.started_at, status.updated_at)

    def _find(self, digest: Digest) -> Reference:
        """The tenant's reference, made when the store has the blob for somebody else, or knows it; `NotFound`."""
        try:
            return self._references.get(self.name, digest)
        except NotFound:
            self._size(digest)
        # Hold first, look afterwards: what is there then, no sweep takes away. What was let go of is there no more
        # until somebody writes it again; unless it can be had anew, so that it may as well stay.
        made = self._references.hold(self.name, digest, orphans=self._is_lazy(digest))
        try:
            self._size(digest)
        except BlobteeError as error:
            # What goes and comes again in between is there, and held: no `NotFound` for that.
            if not (made and self.let_go_of_nothing(digest) and isinstance(error, NotFound)):
                raise
        return self._references.get(self.name, digest)

    def _is_there(self, digest: Digest) -> bool:
        try:
            self._store.info(digest)
        except DataLoss:
            return True
        except NotFound:
            return False
        return True

    @contextmanager
    def _holding_what_exists(self, digest: Digest) -> Iterator[None]:
        """A block at whose end the tenant holds the blob, if it left it with `AlreadyExists`."""
        made = self.hold(digest, None)
        exists = False
        try:
            yield
        except AlreadyExists:
            exists = True
            raise
        finally:
            if made and not exists:
                self.let_go_of_nothing(digest)

    def _info(self, reference: Reference) -> Info:
        size = self._size(reference.digest)
        return Info(reference.digest, size, reference.created_at, reference.updated_at, reference.labels)

    def _size(self, digest: Digest) -> int:
        """Bytes of a blob that is here, or is said to have as many; `NotFound`."""
        try:
            return self._store.info(digest).size
        except NotFound:
            if self._lazy is None:
                raise
            return self._lazy.get(digest).desc.size

    def _is_lazy(self, digest: Digest) -> bool:
        if self._lazy is None:
            return False
        try:
            self._lazy.get(digest)
        except (NotFound, DataLoss):
            return False
        return True

    def _holds_lazy(self, digest: Digest) -> bool:
        """Whether the blob is known, and so the tenant's from here on."""
        if self._lazy is None or not self._lazy.any() or not self._is_lazy(digest):
            return False
        try:
            self._find(digest)
        except (NotFound, DataLoss):  # the sweep has forgotten it meanwhile
            return False
        return True

    def _walk(self, matches: filters.Filter) -> Iterator[Info]:
        for page in self._references.pages(self.name):
            found = [each for each in page if matches(filters.blob_fields(each.digest, each.labels))]
            sizes = self._store.sizes([each.digest for each in found])
            for each in found:
                # A reference alone is that of a commit which a crash cut off, or a blob that was damaged.
                with suppress(NotFound, DataLoss):
                    size = sizes[each.digest] if each.digest in sizes else self._size(each.digest)
                    yield Info(each.digest, size, each.created_at, each.updated_at, each.labels)


class _Hold(Claim):
    """That a tenant holds a blob which comes; `made` is the reference, if it did not before."""

    several = True

    def __init__(self, tenant: Tenant, digest: Digest, labels: Mapping[str, str] | None) -> None:
        self.tenant = tenant
        self.made: Reference | None = None
        self._wanted = (digest, labels)

    def write(self) -> None:
        self.made = None
        self.made = self.tenant.hold(*self._wanted)

    @classmethod
    def write_all(cls, claims: Sequence[Self]) -> bool:
        by_tenant: dict[Tenant, list[Self]] = {}
        for claim in claims:
            by_tenant.setdefault(claim.tenant, []).append(claim)
        for tenant, holds in by_tenant.items():
            made = tenant.hold_new([hold._wanted for hold in holds])
            if made is None:
                return False
            for hold, reference in zip(holds, made, strict=True):
                hold.made = reference
        return True


class TenantWriter(Writer):
    """A writer of the store, for a tenant."""

    def __init__(self, tenant: Tenant, writer: LocalWriter) -> None:
        self._tenant = tenant
        self._writer = writer

    @property
    def status(self) -> Status:
        return self._tenant.seen(self._writer.status)

    @property
    def digest(self) -> Digest:
        return self._writer.digest

    def write(self, data: Buffer) -> int:
        return self._writer.write(data)

    def truncate(self, size: int) -> None:
        self._writer.truncate(size)

    def commit(self, size: int = 0, expected: str | None = None, labels: Mapping[str, str] | None = None) -> Info:
        """See `Writer.commit`. Labels are the tenant's own. What was the store's but not the tenant's is no
        `AlreadyExists`: the tenant holds it from here on."""
        digest = Digest(expected) if expected else self._writer.status.expected or self._writer.digest
        hold = _Hold(self._tenant, digest, labels)
        try:
            nbytes = self._writer.commit(size, expected, claim=hold).size
        except AlreadyExists:
            if hold.made is None:
                raise
            return self._tenant.held(digest, labels)
        except BaseException:
            if hold.made is not None:
                self._tenant.let_go_of_nothing(digest)
            raise
        made = hold.made
        if made is None:
            return self._tenant.held(digest, labels)
        return Info(digest, nbytes, made.created_at, made.updated_at, made.labels)

    def close(self) -> None:
        self._writer.close()
